//! SIGINT and SIGTERM: the run ends at its next turn and reports what there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

/// Somebody wants the run to end.
#[derive(Debug, Clone, Copy, Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Whether somebody does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interruption(Arc<AtomicBool>);

impl Interruption {
    /// Begins to listen. Programs that are started from now on still die of the signals, as a handler is not inherited.
    ///
    /// `at_once` is called at the second signal, for whoever cannot wait for the next turn.
    pub(crate) fn listen(at_once: impl FnOnce() + Send + 'static) -> Result<Self> {
        let interruption = Self::default();
        let raised = Arc::clone(&interruption.0);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("cannot make a runtime for signals")?;
        let (mut interrupt, mut terminate) = {
            let _inside = runtime.enter();
            let listen = |kind| signal(kind).context("cannot listen to signals");
            (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?)
        };
        let wait = async move {
            for first in [true, false] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                raised.store(true, Ordering::Relaxed);
                if first {
                    crate::progress::note("ending after this turn; once more to end at once");
                }
            }
            at_once();
        };
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || runtime.block_on(wait))
            .context("cannot start the thread for signals")?;
        Ok(interruption)
    }

    /// An error if the run is to end.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        if self.is_raised() { Err(Interrupted) } else { Ok(()) }
    }

    /// Whether the run is to end.
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
