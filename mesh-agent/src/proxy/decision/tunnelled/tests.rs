use super::super::super::fixtures::{at, pod, pods, service, snapshot, workload};
use super::super::{NotPreserved, Path, SourceAddress, Target};
use super::*;
use crate::telemetry::{Direction, ResponseFlag};

const TUNNEL: &str = "10.1.0.2:15008";

fn peer(service_account: &str) -> Arc<Identity> {
    Arc::new(Identity::new("cluster.local", "shop", service_account))
}

/// Decides what `peer`, at the address of the remote client, asks the tunnel of `web` for. `web` serves the service of
/// its name on its port 8080, `other` is another pod of the node.
fn asked(peer: &Arc<Identity>, authority: &str) -> (Decision, SocketAddr) {
    let web = workload("web", &["10.1.0.2", "fd00::2"], "n1", &["web"]);
    let other = workload("other", &["10.1.0.3"], "n1", &["other"]);
    let client = workload("client", &["10.2.0.1"], "n2", &[]);
    let pods = pods([pod(&web, true), pod(&other, true)]);
    let services = [service("web", &["10.96.0.1"]), service("other", &["10.96.0.2"])];
    let snapshot = snapshot(services, [web, other, client]);
    let web = pods.by_uid("c//Pod/shop/web").unwrap();
    let authority = authority.parse().unwrap();
    decide_tunnelled(&snapshot, web, Arc::clone(peer), at("10.2.0.1:999"), at(TUNNEL), &authority)
}

#[test]
fn a_tunnel_leads_to_its_own_pod() {
    let default = peer("default");
    for (authority, address) in
        [("10.1.0.2:80", "10.1.0.2:80"), ("[fd00::2]:80", "[fd00::2]:80"), ("web:80", "10.1.0.2:8080")]
    {
        let (decision, destination) = asked(&default, authority);
        assert_eq!(destination, at(address));
        assert_eq!(decision.direction, Direction::Inbound);
        assert_eq!(decision.security, ConnectionSecurity::MutualTls);
        assert_eq!(decision.identity, Some(Arc::clone(&default)));
        assert_eq!(decision.source.unwrap().name(), "client");
        assert_eq!(decision.service.is_some(), authority.starts_with("web"));
        let Ok(Target::Single(upstream)) = decision.outcome else { panic!("{authority}") };
        assert_eq!((upstream.address, upstream.path), (at(address), Path::SameNode));
    }
}

#[test]
fn it_leads_nowhere_else() {
    for authority in [
        // another pod of the node, something outside, the tunnel itself, a service it does not serve, no such port
        "10.1.0.3:80",
        "203.0.113.1:80",
        "127.0.0.1:80",
        TUNNEL,
        "other:80",
        "unknown:80",
        "web:81",
    ] {
        let (decision, _) = asked(&peer("default"), authority);
        let refusal = decision.outcome.unwrap_err();
        assert_eq!(refusal.flag(), ResponseFlag::NoRoute);
        let text = refusal.to_string();
        assert!(text.contains(authority) && text.contains("c//Pod/shop/web"), "{text}");
    }
}

#[test]
fn an_address_is_believed_only_with_the_identity_that_has_it() {
    let (decision, _) = asked(&peer("gateway"), "10.1.0.2:80");
    assert!(decision.source.is_none(), "the client's address, but somebody else's certificate");
    assert_eq!(decision.identity, Some(peer("gateway")));
}

#[test]
fn the_pod_sees_the_tunnels_source_in_its_own_family() {
    let source = |authority| match asked(&peer("default"), authority).0.outcome {
        Ok(Target::Single(upstream)) => upstream.source,
        other => panic!("{other:?}"),
    };
    assert_eq!(source("10.1.0.2:80"), SourceAddress::Preserved("10.2.0.1".parse().unwrap()));
    assert_eq!(source("[fd00::2]:80"), SourceAddress::Node(NotPreserved::OtherFamily));
}
