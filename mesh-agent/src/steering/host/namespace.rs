//! The agent's own network namespace, where what is steered is delivered.
//!
//! ```text
//! node        mesh-steered          mesh-around
//!                  |                     |
//! agent         steered               around        lo
//! ```
//!
//! To have packets with any address delivered locally, a network namespace needs policy rules, which cost every packet that is
//! forwarded in it, and its sockets need sysctls that others may not want. Here they are nobody else's: the node has two devices
//! more and is otherwise as it was. `steer` puts packets into `steered`, `guard` sends those it turns around to `around`, and each
//! is answered the way it came.
//!
//! The sockets of the data plane are made here, by threads that are here: they start on a [`NamespaceThread`]. The namespace has no
//! name and goes with the agent, however that ends, and with it its devices. What an agent has sent and nobody has acknowledged
//! keeps it for as long as the kernel tries.

mod wiring;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt::TcpCongestion};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tracing::warn;

use super::job_thread::JobThread;
use super::sysctls::Sysctls;
use super::{HostError, HostSettings, capabilities};
use wiring::{Ends, Wires};

pub use wiring::{AROUND, DEVICES, STEERED};

/// A thread in a network namespace of its own.
#[derive(Debug)]
pub struct NamespaceThread {
    thread: JobThread,
    namespace: File,
}

impl NamespaceThread {
    /// Makes the namespace, empty. Takes CAP_SYS_ADMIN, which the thread gives up: it has what the agent has.
    ///
    /// # Errors
    /// If the right, or another that the agent needs, is missing.
    pub fn start() -> Result<Self, HostError> {
        let (thread, namespace) = JobThread::start("namespace", enter)?;
        Ok(Self { thread, namespace })
    }

    /// Runs `work` in the namespace, and waits for it. Threads that it starts are there, and sockets that it makes, for good.
    ///
    /// # Errors
    /// If it panics, or other work did before.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, HostError> {
        self.thread.run(work)
    }
}

fn enter() -> Result<File, HostError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| {
        HostError::Namespace(format!(
            "{error}: run as root, or add CAP_SYS_ADMIN to the container's securityContext; the agent gives it up at once"
        ))
    })?;
    capabilities::restrict_thread(&capabilities::NEEDED)?;
    of_thread()
}

/// The network namespace of the thread that asks.
fn of_thread() -> Result<File, HostError> {
    let path = Path::new("/proc/thread-self/ns/net");
    File::open(path).map_err(HostError::file("opening", path))
}

/// The namespace, connected with the node's.
#[derive(Debug)]
pub struct AgentNamespace {
    thread: NamespaceThread,
    wires: Wires,
    id: u32,
    ends: Ends,
    network_congestion_control: Option<String>,
}

impl AgentNamespace {
    /// Connects the namespace with that of the calling thread, which is the node's, in place of an agent before. To be called on a
    /// runtime.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn connect(thread: NamespaceThread, settings: &HostSettings) -> Result<Self, HostError> {
        settle(&thread, &settings.proc_sys)?;
        let network_congestion_control = control_congestion(&thread, &settings.proc_sys)?;
        let wires = Wires::open(&thread)?;
        wires.remove_former().await?;
        let id = wires.number(&thread.namespace).await?;
        let ends = wires.lay(settings.agent_mark, |device| admit(&settings.proc_sys, device)).await?;
        Ok(Self { thread, wires, id, ends, network_congestion_control })
    }

    /// The thread in it.
    pub fn thread(&self) -> &NamespaceThread {
        &self.thread
    }

    /// The number by which the node's namespace knows it.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Interface index of the node's end of the device for what is steered where it comes in.
    pub fn steered_device(&self) -> u32 {
        self.ends.steered
    }

    /// The same for what is turned around on its way into a pod.
    pub fn around_device(&self) -> u32 {
        self.ends.around
    }

    /// How congestion is controlled on the way to other nodes, where sockets here do not do it so by themselves.
    pub fn network_congestion_control(&self) -> Option<&str> {
        self.network_congestion_control.as_deref()
    }

    /// Makes the agent's packets fit where pods' packets do, for as long as somebody says what that is: that one was too large, a
    /// router on its way tells the address it came from, which is the pod's.
    pub async fn follow_mtu(&self, mut of_pods: watch::Receiver<Option<u32>>) {
        loop {
            let mtu = *of_pods.borrow_and_update();
            if let Some(mtu) = mtu
                && let Err(error) = self.wires.set_mtu(self.ends.steered, mtu).await
            {
                warn!(mtu, %error, "the agent's packets may be too large for the pods' network");
            }
            if of_pods.changed().await.is_err() {
                return;
            }
        }
    }
}

impl AsFd for AgentNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.thread.namespace.as_fd()
    }
}

/// Whether the devices of an agent are there and up; which are not, in words.
pub async fn missing() -> Result<Vec<String>, HostError> {
    wiring::missing().await
}

