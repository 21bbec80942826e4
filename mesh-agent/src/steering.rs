//! Steering of the pods' traffic: kernel programs and what the node needs around them.
//!
//! The kernel side (`mesh-ebpf`) decides from maps; this side keeps the maps true. Programs' links and all maps are
//! pinned, so the node goes on as it was while the agent is away: a pod that fails open talks past the missing
//! agent, one that fails closed does not, and the next agent finds connections it can take over at once.
//!
//! One [`Steering`] per agent, cheap to clone. Its calls are system calls of microseconds under one lock; nothing
//! on the way of a connection ever asks it.

mod attachments;
mod connect;
mod counters;
mod devices;
mod error;
mod explain;
pub mod host;
mod maps;
mod members;
mod passage;
mod pins;
mod programs;
mod rules;
mod watch;

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_common::{Config, ConfigFlags, FlowState, Tables as _};
use tokio::sync::watch as channel;

pub use attachments::{AttachMode, Attachment};
pub use connect::{OpenedTo, PodCgroup};
pub use counters::Count;
pub use error::SteeringError;
pub use explain::Explanation;
pub use passage::{FlowEvents, FlowId, FlowReader, PassageKey};
pub use programs::{ProgramReport, RunTimeStatistics};
pub use watch::DeviceWatch;

use crate::pods::LocalPod;
use crate::settings::NodeArgs;
use attachments::Attachments;
use connect::Connect;
use devices::Devices;
use host::namespace::AgentNamespace;
use maps::Maps;
use members::Members;
use passage::{Passages, Provocation};
use pins::Pins;

/// Where the node's steering lives and how its packets are marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteeringSettings {
    /// Directory on a mounted BPF file system, this agent's alone.
    pub directory: PathBuf,
    /// Bits of the packet mark that belong to the mesh.
    pub mark_mask: u32,
    /// Mark of what the agent sends from addresses that are not the node's.
    pub capture_mark: u32,
    /// Mark of what else it sends.
    pub agent_mark: u32,
    /// How programs are attached to devices.
    pub attach: AttachMode,
}

impl From<&NodeArgs> for SteeringSettings {
    fn from(node: &NodeArgs) -> Self {
        Self {
            directory: pin_directory(node),
            mark_mask: node.mark_mask.get(),
            capture_mark: node.capture_mark.get(),
            agent_mark: node.agent_mark.get(),
            attach: AttachMode::Auto,
        }
    }
}

/// Where the kernel objects of this node's agent are pinned. By node, because nodes may share a kernel and with it
/// a BPF file system.
pub fn pin_directory(node: &NodeArgs) -> PathBuf {
    // The kernel refuses names with a dot on a BPF file system.
    node.bpffs.join(format!("mesh-agent-{}", node.node_name.replace('.', "_")))
}

/// The listening sockets of one data-plane core.
#[derive(Debug, Clone, Copy)]
pub struct CoreListeners<'a> {
    /// For connections that are steered where they come in.
    pub steered: ListenerPair<'a>,
    /// For those that are turned around on their way into a pod. Their sockets have the agent mark.
    pub around: ListenerPair<'a>,
}

/// Listening sockets of both address families.
#[derive(Debug, Clone, Copy)]
pub struct ListenerPair<'a> {
    /// The IPv4 listener.
    pub v4: Option<BorrowedFd<'a>>,
    /// The IPv6 listener.
    pub v6: Option<BorrowedFd<'a>>,
}

/// The node's steering: loaded programs, their maps, and the devices they are attached to.
#[derive(Clone)]
pub struct Steering {
    state: Arc<Mutex<State>>,
}

struct State {
    maps: Maps,
    passages: Passages,
    members: Members,
    devices: Devices,
    attachments: Attachments,
    connect: Connect,
    pod_mtu: channel::Sender<Option<u32>>,
}

impl State {
    /// To be called after every change of devices or pods.
    fn tell_mtu(&self) {
        let least = self.devices.least_mtu();
        self.pod_mtu.send_if_modified(|told| std::mem::replace(told, least) != least);
    }
}

impl Steering {
    /// Loads the programs. Where an agent was here before, its maps are taken over with all they hold and steering
    /// goes on undisturbed; its programs are replaced when [`DeviceWatch`] starts.
    ///
    /// # Errors
    /// If the directory is not on a BPF file system, or the kernel refuses maps or programs.
    pub fn load_or_adopt(settings: &SteeringSettings) -> Result<Self, SteeringError> {
        let pins = Pins::open(&settings.directory)?;
        let (programs, mut maps, passages, connect) = programs::load(&pins)?;
        maps.set_config(Config {
            mark_mask: settings.mark_mask,
            capture_mark: settings.capture_mark,
            agent_mark: settings.agent_mark,
            ..maps.config()?
        })?;
        let members = Members::adopt(&maps)?;
        let state = State {
            members,
            devices: Devices::adopt(&maps)?,
            attachments: Attachments::new(programs, pins, settings.attach),
            connect: Connect::adopt(connect)?,
            maps,
            passages,
            pod_mtu: channel::Sender::new(None),
        };
        Ok(Self { state: Arc::new(Mutex::new(state)) })
    }

