//! What the agent may do: only what steering and the proxy take.
//!
//! | capability | for | held by |
//! |---|---|---|
//! | `CAP_BPF` | programs, maps and links | all threads |
//! | `CAP_NET_ADMIN` | devices, attaching to them, nftables, sysctls under `net`, `SO_MARK`, `IP_TRANSPARENT`; rules and routes of the agent's network namespace | all threads |
//! | `CAP_PERFMON` | loading `steer`: without it the verifier refuses pointer arithmetic on the stack in loops, such as the compiler's own `memset`, and puts a barrier against speculation after every write to the stack, which costs every packet | one thread, until the programs are loaded |
//! | `CAP_SYS_ADMIN` | one system call: making the agent's network namespace ([`super::namespace`]) | one thread, until it has made it, before the agent has read anything but its flags |
//!
//! The first two are needed after start as well: devices come and go, an enrolled pod writes to maps, and every
//! socket of the proxy is marked and transparent. Nothing else is: files belong to root, which the agent runs as,
//! and ports below 1024 are not listened on. The evidence is in the tests: with the four an agent comes up, and without any one
//! of them it does not (`cargo test -p mesh-agent --lib capabilities -- --nocapture` prints why).
//!
//! Mounting bpffs takes `CAP_SYS_ADMIN` as well and is left to the DaemonSet or the admin ([`super::kernel`] checks it).

use std::fs;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};

use super::HostError;
use super::job_thread::JobThread;
use super::namespace::NamespaceThread;

/// What is kept.
pub const NEEDED: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// What the thread that loads the programs has.
const NEEDED_TO_LOAD: [Capability; 3] =
    [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON];

/// A thread with the right to load programs, which does that once and ends.
///
/// Capabilities are a thread's own, file descriptors are the process's: what this one loads, all can use.
#[must_use = "nobody else can load programs"]
#[derive(Debug)]
pub struct Loader(JobThread);

/// Threads that were given what the process has no longer.
#[derive(Debug)]
pub struct Privileged {
    /// Loads the programs.
    pub loader: Loader,
    /// Is in the agent's network namespace.
    pub namespace: NamespaceThread,
}

/// Gives up everything but [`NEEDED`] for the process, for good, except for what the returned threads were for. Call it before
/// there is a second thread: only new threads inherit what this one has.
pub fn restrict_process() -> Result<Privileged, HostError> {
    let tasks = Path::new("/proc/self/task");
    let threads = fs::read_dir(tasks).map_err(HostError::file("listing", tasks))?.count();
    if threads != 1 {
        return Err(HostError::Capabilities(format!(
            "to be dropped before other threads start, and there are {threads}"
        )));
    }
    restrict_thread_with_privileged()
}

fn restrict_thread_with_privileged() -> Result<Privileged, HostError> {
    let privileged = Privileged { loader: Loader::start()?, namespace: NamespaceThread::start()? };
    restrict_thread(&NEEDED)?;
    Ok(privileged)
}

impl Loader {
    fn start() -> Result<Self, HostError> {
        let (thread, ()) = JobThread::start("loader", || restrict_thread(&NEEDED_TO_LOAD))?;
        Ok(Self(thread))
    }

    /// Runs `load` with the right to load programs, and waits for it.
    ///
    /// # Errors
    /// If it panics.
    pub fn run<T: Send + 'static>(self, load: impl FnOnce() -> T + Send + 'static) -> Result<T, HostError> {
        self.0.run(load)
    }
}

/// Gives up everything but `kept` for the calling thread and those it starts.
pub(super) fn restrict_thread(kept: &[Capability]) -> Result<(), HostError> {
    let refused = |error: caps::errors::CapsError| HostError::Capabilities(error.to_string());
    let held = caps::read(None, CapSet::Permitted).map_err(refused)?;
    let missing: Vec<_> =
        kept.iter().filter(|needed| !held.contains(needed)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(HostError::Capabilities(format!(
            "{} missing: run as root, or add to the container's securityContext",
            missing.join(", ")
        )));
    }

    let kept: CapsHashSet = kept.iter().copied().collect();
    // Without CAP_SETPCAP the bounding set stays; it only matters to programs executed with file capabilities,
    // and `no_new_privs` puts an end to those.
    if held.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(refused)?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(refused)?;
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(refused)?;
    caps::clear(None, CapSet::Inheritable).map_err(refused)?;
    caps::set(None, CapSet::Effective, &kept).map_err(refused)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(refused)?;
    nix::sys::prctl::set_no_new_privs().map_err(|error| HostError::Capabilities(error.to_string()))
}

#[cfg(test)]
mod tests;
