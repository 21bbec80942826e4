//! New connections: workers that open one, send a byte, await a byte, close, and open the next.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::outcome::{Errors, histogram};
use super::processor::busy;
use super::wire::{GREETING, Header};
use super::{DriveOptions, Outcome};

/// How long a connection may take. Longer than the first retransmission of a SYN, so that one that was lost is seen as slow.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a worker whose connection failed waits: who asks for a port where there is none must not take the processor
/// from those who have one.
const PAUSE: Duration = Duration::from_millis(1);

pub(super) async fn measure(options: &DriveOptions) -> Result<Outcome> {
    let begin = Instant::now() + options.warm_up;
    let end = begin + options.window;
    let completed: Rc<RefCell<(Histogram<u64>, Errors)>> =
        Rc::new(RefCell::new((histogram()?, Errors::default())));
    let mut workers = JoinSet::new();
    for _ in 0..options.connections {
        let (to, notes) = (options.to, Rc::clone(&completed));
        workers.spawn_local(async move {
            loop {
                let began = Instant::now();
                if began >= end {
                    return;
                }
                let outcome = timeout(PATIENCE, greet(to)).await;
                let outcome = outcome.unwrap_or_else(|_| Err(("connect", io::ErrorKind::TimedOut.into())));
                let ended = Instant::now();
                if let Err((doing, error)) = outcome {
                    notes.borrow_mut().1.add(doing, &error);
                    sleep(PAUSE).await;
                } else if ended >= begin && ended <= end {
                    let nanoseconds = u64::try_from((ended - began).as_nanos()).unwrap_or(u64::MAX);
                    notes.borrow_mut().0.saturating_record(nanoseconds);
                }
            }
        });
    }
    sleep(begin.saturating_duration_since(Instant::now())).await;
    let busy_before = busy()?;
    sleep(end.saturating_duration_since(Instant::now())).await;
    let processor_seconds = busy()? - busy_before;
    while workers.join_next().await.is_some() {}
    let (latencies, errors) = Rc::into_inner(completed).context("a worker goes on")?.into_inner();
    let quantile = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Outcome {
        seconds: options.window.as_secs_f64(),
        completed: latencies.len(),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        processor_seconds,
        errors: errors.into_inner(),
        ..Outcome::default()
    })
}

/// One connection. The client closes it first, so that the port that stays in TIME_WAIT is the client's.
async fn greet(to: std::net::SocketAddr) -> Result<(), (&'static str, io::Error)> {
    let mut stream = TcpStream::connect(to).await.map_err(|error| ("connect", error))?;
    let greeting = async {
        Header::Greeting.write(&mut stream).await?;
        match stream.read_u8().await? {
            GREETING => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    greeting.await.map_err(|error| ("greeting", error))
}