/// Removes the devices of an agent, and says how many there were: an agent that runs is cut off.
pub async fn remove() -> Result<usize, HostError> {
    wiring::remove().await
}

const CONGESTION_CONTROL: &str = "net.ipv4.tcp_congestion_control";
/// Every kernel has it.
const WITHIN_NODE: &str = "reno";

/// Sysctls of the namespace, which is new. Those of the devices come before the devices.
const OWN: [(&str, &str); 10] = [
    // Every address is delivered here, whatever it is and wherever it came from.
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.conf.all.accept_local", "1"),
    // Nothing but the agent's connections, each from its client's address: ports in TIME_WAIT can be used again.
    ("net.ipv4.ip_local_port_range", "1024 65535"),
    ("net.ipv4.tcp_tw_reuse", "1"),
    // That a packet is too large for the way is told to the pod whose address it has.
    ("net.ipv4.tcp_mtu_probing", "1"),
    // Nobody has an address of their own here, nor asks for one.
    ("net.ipv6.conf.all.disable_ipv6", "0"),
    ("net.ipv6.conf.default.disable_ipv6", "0"),
    ("net.ipv6.conf.default.accept_ra", "0"),
    ("net.ipv6.conf.default.addr_gen_mode", "1"),
];

/// What a namespace has by itself instead of the node's: whoever tunes the node means the agent's connections.
const AS_ON_NODE: [&str; 13] = [
    "net.core.somaxconn",
    "net.ipv4.tcp_ecn",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_limit_output_bytes",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_max_tw_buckets",
    "net.ipv4.tcp_notsent_lowat",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_slow_start_after_idle",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_syn_retries",
    "net.ipv4.tcp_synack_retries",
    "net.ipv4.tcp_wmem",
];

fn settle(thread: &NamespaceThread, proc_sys: &Path) -> Result<(), HostError> {
    let of_node = Sysctls::new(proc_sys);
    // Not every kernel has all of them.
    let mut wanted: Vec<(&str, String)> =
        AS_ON_NODE.iter().filter_map(|name| Some((*name, of_node.read(name).ok()?))).collect();
    let ipv6 = has_ipv6(proc_sys);
    let own = OWN.iter().filter(|(name, _)| ipv6 || !name.starts_with("net.ipv6."));
    wanted.extend(own.map(|(name, value)| (*name, (*value).to_owned())));
    let proc_sys = proc_sys.to_path_buf();
    thread.run(move || {
        let here = Sysctls::new(proc_sys);
        for (name, value) in &wanted {
            if here.read(name)? != *value {
                here.write(name, value)?;
            }
        }
        Ok(())
    })?
}

/// Between the agent and the pods of its node nothing is lost and nothing queues: all that could be controlled are the
/// agent's own processors. What paces, as BBR does, takes a timer for every packet there. So sockets have the simplest
/// control there is, and those that reach other nodes are given the node's, which this returns.
fn control_congestion(thread: &NamespaceThread, proc_sys: &Path) -> Result<Option<String>, HostError> {
    let of_node = Sysctls::new(proc_sys).read(CONGESTION_CONTROL)?;
    let proc_sys = proc_sys.to_path_buf();
    thread.run(move || {
        let here = Sysctls::new(proc_sys);
        // A kernel may not have it for a namespace like this.
        let can_be_given = Socket::new(Domain::IPV4, Type::STREAM, None)
            .is_ok_and(|socket| setsockopt(&socket, TcpCongestion, &OsString::from(&of_node)).is_ok());
        if !can_be_given || here.write(CONGESTION_CONTROL, WITHIN_NODE).is_err() {
            return Ok(None);
        }
        Ok((of_node != WITHIN_NODE).then_some(of_node))
    })?
}

/// Lets what comes out of the node's end of a device be routed onwards. The values go with the device.
fn admit(proc_sys: &Path, device: &str) -> Result<(), HostError> {
    let sysctls = Sysctls::new(proc_sys);
    // The greater of a device's value and that of all holds. The way back to those whose addresses come in here is another.
    let strict = sysctls.read("net.ipv4.conf.all.rp_filter")? != "0";
    let mut wanted = vec![
        ("ipv4", "rp_filter", if strict { "2" } else { "0" }),
        ("ipv4", "forwarding", "1"),
        // Where a service's address is the node's own (IPVS), it is a source.
        ("ipv4", "accept_local", "1"),
    ];
    if has_ipv6(proc_sys) {
        wanted.extend([
            ("ipv6", "forwarding", "1"),
            ("ipv6", "accept_ra", "0"),
            ("ipv6", "addr_gen_mode", "1"),
        ]);
    }
    wanted.into_iter().try_for_each(|(family, name, value)| {
        sysctls.write(&format!("net.{family}.conf.{device}.{name}"), value)
    })
}

fn has_ipv6(proc_sys: &Path) -> bool {
    let directory: PathBuf = proc_sys.join("net/ipv6/conf/all");
    directory.exists()
}
