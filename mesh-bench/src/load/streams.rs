//! Throughput: bytes that the server receives over connections which the client never leaves without any.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::outcome::Errors;
use super::processor::busy;
use super::wire::{CHUNK, Counted, Header};
use super::{DriveOptions, Outcome};

/// How much later than the window's end the server's answer may come: it is behind all that is under way.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn measure(options: &DriveOptions) -> Result<Outcome> {
    let payload: Rc<[u8]> = vec![b'p'; CHUNK].into();
    let mut streams = JoinSet::new();
    for _ in 0..options.connections {
        let (options, payload) = (options.clone(), Rc::clone(&payload));
        streams.spawn_local(async move {
            let limit = options.warm_up + options.window + PATIENCE;
            let late =
                |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the server did not say what it received"));
            timeout(limit, send(&options, &payload)).await.unwrap_or_else(late)
        });
    }
    sleep(options.warm_up).await;
    let busy_before = busy()?;
    let (mut outcome, mut errors) = (Outcome::default(), Errors::default());
    // All windows begin and end with the others, but for the time of the handshakes.
    let mut processor_seconds = None;
    while let Some(stream) = streams.join_next().await {
        match stream? {
            Ok(counted) => {
                let seconds = counted.time.as_secs_f64();
                outcome.seconds = outcome.seconds.max(seconds);
                outcome.bytes_per_second += counted.bytes as f64 / seconds;
                outcome.completed += 1;
            }
            Err(error) => errors.add("stream", &error),
        }
        processor_seconds.get_or_insert(busy()? - busy_before);
    }
    outcome.processor_seconds = processor_seconds.unwrap_or_default();
    outcome.errors = errors.into_inner();
    Ok(outcome)
}

async fn send(options: &DriveOptions, payload: &[u8]) -> io::Result<Counted> {
    let mut stream = TcpStream::connect(options.to).await?;
    stream.set_nodelay(true)?;
    Header::Stream { warm_up: options.warm_up, window: options.window }.write(&mut stream).await?;
    let (mut reader, mut writer) = stream.split();
    let sending = async {
        loop {
            writer.write_all(payload).await?;
        }
    };
    tokio::select! {
        counted = Counted::read(&mut reader) => counted,
        failed = sending => failed,
    }
}
