//! How our own messages travel inside Istio's: as extensions, found by their type.

use super::mesh::{MutualTls, PolicyOrigin, SessionAffinity, Terminating, TrafficRedirection};
use super::security::Authorization;
use super::workload::{Extension, Service, Workload};
use super::{Any, Name, UnpackError};

impl Workload {
    /// The redirection rules attached to the workload, if any.
    pub fn traffic_redirection(&self) -> Result<Option<TrafficRedirection>, UnpackError> {
        find(&self.extensions)
    }

    /// Attaches redirection rules, in place of those it had.
    pub fn set_traffic_redirection(&mut self, rules: &TrafficRedirection) {
        attach(&mut self.extensions, "traffic-redirection", rules);
    }

    /// The mutual TLS settings attached to the workload, if any.
    pub fn mutual_tls(&self) -> Result<Option<MutualTls>, UnpackError> {
        find(&self.extensions)
    }

    /// Attaches mutual TLS settings, in place of those it had.
    pub fn set_mutual_tls(&mut self, settings: &MutualTls) {
        attach(&mut self.extensions, "mutual-tls", settings);
    }

    /// Whether the workload is being ended but still answers: what remains where nothing healthy is left.
    pub fn is_terminating(&self) -> bool {
        let type_url = Terminating::type_url();
        let mut attached = self.extensions.iter().filter_map(|extension| extension.config.as_ref());
        attached.any(|config| config.type_url == type_url)
    }

    /// Says that the workload is being ended but still answers.
    pub fn set_terminating(&mut self) {
        attach(&mut self.extensions, "terminating", &Terminating {});
    }
}

impl Service {
    /// The session affinity attached to the service, if any.
    pub fn session_affinity(&self) -> Result<Option<SessionAffinity>, UnpackError> {
        find(&self.extensions)
    }

    /// Attaches session affinity, in place of the one it had.
    pub fn set_session_affinity(&mut self, affinity: &SessionAffinity) {
        attach(&mut self.extensions, "session-affinity", affinity);
    }
}

impl Authorization {
    /// The resource the policy was made from, if it says so.
    pub fn origin(&self) -> Result<Option<PolicyOrigin>, UnpackError> {
        find(&self.extensions)
    }

    /// Says which resource the policy was made from.
    pub fn set_origin(&mut self, origin: &PolicyOrigin) {
        attach(&mut self.extensions, "origin", origin);
    }
}

fn find<M: Name + Default>(extensions: &[Extension]) -> Result<Option<M>, UnpackError> {
    let type_url = M::type_url();
    extensions
        .iter()
        .filter_map(|extension| extension.config.as_ref())
        .find(|config| config.type_url == type_url)
        .map(Any::unpack)
        .transpose()
}

/// Puts `message` in the place of another of its type. The name is for people.
fn attach<M: Name>(extensions: &mut Vec<Extension>, name: &str, message: &M) {
    let config = Any::pack(message);
    extensions.retain(|extension| {
        extension.config.as_ref().is_none_or(|present| present.type_url != config.type_url)
    });
    extensions.push(Extension { name: name.to_owned(), config: Some(config) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mesh::Ports;
    use crate::proto::mesh::mutual_tls::Mode;

    #[test]
    fn extensions_are_told_apart_and_replaced_by_type() {
        let mut workload = Workload::default();
        assert_eq!(workload.traffic_redirection(), Ok(None));

        let first = TrafficRedirection { exclude_inbound_ports: vec![9090], ..Default::default() };
        let second = TrafficRedirection { include_inbound_ports: Some(Ports::default()), ..first.clone() };
        let strict = MutualTls { mode: Mode::Strict.into(), ..Default::default() };
        workload.set_traffic_redirection(&first);
        workload.set_mutual_tls(&strict);
        workload.set_traffic_redirection(&second);
        assert_eq!(workload.traffic_redirection(), Ok(Some(second)));
        assert_eq!(workload.mutual_tls(), Ok(Some(strict)));
        assert!(!workload.is_terminating());
        workload.set_terminating();
        assert!(workload.is_terminating());
        assert_eq!(workload.extensions.len(), 3);
    }

    #[test]
    fn services_have_extensions_too() {
        let mut service = Service::default();
        assert_eq!(service.session_affinity(), Ok(None));
        service.set_session_affinity(&SessionAffinity { timeout_seconds: 10 });
        service.set_session_affinity(&SessionAffinity { timeout_seconds: 20 });
        assert_eq!(service.session_affinity(), Ok(Some(SessionAffinity { timeout_seconds: 20 })));
        assert_eq!(service.extensions.len(), 1);
    }
}
