//! The maps, and the decision's view of them. All are pinned: the node keeps its state while the agent restarts.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, RingBuf, SockMap};
use mesh_common::{
    Action, Address, CIDR_RULE_PREFIX, CidrRule, Config, Device, FlowKey, FlowState, LISTENER_SLOTS, Outcome,
    Pod, PortRule, Tables, Verdict, VerdictKey, capacity,
};

#[map]
static PODS: HashMap<Address, Pod> = HashMap::pinned(capacity::PODS, BPF_F_NO_PREALLOC);

#[map]
static DEVICES: HashMap<u32, Device> = HashMap::pinned(capacity::DEVICES, BPF_F_NO_PREALLOC);

#[map]
static HOST_ADDRS: HashMap<Address, u32> = HashMap::pinned(capacity::HOST_ADDRS, BPF_F_NO_PREALLOC);

#[map]
static PORT_RULES: HashMap<PortRule, Action> = HashMap::pinned(capacity::PORT_RULES, BPF_F_NO_PREALLOC);

#[map]
static CIDR_RULES: LpmTrie<CidrRule, Action> = LpmTrie::pinned(capacity::CIDR_RULES, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static LISTENERS: SockMap = SockMap::pinned(LISTENER_SLOTS, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Outcome::ALL.len() as u32, 0);

#[map]
static CONFIG: Array<Config> = Array::pinned(1, 0);

#[map]
pub(crate) static VERDICTS: HashMap<VerdictKey, Verdict> =
    HashMap::pinned(capacity::VERDICTS, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static GENERATIONS: Array<u32> = Array::pinned(capacity::VERDICTS, 0);

#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowState> = HashMap::pinned(capacity::FLOWS, BPF_F_NO_PREALLOC);

#[map]
pub(crate) static FLOW_EVENTS: RingBuf = RingBuf::pinned(capacity::FLOW_EVENT_BYTES, 0);

/// Length of a whole [`CidrRule`], the prefix to look up with.
const WHOLE_CIDR_RULE: u32 = CIDR_RULE_PREFIX + 128;

/// The maps as the decision reads them.
pub(crate) struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn pod(&self, address: &Address) -> Option<Pod> {
        // SAFETY: the value is copied out at once; a concurrent update replaces the element, never a part of it.
        unsafe { PODS.get(address) }.copied()
    }

    #[inline(always)]
    fn is_host_address(&self, address: &Address) -> bool {
        HOST_ADDRS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn port_rule(&self, key: &PortRule) -> Option<Action> {
        // SAFETY: as for `pod`.
        unsafe { PORT_RULES.get(key) }.copied()
    }

    #[inline(always)]
    fn cidr_rule(&self, key: &CidrRule) -> Option<Action> {
        CIDR_RULES.get(Key::new(WHOLE_CIDR_RULE, *key)).copied()
    }
}

/// The device with this interface index. A concurrent update replaces the element, never a part of it.
#[inline(always)]
pub(crate) fn device(index: u32) -> Option<&'static Device> {
    // SAFETY: the element stays readable until the program ends.
    unsafe { DEVICES.get(index) }
}

/// The settings. The only element of an array map is always there.
#[inline(always)]
pub(crate) fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}
