//! Labels and annotations that speak to the mesh.
//!
//! The traffic annotations are Istio's (<https://istio.io/latest/docs/reference/config/annotations/>), so that a
//! pod that came from there keeps its meaning.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_xds::annotation::{
    BYPASS_INBOUND, EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_PORTS, EXCLUDE_OUTBOUND_RANGES, FAILURE_MODE,
    INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_PORTS, INCLUDE_OUTBOUND_RANGES, REDIRECTION, REDIRECTION_ENABLED,
};
use mesh_xds::proto::mesh::{Cidr, Cidrs, FailureMode, Ports, TrafficRedirection};

use super::findings::{FieldPath, Findings, field};
use super::metadata::Labels;
use super::service::TrafficDistribution;

/// Network that a pod, or every pod of a namespace, is in.
pub(super) const NETWORK: &str = "topology.istio.io/network";

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Whether the labels of a pod or namespace enrol it in the mesh or keep it out; `None` if they do not say.
pub(super) fn enrolled(labels: &Labels, place: &FieldPath, findings: &mut Findings) -> Option<bool> {
    match labels.get(DATAPLANE_MODE)?.as_str() {
        "ambient" => Some(true),
        "none" => Some(false),
        other => {
            findings.warn(
                place.clone().then(DATAPLANE_MODE),
                format!("expected \"ambient\" or \"none\", found {other:?}: taken as not set"),
            );
            None
        }
    }
}

/// Whether the annotations of a pod say that an agent steers its traffic.
pub(super) fn steered(annotations: &Labels) -> bool {
    annotations.get(REDIRECTION).is_some_and(|value| value == REDIRECTION_ENABLED)
}

/// The traffic distribution that a service or namespace asks for by annotation or label.
pub(super) fn traffic_distribution(
    metadata: &ObjectMeta,
    findings: &mut Findings,
) -> Option<TrafficDistribution> {
    let annotated = metadata.annotations.as_ref().and_then(|all| all.get(TRAFFIC_DISTRIBUTION));
    let labelled = metadata.labels.as_ref().and_then(|all| all.get(TRAFFIC_DISTRIBUTION));
    let (text, place) = match (annotated, labelled) {
        (Some(text), _) => (text, "annotations"),
        (None, Some(text)) => (text, "labels"),
        (None, None) => return None,
    };
    TrafficDistribution::read(text, field!["metadata", place, TRAFFIC_DISTRIBUTION], findings)
}

/// The redirection rules in a pod's annotations; `None` where they are the default, which steers everything.
pub(super) fn redirection(annotations: &Labels, findings: &mut Findings) -> Option<TrafficRedirection> {
    let mut read = Annotations { annotations, findings };
    let mut rules = TrafficRedirection {
        include_inbound_ports: read
            .selection(INCLUDE_INBOUND_PORTS)
            .map(|(text, place)| Ports { ports: read.findings.ports(text, &place) }),
        exclude_inbound_ports: read.ports(EXCLUDE_INBOUND_PORTS),
        include_outbound_ports: read.ports(INCLUDE_OUTBOUND_PORTS),
        exclude_outbound_ports: read.ports(EXCLUDE_OUTBOUND_PORTS),
        include_outbound_cidrs: read
            .selection(INCLUDE_OUTBOUND_RANGES)
            .map(|(text, place)| Cidrs { ranges: ranges(&read.findings.ranges(text, &place)) }),
        exclude_outbound_cidrs: read
            .get(EXCLUDE_OUTBOUND_RANGES)
            .map(|(text, place)| ranges(&read.findings.ranges(text, &place)))
            .unwrap_or_default(),
        failure_mode: read.failure_mode().into(),
    };
    if read.bypasses_inbound() {
        rules.include_inbound_ports = Some(Ports::default());
    }
    (rules != TrafficRedirection::default()).then_some(rules)
}

struct Annotations<'a, 'f> {
    annotations: &'a Labels,
    findings: &'f mut Findings,
}

