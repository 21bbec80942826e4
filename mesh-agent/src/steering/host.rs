//! What steering needs of the node besides its kernel programs: policy routes, sysctls, untracking.
//!
//! A steered packet carries the *capture mark*. Policy rules send it to local delivery, where `pick_listener`
//! gives it to the agent, and an nftables rule keeps it away from connection tracking. All of that is the
//! node's own state, so every change is written to the [`journal`] first: a clean exit, or `mesh-agent detach`
//! after a crash, puts the node back exactly as it was.
//!
//! Everything here acts on the network namespace of the calling thread.

pub mod capabilities;
pub mod detach;
mod error;
pub mod installed;
pub mod instance;
pub mod journal;
pub mod kernel;
pub mod routes;
pub mod sysctls;
#[cfg(test)]
pub(crate) mod testing;
pub mod untrack;

use std::path::PathBuf;

use mesh_common::around_mark;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::settings::NodeArgs;

pub use error::HostError;
use journal::Journal;
use routes::PolicyRouting;
use sysctls::{PortRange, Sysctls};

/// A value in some bits of a packet's mark. The other bits belong to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The bits' value.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// Whether steered packets are kept away from connection tracking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Untracking {
    /// Wherever the kernel has nf_tables: without it there is no nftables NAT to mislead steered packets, and
    /// iptables' is unlikely.
    #[default]
    Auto,
    /// Never: nothing on this node rewrites addresses.
    Off,
}

/// How to prepare the node.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// The mark of steered packets, and of the agent's sockets whose packets come back steered.
    pub capture_mark: Mark,
    /// The mark of packets that are turned around on their way into a pod.
    pub around_mark: Mark,
    /// Routing table that delivers steered packets locally. Nobody else may use it: Calico allots itself numbers
    /// of 1 to 250, Cilium 2004 and 2005, the CNIs of the clouds small ones.
    pub table: u32,
    /// Preference of the first of four consecutive policy rules.
    pub rule_preference: u32,
    /// Whether steered packets bypass connection tracking.
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
    /// Rule preference: after the `local` table (0), before the rules of the cloud CNIs (512 and up).
    pub const DEFAULT_RULE_PREFERENCE: u32 = 99;

    /// The defaults for what each node must say itself.
    pub fn new(capture_mark: Mark, around_mark: Mark, table: u32, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            capture_mark,
            around_mark,
            table,
            rule_preference: Self::DEFAULT_RULE_PREFERENCE,
            untracking: Untracking::default(),
            port_range: Some(PortRange::WIDE),
            run_dir: run_dir.into(),
            proc_sys: PathBuf::from("/proc/sys"),
        }
    }

    /// The settings that the command line gives.
    pub fn from_args(args: &NodeArgs) -> Self {
        let mask = args.mark_mask.get();
        let capture = Mark { value: args.capture_mark.get(), mask };
        let around = Mark { value: around_mark(capture.value, args.agent_mark.get()), mask };
        Self {
            proc_sys: args.proc_sys.clone(),
            ..Self::new(capture, around, args.route_table.get(), args.run_dir.clone())
        }
    }

    /// The policy routing these settings ask for.
    pub fn routing(&self) -> PolicyRouting {
        let Self { capture_mark, around_mark, table, rule_preference, .. } = *self;
        PolicyRouting { mark: capture_mark, around: around_mark, table, preference: rule_preference }
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
    /// Prepares the node, re-adopting whatever an earlier agent left there. Each step replaces the state of the
    /// step's own making in one transaction or not at all, so that capture has no gap.
    pub async fn install(settings: &HostSettings) -> Result<Self, HostError> {
        let mut journal = Journal::open(&settings.run_dir)?;

        let sysctls = Sysctls::new(&settings.proc_sys);
        sysctls.apply(&sysctls.wanted(settings.port_range)?, &mut journal)?;

        let untracking = match settings.untracking {
            Untracking::Off => untrack::remove().map(|_| false)?,
            Untracking::Auto => match untrack::install(settings.capture_mark, settings.around_mark) {
                Ok(()) => true,
                Err(HostError::Unsupported { what, mend }) => {
                    warn!(what, mend, "steered packets stay visible to connection tracking");
                    false
                }
                Err(error) => return Err(error),
            },
        };

        let installed = settings.routing().install().await?;
        info!(table = settings.table, ipv6 = installed.ipv6, untracking, "node prepared for steering");
        Ok(Self { sysctls, journal, untracking })
    }

    /// Whether steered packets bypass connection tracking.
    pub fn untracking(&self) -> bool {
        self.untracking
    }

    /// Puts the node back as it was. The kernel programs must have stopped to steer before.
    pub async fn remove(mut self) -> Result<(), HostError> {
        routes::remove().await?;
        untrack::remove()?;
        self.sysctls.restore(&mut self.journal)?;
        self.journal.discard()?;
        Ok(())
    }
}
