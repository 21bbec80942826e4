//! Request and response: every connection sends its next request when it has the answer to the one before.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::outcome::{Errors, histogram};
use super::processor::busy;
use super::wire::{Header, MESSAGE};
use super::{DriveOptions, Outcome};

/// How long a connection may take to be opened, or an answer to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection that failed is not opened again.
const PAUSE: Duration = Duration::from_millis(10);

/// What all connections note together.
struct Notes {
    begin: Instant,
    end: Instant,
    completed: u64,
    latencies: Histogram<u64>,
    errors: Errors,
}

pub(super) async fn measure(options: &DriveOptions) -> Result<Outcome> {
    let begin = Instant::now() + options.warm_up;
    let end = begin + options.window;
    let notes = Rc::new(RefCell::new(Notes {
        begin,
        end,
        completed: 0,
        latencies: histogram()?,
        errors: Errors::default(),
    }));
    let mut connections = JoinSet::new();
    for _ in 0..options.connections {
        let (options, notes) = (options.clone(), Rc::clone(&notes));
        connections.spawn_local(async move {
            while Instant::now() < end {
                let Err((doing, error)) = exchange(&options, &notes, end).await else { break };
                notes.borrow_mut().errors.add(doing, &error);
                sleep(PAUSE).await;
            }
        });
    }
    sleep(begin.saturating_duration_since(Instant::now())).await;
    let (busy_before, began) = (busy()?, Instant::now());
    sleep(end.saturating_duration_since(Instant::now())).await;
    let (processor_seconds, seconds) = (busy()? - busy_before, began.elapsed().as_secs_f64());
    timeout(2 * PATIENCE, async { while connections.join_next().await.is_some() {} })
        .await
        .context("connections did not end")?;
    let notes = Rc::into_inner(notes).context("a connection goes on")?.into_inner();
    let quantile = |quantile| notes.latencies.value_at_quantile(quantile) as f64 / 1e3;
    let window = options.window.as_secs_f64();
    // Counted is what ends in the window; processor time is scaled to it if the timer was late.
    ensure!(seconds > 0.0, "the window has no length");
    Ok(Outcome {
        seconds: window,
        completed: notes.completed,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        processor_seconds: processor_seconds * window / seconds,
        errors: notes.errors.into_inner(),
        ..Outcome::default()
    })
}

/// Exchanges messages over one connection until the window ends.
async fn exchange(
    options: &DriveOptions,
    notes: &RefCell<Notes>,
    end: Instant,
) -> Result<(), (&'static str, io::Error)> {
    let opening = async {
        let mut stream = TcpStream::connect(options.to).await?;
        stream.set_nodelay(true)?;
        Header::Exchange.write(&mut stream).await?;
        Ok(stream)
    };
    let mut stream = in_time(PATIENCE, opening).await.map_err(|error| ("connect", error))?;
    // What could be read at once is more than an answer, so that a short read says that there is no more.
    let mut buffer = [0; 2 * MESSAGE];
    let request = [b'r'; MESSAGE];
    let exchanging = async {
        let mut sent = Instant::now();
        while sent < end {
            stream.write_all(&request).await?;
            let mut missing = MESSAGE;
            while missing > 0 {
                match stream.read(&mut buffer).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read if read > missing => return Err(io::ErrorKind::InvalidData.into()),
                    read => missing -= read,
                }
            }
            let now = Instant::now();
            notes.borrow_mut().completed(sent, now);
            sent = now;
        }
        Ok(())
    };
    // One timer for all exchanges of the connection: a timer for each would be work that no application has.
    let limit = end.saturating_duration_since(Instant::now()) + PATIENCE;
    in_time(limit, exchanging).await.map_err(|error| ("exchange", error))
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

impl Notes {
    fn completed(&mut self, began: Instant, ended: Instant) {
        if ended < self.begin || ended > self.end {
            return;
        }
        self.completed += 1;
        let nanoseconds = u64::try_from(ended.duration_since(began).as_nanos()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(nanoseconds);
    }
}
