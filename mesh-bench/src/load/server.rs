//! The server of all measurements.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::run;
use super::wire::{Counted, GREETING, Header, MESSAGE, PROBE_TEXT};

/// Is said when connections are taken.
pub(crate) const LISTENING: &str = "listening";
/// Connections that the kernel keeps until they are accepted: more than any measurement opens at once.
const BACKLOG: u32 = 4096;
/// Bytes of a read of a stream.
const READ: usize = 256 << 10;

/// Options of `serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeOptions {
    /// Where connections are taken
    #[arg(long)]
    listen: SocketAddr,
}

/// Serves until it is killed.
pub(crate) fn serve(options: &ServeOptions) -> Result<()> {
    run(async {
        let listener = listen(options.listen).with_context(|| format!("listen at {}", options.listen))?;
        println!("{LISTENING}");
        accept(listener).await
    })
}

pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

pub(super) async fn accept(listener: TcpListener) -> Result<()> {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The client has gone before its connection was taken; it counts that.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error.into()),
        };
        tokio::task::spawn_local(async move {
            // Clients count how connections end; probes of readiness end without a word.
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match Header::read(&mut stream).await? {
        Header::Stream { warm_up, window } => count(stream, warm_up, window).await,
        Header::Exchange => exchange(stream).await,
        Header::Greeting => {
            stream.write_all(&[GREETING]).await?;
            stream.read_u8().await.map(drop)
        }
        Header::Probe => {
            stream.read_exact(&mut [0; PROBE_TEXT.len()]).await?;
            stream.write_all(stream.peer_addr()?.to_string().as_bytes()).await
        }
    }
}

/// Counts what comes in the window, and says so at its end. What still comes then is read and forgotten.
async fn count(mut stream: TcpStream, warm_up: Duration, window: Duration) -> io::Result<()> {
    let mut buffer = vec![0; READ];
    let begin = Instant::now() + warm_up;
    while Instant::now() < begin {
        if stream.read(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
    let began = Instant::now();
    let mut bytes = 0;
    let time = loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        bytes += read as u64;
        let time = began.elapsed();
        if time >= window {
            break time;
        }
    };
    Counted { bytes, time }.write(&mut stream).await?;
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

/// Answers every message. Only whole messages are waited for, so a buffer that is larger finds out at once, without
/// another call, that there is nothing more to read.
async fn exchange(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 2 * MESSAGE];
    let answer = [b'a'; MESSAGE];
    let mut unanswered = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            read => unanswered += read,
        }
        while unanswered >= MESSAGE {
            stream.write_all(&answer).await?;
            unanswered -= MESSAGE;
        }
    }
}
