//! Workers that hold idle connections, in processes of their own: one process may not have descriptors for both ends.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What is sent over each connection once, and comes back: a proxy must have had to do with it.
const GREETING: [u8; 64] = [b'x'; 64];
/// Connections that are opened at the same time.
const AT_ONCE: usize = 32;
/// Time for one connection and its greeting.
const PATIENCE: Duration = Duration::from_secs(10);

/// Is said when connections are taken.
pub(crate) const LISTENING: &str = "listening";
/// Is said when all connections are open.
pub(crate) const HOLDING: &str = "holding";

/// Options of `accept`.
#[derive(Debug, Clone, Args)]
pub(crate) struct AcceptOptions {
    /// Where connections are taken
    #[arg(long)]
    listen: SocketAddr,
}

/// Options of `hold`.
#[derive(Debug, Clone, Args)]
pub(crate) struct HoldOptions {
    /// Whom to connect to
    #[arg(long)]
    to: SocketAddr,
    /// How many connections to open
    #[arg(long)]
    connections: usize,
}

/// Takes connections, answers every greeting, and holds them until it is killed.
pub(crate) fn accept(options: &AcceptOptions) -> Result<()> {
    run(async {
        let listener = TcpListener::bind(options.listen).await?;
        println!("{LISTENING}");
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut greeting = GREETING;
                while stream.read_exact(&mut greeting).await.is_ok()
                    && stream.write_all(&greeting).await.is_ok()
                {}
            });
        }
    })
}

/// Opens connections, greets over each, and holds them until it is killed.
pub(crate) fn hold(options: &HoldOptions) -> Result<()> {
    run(async {
        let (mut opening, mut held) = (JoinSet::new(), Vec::with_capacity(options.connections));
        for _ in 0..options.connections {
            if opening.len() >= AT_ONCE
                && let Some(opened) = opening.join_next().await
            {
                held.push(opened??);
            }
            opening.spawn(timeout(PATIENCE, open(options.to)));
        }
        while let Some(opened) = opening.join_next().await {
            held.push(opened??);
        }
        // Every one of them was opened in time; each must have been answered, too.
        let held: Vec<TcpStream> = held.into_iter().collect::<Result<_>>()?;
        println!("{HOLDING} {}", held.len());
        std::future::pending::<()>().await;
        drop(held);
        Ok(())
    })
}

async fn open(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    stream.write_all(&GREETING).await?;
    let mut answer = [0; GREETING.len()];
    stream.read_exact(&mut answer).await.with_context(|| format!("an answer of {to}"))?;
    if answer != GREETING {
        bail!("{to} answered something else");
    }
    Ok(stream)
}

fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    raise_descriptor_limit()?;
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// Lets this process have as many descriptors as the system allows.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("the limit of open files")
}
