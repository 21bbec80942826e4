//! What steering needs of the node besides its kernel programs: devices to the agent's network namespace, sysctls, untracking.
//!
//! The sysctls are the node's own state, so every change is written to the [`journal`] first: a clean exit, or `mesh-agent
//! detach` after a crash, puts the node back exactly as it was.
//!
//! Everything here acts on the network namespace of the calling thread.

pub mod capabilities;
pub mod detach;
mod error;
pub mod installed;
pub mod instance;
mod job_thread;
pub mod journal;
pub mod kernel;
pub mod namespace;
mod netlink;
mod rules;
pub mod sysctls;
#[cfg(test)]
pub(crate) mod testing;
pub mod untrack;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::settings::NodeArgs;

pub use error::HostError;
use journal::Journal;
use sysctls::{PortRange, Sysctls};

/// A value in some bits of a packet's mark. The other bits belong to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The bits' value.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// Whether what the agent sends from clients' addresses is kept away from connection tracking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Untracking {
    /// Wherever the kernel has nf_tables: without it there is no nftables NAT to mislead them, and iptables' is unlikely.
    #[default]
    Auto,
    /// Never: nothing on this node rewrites addresses.
    Off,
}

/// How to prepare the node.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// The mark of what the agent sends from addresses that are not the node's.
    pub capture_mark: Mark,
    /// The mark of what else it sends.
    pub agent_mark: Mark,
    /// Whether the former bypasses connection tracking.
    pub untracking: Untracking,
    /// Local ports for connections that the agent opens; `None` leaves the node's range alone.
    pub port_range: Option<PortRange>,
    /// Where lock and journal are kept. It must not outlive a reboot.
    pub run_dir: PathBuf,
    /// Where the node's `/proc/sys` is writable: a container sees its own read-only, and mounts the node's
    /// `/proc` elsewhere.
    pub proc_sys: PathBuf,
}

impl HostSettings {
    /// The defaults for what each node must say itself.
    pub fn new(capture_mark: Mark, agent_mark: Mark, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            capture_mark,
            agent_mark,
            untracking: Untracking::default(),
            port_range: Some(PortRange::WIDE),
            run_dir: run_dir.into(),
            proc_sys: PathBuf::from("/proc/sys"),
        }
    }

    /// The settings that the command line gives.
    pub fn from_args(args: &NodeArgs) -> Self {
        let mask = args.mark_mask.get();
        let mark = |value| Mark { value, mask };
        Self {
            proc_sys: args.proc_sys.clone(),
            ..Self::new(mark(args.capture_mark.get()), mark(args.agent_mark.get()), args.run_dir.clone())
        }
    }
}

/// The node, prepared for steering. Dropping it changes nothing: an agent that restarts finds all in place.
#[derive(Debug)]
pub struct HostState {
    sysctls: Sysctls,
    journal: Journal,
    untracking: bool,
}

impl HostState {
    /// Prepares the node, re-adopting whatever an earlier agent left there.
    pub fn install(settings: &HostSettings) -> Result<Self, HostError> {
        let mut journal = Journal::open(&settings.run_dir)?;

        let sysctls = Sysctls::new(&settings.proc_sys);
        sysctls.apply(&sysctls.wanted(settings.port_range)?, &mut journal)?;

        let untracking = match settings.untracking {
            Untracking::Off => untrack::remove().map(|_| false)?,
            Untracking::Auto => match untrack::install(settings.capture_mark) {
                Ok(()) => true,
                Err(HostError::Unsupported { what, mend }) => {
                    warn!(what, mend, "the agent's connections stay visible to connection tracking");
                    false
                }
                Err(error) => return Err(error),
            },
        };

        info!(untracking, "node prepared for steering");
        Ok(Self { sysctls, journal, untracking })
    }

    /// Whether what the agent sends from clients' addresses bypasses connection tracking.
    pub fn untracking(&self) -> bool {
        self.untracking
    }

    /// Puts the node back as it was. The kernel programs must have stopped to steer before.
    pub async fn remove(mut self) -> Result<(), HostError> {
        namespace::remove().await?;
        untrack::remove()?;
        self.sysctls.restore(&mut self.journal)?;
        self.journal.discard()?;
        Ok(())
    }
}
