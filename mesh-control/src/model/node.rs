//! Nodes.

use k8s_openapi::api::core::v1 as core;

use super::findings::Findings;
use super::metadata::ObjectName;

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: ObjectName,
    /// Where it stands.
    pub locality: Locality,
}

/// A place, from wide to narrow; what is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone of the region.
    pub zone: String,
    /// Part of the zone.
    pub subzone: String,
}

impl Locality {
    /// Reads Istio's notation `region/zone/subzone`, of which the end may be missing.
    pub(super) fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }
}

impl Node {
    /// Reads the object of the API.
    pub fn read(object: core::Node, findings: &mut Findings) -> Self {
        let name = ObjectName::cluster_wide(&object.metadata, findings);
        let mut labels = object.metadata.labels.unwrap_or_default();
        let mut label = |key| labels.remove(key).unwrap_or_default();
        Self {
            name,
            locality: Locality { region: label(REGION), zone: label(ZONE), subzone: label(SUBZONE) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locality_may_end_early() {
        let locality = |region: &str, zone: &str, subzone: &str| Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
            subzone: subzone.to_owned(),
        };
        assert_eq!(Locality::parse("r/z/s"), locality("r", "z", "s"));
        assert_eq!(Locality::parse("r"), locality("r", "", ""));
        assert_eq!(Locality::parse(""), Locality::default());
    }
}
