//! Which of a pod's traffic is steered, as its annotations say.
//!
//! | annotation | value | default |
//! |---|---|---|
//! | `traffic.sidecar.istio.io/includeInboundPorts` | ports, `*`, or nothing for none | `*` |
//! | `traffic.sidecar.istio.io/excludeInboundPorts` | ports | none |
//! | `traffic.sidecar.istio.io/includeOutboundPorts` | ports, steered whatever their address | none |
//! | `traffic.sidecar.istio.io/excludeOutboundPorts` | ports | none |
//! | `traffic.sidecar.istio.io/includeOutboundIPRanges` | ranges, `*`, or nothing for none | `*` |
//! | `traffic.sidecar.istio.io/excludeOutboundIPRanges` | ranges | none |
//! | `ambient.istio.io/bypass-inbound-capture` | `true`: nothing inbound is steered | `false` |
//! | `mesh-agent/failure-mode` | `open` or `closed`: what happens while no agent runs | the agent's |
//!
//! A value that does not parse is reported and leaves in force what the pod said before; without that, everything
//! is steered and the pod fails closed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use mesh_xds::annotation::{
    BYPASS_INBOUND, EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_PORTS, EXCLUDE_OUTBOUND_RANGES, FAILURE_MODE,
    INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_PORTS, INCLUDE_OUTBOUND_RANGES,
};

use crate::pods::{CidrSelection, FailureMode, LocalPod, PortSelection, Redirection};

/// What the annotations of a pod say.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TrafficSettings {
    pub(super) redirection: Redirection,
    pub(super) failure_mode: FailureMode,
    /// One sentence for each value that does not parse.
    pub(super) problems: Vec<String>,
}

/// Reads the annotations of a pod that was `last` known as such.
pub(super) fn read(
    annotations: &BTreeMap<String, String>,
    default_mode: FailureMode,
    last: Option<&LocalPod>,
) -> TrafficSettings {
    let mut reader = Reader { annotations, problems: Vec::new() };
    let before = last.map(|pod| &pod.redirection);
    let mut redirection = Redirection {
        include_inbound_ports: reader.read(
            INCLUDE_INBOUND_PORTS,
            |text| match text {
                "*" => Ok(PortSelection::All),
                ports => list(ports, port).map(PortSelection::Only),
            },
            before.map(|rules| &rules.include_inbound_ports),
        ),
        exclude_inbound_ports: reader.read(
            EXCLUDE_INBOUND_PORTS,
            |text| list(text, port),
            before.map(|rules| &rules.exclude_inbound_ports),
        ),
        include_outbound_ports: reader.read(
            INCLUDE_OUTBOUND_PORTS,
            |text| list(text, port),
            before.map(|rules| &rules.include_outbound_ports),
        ),
        exclude_outbound_ports: reader.read(
            EXCLUDE_OUTBOUND_PORTS,
            |text| list(text, port),
            before.map(|rules| &rules.exclude_outbound_ports),
        ),
        include_outbound_cidrs: reader.read(
            INCLUDE_OUTBOUND_RANGES,
            |text| match text {
                "*" => Ok(CidrSelection::All),
                ranges => list(ranges, range).map(CidrSelection::Only),
            },
            before.map(|rules| &rules.include_outbound_cidrs),
        ),
        exclude_outbound_cidrs: reader.read(
            EXCLUDE_OUTBOUND_RANGES,
            |text| list(text, range),
            before.map(|rules| &rules.exclude_outbound_cidrs),
        ),
    };
    if reader.read(BYPASS_INBOUND, one_of(&[("true", true), ("false", false)]), None) {
        redirection.include_inbound_ports = PortSelection::Only(BTreeSet::new());
    }
    let failure_mode = match annotations.contains_key(FAILURE_MODE) {
        false => default_mode,
        true => reader.read(
            FAILURE_MODE,
            one_of(&[("open", FailureMode::Open), ("closed", FailureMode::Closed)]),
            Some(&last.map_or(FailureMode::Closed, |pod| pod.failure_mode)),
        ),
    };
    TrafficSettings { redirection, failure_mode, problems: reader.problems }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    problems: Vec<String>,
}

impl Reader<'_> {
    /// The value of an annotation: the default if it is not there, the one before if it does not parse.
    fn read<T: Default + Clone>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        before: Option<&T>,
    ) -> T {
        let Some(text) = self.annotations.get(key) else {
            return T::default();
        };
        parse(text.trim()).unwrap_or_else(|reason| {
            self.problems.push(format!("annotation {key}: {reason}"));
            before.cloned().unwrap_or_default()
        })
    }
}

fn list<T: Ord>(text: &str, item: impl Fn(&str) -> Result<T, String>) -> Result<BTreeSet<T>, String> {
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(item).collect()
}

fn port(text: &str) -> Result<u16, String> {
    match u16::from_str(text) {
        Ok(0) | Err(_) => Err(format!("expected a port between 1 and 65535, found {text:?}")),
        Ok(port) => Ok(port),
    }
}

/// A range, or an address as the range of itself.
fn range(text: &str) -> Result<IpNet, String> {
    let range = text.parse::<IpNet>().map(|range| range.trunc());
    range
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("expected a range such as 10.0.0.0/8, found {text:?}"))
}

fn one_of<T: Copy>(values: &'static [(&'static str, T)]) -> impl Fn(&str) -> Result<T, String> {
    move |text| {
        let found = values.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        found.ok_or_else(|| {
            let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
            format!("expected {}, found {text:?}", names.join(" or "))
        })
    }
}

#[cfg(test)]
mod tests;
