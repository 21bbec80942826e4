//! What the agent may do: only what steering and the proxy take.
//!
//! | capability | for |
//! |---|---|
//! | `CAP_BPF` | programs, maps and links |
//! | `CAP_NET_ADMIN` | attaching to devices, rules, routes, nftables, sysctls under `net`, `SO_MARK`, `IP_TRANSPARENT` |
//!
//! Both are needed after start as well: devices come and go, an enrolled pod writes to maps, and every socket of
//! the proxy is marked and transparent. Nothing else is: files belong to root, which the agent runs as, and ports
//! below 1024 are not listened on. See the test for the evidence.
//!
//! Mounting bpffs takes `CAP_SYS_ADMIN` and is left to the DaemonSet or the admin ([`super::kernel`] checks it).

use std::fs;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};

use super::HostError;

/// What is kept.
pub const NEEDED: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN];

/// Gives up everything but [`NEEDED`] for the process, for good. Call it before there is a second thread:
/// capabilities are a thread's own, and only new threads inherit them.
pub fn restrict_process() -> Result<(), HostError> {
    let tasks = Path::new("/proc/self/task");
    let threads = fs::read_dir(tasks).map_err(HostError::file("listing", tasks))?.count();
    if threads != 1 {
        return Err(HostError::Capabilities(format!(
            "to be dropped before other threads start, and there are {threads}"
        )));
    }
    restrict_thread()
}

/// The same for the calling thread alone.
fn restrict_thread() -> Result<(), HostError> {
    let refused = |error: caps::errors::CapsError| HostError::Capabilities(error.to_string());
    let held = caps::read(None, CapSet::Permitted).map_err(refused)?;
    let missing: Vec<_> =
        NEEDED.iter().filter(|needed| !held.contains(needed)).map(ToString::to_string).collect();
    if !missing.is_empty() {
        return Err(HostError::Capabilities(format!("{} missing: run as root", missing.join(", "))));
    }

    let kept: CapsHashSet = NEEDED.into();
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
