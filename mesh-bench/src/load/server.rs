//! The server.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::{BULK, MESSAGE, purpose};

/// Is said when connections are taken.
pub(crate) const LISTENING: &str = "listening";

/// As many connections may wait to be taken as the system allows: a client that is quick is not to be measured by it.
const BACKLOG: u32 = 4096;

/// Options of `serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeOptions {
    /// Where connections are taken
    #[arg(long)]
    listen: SocketAddr,
}

/// Serves until it is killed.
pub(crate) fn serve(options: &ServeOptions) -> Result<()> {
    crate::hold::raise_descriptor_limit()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?.block_on(
        async {
            let listener = listen(options.listen).with_context(|| format!("listen on {}", options.listen))?;
            println!("{LISTENING}");
            loop {
                let (stream, _) = listener.accept().await?;
                tokio::task::spawn_local(async move {
                    // A connection that breaks is counted by the client.
                    let _ = answer(stream).await;
                });
            }
        },
    )
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    match stream.read_u8().await? {
        purpose::COUNT => {
            let (mut bytes, mut buffer) = (0_u64, vec![0; BULK]);
            loop {
                match stream.read(&mut buffer).await? {
                    0 => break,
                    count => bytes += count as u64,
                }
            }
            stream.write_u64(bytes).await
        }
        purpose::ECHO => {
            let mut message = [0; MESSAGE];
            while stream.read_exact(&mut message).await.is_ok() {
                stream.write_all(&message).await?;
            }
            Ok(())
        }
        other => {
            stream.write_u8(other).await?;
            // The client closes first, as most do: the port waits on its side.
            stream.read(&mut [0]).await.map(drop)
        }
    }
}
