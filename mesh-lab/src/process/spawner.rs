//! One thread that starts all programs.
//!
//! The kernel sends the parent-death signal when the *thread* that forked ends, not the process. Tests start programs from threads
//! that come and go, so the forks are left to a thread that lives as long as the process.

use std::io;
use std::process::{Child, Command};
use std::sync::LazyLock;
use std::sync::mpsc::{self, SyncSender};
use std::thread;

struct Request {
    command: Command,
    answer: SyncSender<io::Result<Child>>,
}

static SPAWNER: LazyLock<io::Result<SyncSender<Request>>> = LazyLock::new(|| {
    let (sender, requests) = mpsc::sync_channel::<Request>(0);
    let serve = move || {
        for Request { mut command, answer } in requests {
            // Nobody waits any more: dropping the child would leave it running, but its machine's end kills it.
            let _ = answer.send(command.spawn());
        }
    };
    thread::Builder::new().name("mesh-lab-spawner".to_owned()).spawn(serve)?;
    Ok(sender)
});

/// Starts a program as a child of the spawner thread.
pub(super) fn spawn(command: Command) -> io::Result<Child> {
    let sender = SPAWNER.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    let (answer, result) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the thread that starts programs has ended");
    sender.send(Request { command, answer }).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}