impl<'a> Annotations<'a, '_> {
    fn get(&self, key: &str) -> Option<(&'a str, FieldPath)> {
        let text = self.annotations.get(key)?;
        Some((text.trim(), field!["metadata", "annotations", key]))
    }

    /// What an annotation that includes selects; `*` is everything and the default.
    fn selection(&self, key: &str) -> Option<(&'a str, FieldPath)> {
        self.get(key).filter(|(text, _)| *text != "*")
    }

    fn ports(&mut self, key: &str) -> Vec<u32> {
        self.get(key).map(|(text, place)| self.findings.ports(text, &place)).unwrap_or_default()
    }

    fn bypasses_inbound(&mut self) -> bool {
        match self.get(BYPASS_INBOUND) {
            None | Some(("false", _)) => false,
            Some(("true", _)) => true,
            Some((other, place)) => {
                self.findings.refuse(place, format!("expected \"true\" or \"false\", found {other:?}"));
                false
            }
        }
    }

    fn failure_mode(&mut self) -> FailureMode {
        match self.get(FAILURE_MODE) {
            None => FailureMode::AgentDefault,
            Some(("open", _)) => FailureMode::Open,
            Some(("closed", _)) => FailureMode::Closed,
            Some((other, place)) => {
                self.findings.refuse(place, format!("expected \"open\" or \"closed\", found {other:?}"));
                FailureMode::Closed
            }
        }
    }
}

fn ranges(ranges: &[IpNet]) -> Vec<Cidr> {
    ranges
        .iter()
        .map(|range| Cidr {
            address: crate::translate::octets(range.network()),
            length: u32::from(range.prefix_len()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> (Option<TrafficRedirection>, Vec<String>) {
        let mut findings = Findings::default();
        let rules = redirection(&annotations(pairs), &mut findings);
        let problems = findings.into_vec();
        (rules, problems.into_iter().map(|found| format!("{}: {}", found.path, found.reason)).collect())
    }

    #[test]
    fn no_rule_is_no_extension() {
        assert_eq!(read(&[]), (None, vec![]));
        assert_eq!(read(&[(INCLUDE_INBOUND_PORTS, "*")]), (None, vec![]));
        // An agent whose own default is another must know.
        assert_eq!(read(&[(FAILURE_MODE, "open")]).0.unwrap().failure_mode(), FailureMode::Open);
    }

    #[test]
    fn everything_and_nothing_are_told_apart() {
        let (rules, problems) = read(&[(INCLUDE_INBOUND_PORTS, ""), (INCLUDE_OUTBOUND_RANGES, "")]);
        let rules = rules.unwrap();
        assert_eq!(rules.include_inbound_ports, Some(Ports::default()));
        assert_eq!(rules.include_outbound_cidrs, Some(Cidrs::default()));
        assert!(problems.is_empty());
    }

    #[test]
    fn rules_are_read() {
        let (rules, problems) = read(&[
            (EXCLUDE_OUTBOUND_PORTS, "9100, 22"),
            (EXCLUDE_OUTBOUND_RANGES, "198.51.100.7/24,fd00::1"),
            (FAILURE_MODE, "closed"),
        ]);
        let rules = rules.unwrap();
        assert_eq!(rules.exclude_outbound_ports, [22, 9100]);
        assert_eq!(rules.exclude_outbound_cidrs[0].address.as_ref(), [198, 51, 100, 0]);
        assert_eq!(rules.exclude_outbound_cidrs[1].length, 128);
        assert_eq!(rules.failure_mode(), FailureMode::Closed);
        assert!(problems.is_empty());
    }

    #[test]
    fn inbound_traffic_can_bypass_the_mesh() {
        let (rules, problems) = read(&[(BYPASS_INBOUND, "true"), (INCLUDE_INBOUND_PORTS, "80")]);
        assert_eq!(rules.unwrap().include_inbound_ports, Some(Ports::default()));
        assert!(problems.is_empty());
        assert_eq!(read(&[(BYPASS_INBOUND, "false")]), (None, vec![]));
    }

    #[test]
    fn mistakes_name_the_annotation() {
        let (_, problems) = read(&[(EXCLUDE_INBOUND_PORTS, "80x"), (FAILURE_MODE, "maybe")]);
        assert_eq!(
            problems,
            [
                "metadata.annotations[\"traffic.sidecar.istio.io/excludeInboundPorts\"]: expected a port between 1 and 65535, found \"80x\"",
                "metadata.annotations[\"mesh-agent/failure-mode\"]: expected \"open\" or \"closed\", found \"maybe\"",
            ]
        );
    }
}
