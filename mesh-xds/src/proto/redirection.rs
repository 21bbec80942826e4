//! How our redirection rules travel inside a workload.

use super::mesh::TrafficRedirection;
use super::workload::{Extension, Workload};
use super::{Any, Name, UnpackError};

/// Name under which the rules are attached, for people; they are found by their type.
const EXTENSION_NAME: &str = "traffic-redirection";

impl Workload {
    /// The redirection rules attached to the workload, if any.
    pub fn traffic_redirection(&self) -> Result<Option<TrafficRedirection>, UnpackError> {
        let type_url = TrafficRedirection::type_url();
        self.extensions
            .iter()
            .filter_map(|extension| extension.config.as_ref())
            .find(|config| config.type_url == type_url)
            .map(Any::unpack)
            .transpose()
    }

    /// Attaches redirection rules, in place of those it had.
    pub fn set_traffic_redirection(&mut self, rules: &TrafficRedirection) {
        let config = Any::pack(rules);
        self.extensions.retain(|extension| {
            extension.config.as_ref().is_none_or(|present| present.type_url != config.type_url)
        });
        self.extensions.push(Extension { name: EXTENSION_NAME.to_owned(), config: Some(config) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mesh::Ports;

    #[test]
    fn rules_travel_in_a_workload() {
        let mut workload = Workload::default();
        assert_eq!(workload.traffic_redirection(), Ok(None));

        let first = TrafficRedirection { exclude_inbound_ports: vec![9090], ..Default::default() };
        let second = TrafficRedirection { include_inbound_ports: Some(Ports::default()), ..first.clone() };
        workload.set_traffic_redirection(&first);
        workload.set_traffic_redirection(&second);
        assert_eq!(workload.traffic_redirection(), Ok(Some(second)));
        assert_eq!(workload.extensions.len(), 1);
    }
}