    /// Has what is steered delivered in the agent's network namespace. To be called before [`DeviceWatch`] starts, and
    /// before there are listeners.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn deliver_to(&self, namespace: &AgentNamespace) -> Result<(), SteeringError> {
        let State { maps, attachments, .. } = &mut *self.lock();
        attachments.attach_pick_listener(namespace.as_fd())?;
        maps.set_config(Config {
            netns: namespace.id(),
            steered_device: namespace.steered_device(),
            around_device: namespace.around_device(),
            ..maps.config()?
        })
    }

    /// Gives new connections to these listeners, one pair for each data-plane core, in place of any before.
    ///
    /// # Errors
    /// If there are more cores than [`mesh_common::MAX_LISTENERS`], or a socket does not listen.
    pub fn set_listeners(&self, listeners: &[CoreListeners<'_>]) -> Result<(), SteeringError> {
        self.lock().maps.set_listeners(listeners)
    }

    /// Says whether packets of connections that pass may be put straight into the pods, past the node's IP stack, where
    /// nothing queues or shapes them. They are unless this says otherwise. Counts for connections that open from then on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_shortcuts(&self, on: bool) -> Result<(), SteeringError> {
        let State { maps, devices, .. } = &mut *self.lock();
        devices.set_shortcuts(maps, on)
    }

    /// Says which cgroups the kubelet's sockets are in, by number: those pass. `known` once it has been found, or was
    /// named; until then connections of all of the node's processes pass.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_kubelet(&self, groups: &BTreeSet<u64>, known: bool) -> Result<(), SteeringError> {
        let State { maps, .. } = &mut *self.lock();
        let written = maps.kubelets()?;
        groups.difference(&written).try_for_each(|number| maps.add_kubelet(*number))?;
        written.difference(groups).try_for_each(|number| maps.remove_kubelet(*number))?;
        // Last: a node whose kubelet is said to be known has it in the map.
        let config = maps.config()?;
        maps.set_config(Config { flags: config.flags.put(ConfigFlags::KUBELET_KNOWN, known), ..config })
    }

    /// Whether the kubelet is told from the other processes of the node.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn knows_kubelet(&self) -> Result<bool, SteeringError> {
        Ok(self.lock().maps.config()?.flags.has(ConfigFlags::KUBELET_KNOWN))
    }

    /// Takes a pod into account as it is now: steers its traffic if it is enrolled, ends that if it no longer is,
    /// and in both cases guards its addresses. Connections it has go on as they began. To be called in the network
    /// namespace of the node, where its device is.
    ///
    /// # Errors
    /// If a map is full; the pod is then steered by its former rules, or not at all.
    pub fn enrol(&self, pod: &LocalPod) -> Result<(), SteeringError> {
        let state = &mut *self.lock();
        let State { maps, passages, members, devices, attachments, .. } = state;
        let result = members.upsert(maps, passages, devices, pod);
        attachments.sync_guards(devices, members);
        state.tell_mtu();
        result
    }

    /// Forgets a pod that is gone.
    ///
    /// # Errors
    /// If a map refuses; the pod is forgotten all the same.
    pub fn withdraw(&self, uid: &str) -> Result<(), SteeringError> {
        let state = &mut *self.lock();
        let State { maps, passages, members, devices, attachments, .. } = state;
        let result = members.withdraw(maps, passages, devices, uid);
        attachments.sync_guards(devices, members);
        state.tell_mtu();
        result
    }

    /// Makes `pods` all there are: takes each into account, and forgets what an agent before left behind of others.
    /// To be called when the pod source knows every pod, not before.
    ///
    /// # Errors
    /// The first of them; the other pods are done nevertheless.
    pub fn reconcile<'a>(&self, pods: impl IntoIterator<Item = &'a LocalPod>) -> Result<(), SteeringError> {
        let state = &mut *self.lock();
        let State { maps, passages, members, devices, attachments, .. } = state;
        let result = members.reconcile(maps, passages, devices, pods);
        attachments.sync_guards(devices, members);
        state.tell_mtu();
        result
    }

    /// What fits through the devices of all enrolled pods, as it changes; nothing while there are none.
    pub fn pod_mtu(&self) -> channel::Receiver<Option<u32>> {
        self.lock().pod_mtu.subscribe()
    }

    /// How many packets met which end, since the node's steering was first loaded.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn counters(&self) -> Result<Vec<Count>, SteeringError> {
        counters::read(&self.lock().maps)
    }

    /// How many entries each map has; of the maps that grow with pods, devices and rules.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn map_entries(&self) -> Result<Vec<(&'static str, usize)>, SteeringError> {
        let state = self.lock();
        let mut entries = state.maps.entries()?;
        entries.extend(state.passages.entries()?);
        entries.extend(state.connect.entries());
        Ok(entries)
    }

    /// The devices the programs are attached to, and those where that failed.
    pub fn attachments(&self) -> Vec<Attachment> {
        let State { members, devices, attachments, .. } = &*self.lock();
        attachments.report(devices, members)
    }

    /// The loaded programs.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn programs(&self) -> Result<Vec<ProgramReport>, SteeringError> {
        self.lock().attachments.programs().report()
    }

    /// What the kernel would do with a new connection, by its own maps.
    pub fn explain(&self, source: std::net::IpAddr, destination: std::net::SocketAddr) -> Explanation {
        explain::explain(&self.lock().maps, source, destination)
    }

    /// Lets new connections pass in the kernel, between two ends that were found to be these pods when it was decided, or
    /// no pods of this node. Says whether they do: not if the ends are others by now, if no pod is steered for such a
    /// connection, is behind a device that is not known, or if there is no room for another verdict.
    ///
    /// # Errors
    /// If the kernel refuses; nothing passes then.
    pub fn allow_passage(
        &self,
        passage: PassageKey,
        source_uid: Option<&str>,
        destination_uid: Option<&str>,
    ) -> Result<bool, SteeringError> {
        let State { maps, passages, members, .. } = &mut *self.lock();
        let PassageKey { source, destination } = passage;
        let owned = members.owns(source_uid, source) && members.owns(destination_uid, destination.ip());
        if !owned || !maps.steers_between(&source.into(), &destination.ip().into(), destination.port()) {
            return Ok(false);
        }
        passages.allow(passage)
    }

    /// Sends new connections through the agent again. Those that pass go on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn suspend_passage(&self, passage: PassageKey) -> Result<(), SteeringError> {
        self.lock().passages.suspend(passage)
    }

    /// The same, and lets no packet of those that pass go on. Each of them ends with its next packet; see
    /// [`reset_flow`](Self::reset_flow).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn revoke_passage(&self, passage: PassageKey) -> Result<(), SteeringError> {
        self.lock().passages.revoke(passage)
    }

    /// Everything whose connections may pass, also what an agent before allowed, and whether new ones may.
    pub fn passages(&self) -> Vec<(PassageKey, bool)> {
        self.lock().passages.list()
    }

    /// Reads all flows.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn flow_reader(&self) -> Result<FlowReader, SteeringError> {
        FlowReader::open(&self.lock().attachments.pins().maps())
    }

    /// Hears of flows as they open and end. There can be one that hears, on a runtime.
    ///
    /// # Errors
    /// If the kernel refuses, or there is one.
    pub fn flow_events(&self) -> Result<FlowEvents, SteeringError> {
        FlowEvents::listen(self)
    }

    /// The state of a flow, while there is one.
    pub fn flow(&self, flow: &FlowId) -> Option<FlowState> {
        self.lock().passages.flow(flow)
    }

    /// Whether the packets of a flow pass, or are answered with resets.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn flow_passes(&self, state: &FlowState) -> Result<bool, SteeringError> {
        self.lock().passages.passes(state)
    }

    /// Lets no packet of a flow go on, whatever its verdict.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn condemn_flow(&self, flow: &FlowId) -> Result<(), SteeringError> {
        self.lock().passages.condemn(flow)
    }

    /// Resets both ends of a flow whose packets do not pass, without waiting for one. To be called in the network
    /// namespace of the node.
    ///
    /// # Errors
    /// If the kernel refuses, such as for a device that is gone.
    pub fn reset_flow(&self, flow: &FlowId) -> Result<(), SteeringError> {
        let State { maps, passages, attachments, .. } = &mut *self.lock();
        let Some(state) = passages.flow(flow) else { return Ok(()) };
        if passages.passes(&state)? {
            return Ok(());
        }
        let mut result = Ok(());
        for provocation in Provocation::both(&flow.key, &state) {
            let device = maps.pod(&provocation.sender).map_or(0, |pod| pod.device);
            if device != 0 {
                result =
                    result.and(attachments.programs_mut().steer_as_if_received(&provocation.frame, device));
            }
        }
        result
    }

    /// Forgets a flow that carries nothing any more: whatever comes now passes, uncounted.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn forget_flow(&self, flow: &FlowId) -> Result<(), SteeringError> {
        self.lock().passages.forget(flow)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one map write after another; a panic in between leaves a state that `reconcile` mends.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the steering that is pinned below `directory`, of a living agent or a dead one: detaches the programs from
/// the devices of this network namespace and removes all pins. Returns what it removed.
///
/// # Errors
/// If something cannot be removed.
pub fn detach(directory: &Path) -> Result<Vec<PathBuf>, SteeringError> {
    attachments::detach_all(directory)
}
