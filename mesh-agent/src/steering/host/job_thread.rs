//! A thread that others have work done on, because it is something that they are not: it has a right, or is in another network
//! namespace.

use std::sync::mpsc;
use std::thread;

use super::HostError;

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It ends with its handle.
#[derive(Debug)]
pub(super) struct JobThread {
    name: &'static str,
    jobs: mpsc::SyncSender<Job>,
}

impl JobThread {
    /// Starts it, and returns what `set_up` came to, which is what it does first.
    ///
    /// # Errors
    /// If there can be no thread, or what `set_up` fails with.
    pub(super) fn start<T: Send + 'static>(
        name: &'static str,
        set_up: impl FnOnce() -> Result<T, HostError> + Send + 'static,
    ) -> Result<(Self, T), HostError> {
        let (jobs, work) = mpsc::sync_channel::<Job>(1);
        let (ready, outcome) = mpsc::sync_channel(1);
        let run = move || {
            let outcome = set_up();
            let is_ready = outcome.is_ok();
            // Nobody waits any more only if the agent is ending.
            if ready.send(outcome).is_ok() && is_ready {
                work.into_iter().for_each(|job| job());
            }
        };
        let spawned = thread::Builder::new().name(name.into()).spawn(run);
        spawned.map_err(|error| HostError::Thread { name, reason: error.to_string() })?;
        let thread = Self { name, jobs };
        let outcome = outcome.recv().map_err(|_| thread.gone())??;
        Ok((thread, outcome))
    }

    /// Runs `work` on it, and waits for it.
    ///
    /// # Errors
    /// If it panics, or other work did before.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HostError> {
        let (done, result) = mpsc::sync_channel(1);
        let job = Box::new(move || {
            // The receiver is there until this returns.
            let _ = done.send(work());
        });
        self.jobs.send(job).map_err(|_| self.gone())?;
        result.recv().map_err(|_| self.gone())
    }

    fn gone(&self) -> HostError {
        HostError::Thread { name: self.name, reason: "it has ended".into() }
    }
}
