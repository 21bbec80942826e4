//! Work that goes on in a namespace while a test does something else.

use std::io;
use std::thread::JoinHandle;

use tokio_util::sync::CancellationToken;

use crate::netns::Namespace;

/// A future on a thread and a current-thread Tokio runtime of its own, in a namespace. Dropping it asks the future to end and waits.
#[derive(Debug)]
pub struct Background<T> {
    stop: CancellationToken,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Background<T> {
    /// Starts the work; it ends soon after its token is cancelled.
    pub(crate) fn start<F: Future<Output = T>>(
        namespace: &Namespace,
        name: &str,
        work: impl FnOnce(CancellationToken) -> F + Send + 'static,
    ) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let token = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = namespace.spawn(name, move || runtime.block_on(work(token)))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Asks the work to end and returns its result.
    pub fn stop(self) -> T {
        self.stop.cancel();
        self.join()
    }

    /// Waits for the work to end by itself.
    pub fn join(mut self) -> T {
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => unreachable!("the thread is taken only here and in drop"),
        }
    }
}

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed; a panic here would abort a test that is already failing.
            let _ = thread.join();
        }
    }
}
