//! The client.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::result::{Measured, cpu_seconds};
use super::{BULK, MESSAGE, purpose};

/// Time for a connection, or an answer, before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// Send as many bytes as possible
    Throughput,
    /// Ask and wait for the answer, over and over
    Rate,
    /// Connect, ask, close, over and over
    Connects,
}

/// Options of `drive`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DriveOptions {
    /// Whom to connect to
    #[arg(long)]
    to: SocketAddr,
    /// What to measure
    #[arg(long)]
    work: Work,
    /// Connections at a time
    #[arg(long)]
    connections: usize,
    /// Milliseconds to measure for
    #[arg(long)]
    milliseconds: u64,
    /// Milliseconds to work before that
    #[arg(long)]
    warm_up: u64,
}

/// Measures, and says what in one line of JSON.
pub(crate) fn drive(options: &DriveOptions) -> Result<()> {
    crate::hold::raise_descriptor_limit()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    let measured = runtime.block_on(measure(options))?;
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// What the connections add up.
struct Tally {
    measured: Measured,
    /// Nanoseconds.
    latencies: Histogram<u64>,
    from: Instant,
    to: Instant,
}

impl Tally {
    fn counts(&self, now: Instant) -> bool {
        now >= self.from && now < self.to
    }

    fn failed(&mut self, error: &io::Error) {
        self.measured.errors += 1;
        self.measured.error.get_or_insert_with(|| error.to_string());
    }
}

async fn measure(options: &DriveOptions) -> Result<Measured> {
    let began = Instant::now();
    let from = began + Duration::from_millis(options.warm_up);
    let to = from + Duration::from_millis(options.milliseconds);
    let latencies = Histogram::new_with_bounds(1, 60_000_000_000, 3).context("a histogram")?;
    let tally = Rc::new(RefCell::new(Tally { measured: Measured::default(), latencies, from, to }));
    let mut tasks = JoinSet::new();
    for _ in 0..options.connections {
        let (tally, address, work) = (Rc::clone(&tally), options.to, options.work);
        tasks.spawn_local(async move {
            let outcome = match work {
                Work::Throughput => send(address, &tally).await,
                Work::Rate => ask(address, &tally).await,
                Work::Connects => {
                    open(address, &tally).await;
                    Ok(())
                }
            };
            if let Err(error) = outcome {
                tally.borrow_mut().failed(&error);
            }
        });
    }
    tokio::time::sleep_until(from).await;
    let before = cpu_seconds()?;
    if options.work != Work::Throughput {
        tokio::time::sleep_until(to).await;
    }
    let mut cpu = cpu_seconds()? - before;
    while let Some(joined) = tasks.join_next().await {
        joined?;
    }
    if options.work == Work::Throughput {
        cpu = cpu_seconds()? - before;
    }
    let mut tally = tally.borrow_mut();
    let (p50, p99) = (tally.latencies.value_at_quantile(0.5), tally.latencies.value_at_quantile(0.99));
    let measured = &mut tally.measured;
    measured.p50_us = p50 as f64 / 1e3;
    measured.p99_us = p99 as f64 / 1e3;
    measured.cpu_seconds = cpu;
    if options.work != Work::Throughput {
        measured.seconds = (to - from).as_secs_f64();
    }
    Ok(measured.clone())
}

async fn connect(address: SocketAddr, purpose: u8) -> io::Result<TcpStream> {
    let connecting = timeout(PATIENCE, TcpStream::connect(address));
    let mut stream = connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    stream.set_nodelay(true)?;
    stream.write_u8(purpose).await?;
    Ok(stream)
}

/// Sends until the time is over, in two connections: one to warm up, and one whose every byte the server confirms.
async fn send(address: SocketAddr, tally: &RefCell<Tally>) -> io::Result<()> {
    let (from, to) = (tally.borrow().from, tally.borrow().to);
    let block = vec![b'x'; BULK];
    for (until, counts) in [(from, false), (to, true)] {
        let mut stream = connect(address, purpose::COUNT).await?;
        let began = Instant::now();
        while Instant::now() < until {
            stream.write_all(&block).await?;
        }
        stream.shutdown().await?;
        let bytes = timeout(PATIENCE, stream.read_u64()).await??;
        if counts {
            let mut tally = tally.borrow_mut();
            tally.measured.bytes += bytes;
            let seconds = began.elapsed().as_secs_f64();
            tally.measured.seconds = tally.measured.seconds.max(seconds);
        }
    }
    Ok(())
}

async fn ask(address: SocketAddr, tally: &RefCell<Tally>) -> io::Result<()> {
    let to = tally.borrow().to;
    let mut stream = connect(address, purpose::ECHO).await?;
    let mut message = [b'x'; MESSAGE];
    let mut began = Instant::now();
    while began < to {
        stream.write_all(&message).await?;
        stream.read_exact(&mut message).await?;
        let now = Instant::now();
        let mut tally = tally.borrow_mut();
        if tally.counts(now) {
            tally.measured.count += 1;
            let nanoseconds = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
            tally.latencies.saturating_record(nanoseconds);
        }
        began = now;
    }
    Ok(())
}

async fn open(address: SocketAddr, tally: &RefCell<Tally>) {
    let to = tally.borrow().to;
    while Instant::now() < to {
        let began = Instant::now();
        let outcome = touch(address).await;
        let now = Instant::now();
        let mut noted = tally.borrow_mut();
        match outcome {
            Ok(()) if noted.counts(now) => {
                noted.measured.count += 1;
                let nanoseconds = u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX);
                noted.latencies.saturating_record(nanoseconds);
            }
            Ok(()) => {}
            Err(error) => {
                noted.failed(&error);
                drop(noted);
                // Whoever has no ports left does not get them faster by asking faster.
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

async fn touch(address: SocketAddr) -> io::Result<()> {
    let mut stream = connect(address, purpose::TOUCH).await?;
    timeout(PATIENCE, stream.read_u8()).await??;
    Ok(())
}
