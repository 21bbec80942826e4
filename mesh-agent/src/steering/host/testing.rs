//! Network namespaces of their own for tests.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::gettid;

use super::instance::InstanceLock;
use super::{HostError, Mark};

/// The usual marks.
pub(crate) const CAPTURE: Mark = Mark { value: 0x1000, mask: 0x1040 };
pub(crate) const AGENT: Mark = Mark { value: 0x40, mask: 0x1040 };

/// Runs `test` on a thread in a new network namespace with loopback up. The namespace goes with the thread.
pub(crate) fn in_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    on_thread(|| {
        enter_new_namespace();
        test()
    })
}

/// The same for a test that awaits: the runtime stays on the thread, and so in the namespace.
pub(crate) fn in_namespace_async<T: Send>(test: impl AsyncFnOnce() -> T + Send) -> T {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test())
    })
}

/// A further namespace, such as a pod's. It goes with the value.
pub(crate) struct Namespace {
    handle: OwnedFd,
    /// Keeps the thread, and so the path, until dropped.
    _alive: mpsc::Sender<()>,
    path: String,
}

impl Namespace {
    pub(crate) fn new() -> Self {
        let (alive, dead) = mpsc::channel::<()>();
        let (ready, opened) = mpsc::channel();
        thread::spawn(move || {
            enter_new_namespace();
            let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid());
            ready.send((std::fs::File::open(&path).unwrap().into(), path)).unwrap();
            dead.recv().unwrap_err();
        });
        let (handle, path) = opened.recv().unwrap();
        Self { handle, _alive: alive, path }
    }

    /// Moves a device of the caller's namespace here.
    pub(crate) fn take_device(&self, device: &str) {
        shell(&format!("ip link set {device} netns {}", self.path));
    }

    /// Runs `work` in the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            setns(&self.handle, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn enter_new_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    shell("ip link set lo up");
}

/// Runs a command line in the thread's network namespace and returns what it printed.
pub(crate) fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Takes the instance lock that this process has just released. A child that another test is starting has the
/// descriptors too, until it executes.
pub(crate) fn acquire_released(run_dir: &Path) -> InstanceLock {
    loop {
        match InstanceLock::acquire(run_dir) {
            Err(HostError::AlreadyRunning { .. }) => thread::yield_now(),
            taken => return taken.unwrap(),
        }
    }
}
