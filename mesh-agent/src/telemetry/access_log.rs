//! One line per connection, at its end.
//!
//! Lines are formatted and written by a thread of their own. The way there is a bounded queue: where the disk or
//! the reader of stdout is slower than traffic, lines are dropped and counted, and traffic goes on.

mod line;

#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::record::{ConnectionEnd, ConnectionRecord};
use line::Line;

/// Where lines go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output, which is nothing but the access log: everything else the agent says goes to stderr.
    #[default]
    Stdout,
    /// The end of a file.
    File(PathBuf),
}

/// How lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// `key=value` pairs.
    #[default]
    Text,
    /// A JSON object with the same keys.
    Json,
}

/// How the access log is kept.
#[derive(Debug, Clone)]
pub struct AccessLogOptions {
    /// Where it goes.
    pub target: AccessLogTarget,
    /// How it looks.
    pub format: AccessLogFormat,
    /// Lines that may wait to be written.
    pub queue: usize,
}

impl Default for AccessLogOptions {
    fn default() -> Self {
        Self { target: AccessLogTarget::default(), format: AccessLogFormat::default(), queue: 8192 }
    }
}

/// Why there is no access log.
#[derive(Debug, thiserror::Error)]
#[error("access log {target}: {source}")]
pub struct AccessLogError {
    target: String,
    source: io::Error,
}

/// The way to the writer.
#[derive(Debug)]
pub(super) struct AccessLog {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

enum Message {
    Ended(Ended),
    /// Asks to be told when everything before it is written.
    Flush(SyncSender<()>),
}

/// A connection that is over.
struct Ended {
    record: Arc<ConnectionRecord>,
    end: ConnectionEnd,
    duration: Duration,
}

impl AccessLog {
    /// Opens the target and starts the writer.
    pub(super) fn start(options: &AccessLogOptions) -> Result<Self, AccessLogError> {
        let failed = |target: String| move |source| AccessLogError { target, source };
        match &options.target {
            AccessLogTarget::Stdout => Self::write_to(io::stdout(), options).map_err(failed("stdout".into())),
            AccessLogTarget::File(path) => {
                let open = OpenOptions::new().create(true).append(true).open(path);
                open.and_then(|file| Self::write_to(file, options))
                    .map_err(failed(path.display().to_string()))
            }
        }
    }

    fn write_to(out: impl Write + Send + 'static, options: &AccessLogOptions) -> io::Result<Self> {
        let (queue, messages) = sync_channel(options.queue);
        let dropped = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            out,
            format: options.format,
            batch: Vec::new(),
            lines: 0,
            dropped: Arc::clone(&dropped),
        };
        // Ends with its last sender. Not joined: a writer stuck in a full pipe must not keep the agent from going.
        thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&messages))?;
        Ok(Self { queue, dropped })
    }

    /// Queues the line of a connection.
    pub(super) fn ended(&self, record: &Arc<ConnectionRecord>, end: &ConnectionEnd) {
        let ended = Ended { record: Arc::clone(record), end: end.clone(), duration: record.opened.elapsed() };
        if self.queue.try_send(Message::Ended(ended)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that were not written.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Blocks until what is queued is written; says whether that took less than `timeout`.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let (done, flushed) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
            message = unsent;
        }
        flushed.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }
}

/// Bytes after which lines are written even while more wait.
const BATCH: usize = 64 * 1024;

struct Writer<W: Write> {
    out: W,
    format: AccessLogFormat,
    /// Whole lines that wait to be written in one go.
    batch: Vec<u8>,
    lines: u64,
    dropped: Arc<AtomicU64>,
}

impl<W: Write> Writer<W> {
    /// Writes what comes: in batches while more waits, at once otherwise.
    fn run(mut self, messages: &Receiver<Message>) {
        loop {
            let message = match messages.try_recv() {
                Ok(message) => message,
                Err(_) => {
                    self.flush();
                    let Ok(message) = messages.recv() else { return };
                    message
                }
            };
            match message {
                Message::Ended(ended) => self.line(&ended),
                Message::Flush(done) => {
                    self.flush();
                    // Whoever asked may have lost patience.
                    let _ = done.try_send(());
                }
            }
        }
    }

    fn line(&mut self, ended: &Ended) {
        let start = self.batch.len();
        if Line::of(ended).write(self.format, &mut self.batch).is_err() {
            self.batch.truncate(start);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.lines += 1;
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// What cannot be written (a full disk, a closed pipe) is counted and forgotten; the next batch tries again.
    fn flush(&mut self) {
        if self.out.write_all(&self.batch).and_then(|()| self.out.flush()).is_err() {
            self.dropped.fetch_add(self.lines, Ordering::Relaxed);
        }
        self.batch.clear();
        self.lines = 0;
    }
}
