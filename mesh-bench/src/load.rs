//! The load: a server and a client, each a process with one thread, in the pods of a lab.
//!
//! Both are plain event loops on non-blocking sockets, so that what is measured is the way between them and not they. A
//! connection begins with a `Header` that tells the server what it is for:
//!
//! | purpose | the client | the server |
//! |---|---|---|
//! | stream | sends until it has its answer | reads; after the warm-up counts for the length of the window, then answers with what it counted |
//! | exchange | sends 1 KiB, awaits 1 KiB, again and again | answers every 1 KiB with 1 KiB |
//! | greeting | sends a byte, awaits a byte, closes | answers the byte, awaits the end |
//! | probe | sends a text | answers the address that it sees, closes |
//!
//! A client warms up first and counts then; its [`Outcome`] is a line of JSON on its standard output. Errors never end a
//! measurement: they are counted by kind, and whoever evaluates the outcome decides whether there may be any.

mod connects;
mod exchanges;
mod outcome;
mod processor;
mod server;
mod streams;
#[cfg(test)]
mod tests;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

pub(crate) use outcome::Outcome;
pub(crate) use server::{LISTENING, ServeOptions, serve};
pub(crate) use wire::{PROBE, PROBE_TEXT};

/// What a client measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Bytes that the server receives over a number of connections.
    Streams,
    /// Requests and answers of 1 KiB, one at a time on each of a number of connections.
    Exchanges,
    /// Connections that are opened for one byte each way, a number of them at the same time.
    Connects,
}

impl Work {
    /// As `drive` takes it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Exchanges => "exchanges",
            Self::Connects => "connects",
        }
    }
}

/// Options of `drive`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DriveOptions {
    /// What to measure
    #[arg(value_enum)]
    pub(crate) work: Work,
    /// Whom to connect to
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// How many connections at the same time
    #[arg(long)]
    pub(crate) connections: usize,
    /// How long not to measure at first, in milliseconds
    #[arg(long, value_parser = milliseconds)]
    pub(crate) warm_up: Duration,
    /// How long to measure, in milliseconds
    #[arg(long, value_parser = milliseconds)]
    pub(crate) window: Duration,
}

fn milliseconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    // Of a size that a header takes.
    Ok(Duration::from_millis(text.parse::<u32>()?.into()))
}

/// Measures and writes the outcome.
pub(crate) fn drive(options: &DriveOptions) -> Result<()> {
    println!("{}", serde_json::to_string(&measure(options)?)?);
    Ok(())
}

fn measure(options: &DriveOptions) -> Result<Outcome> {
    run(async {
        match options.work {
            Work::Streams => streams::measure(options).await,
            Work::Exchanges => exchanges::measure(options).await,
            Work::Connects => connects::measure(options).await,
        }
    })
}

/// Runs a worker on this thread alone.
fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    crate::hold::raise_descriptor_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}
