use mesh_xds::proto::Any;
use mesh_xds::proto::security::{
    Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match::MatchType,
};

use super::*;
use crate::config::{Change, Gateway, GatewayAddress, LocalNode, NetworkAddress, Store, TunnelProtocol};
use crate::pods::{FailureMode, PortSelection, Redirection};
use crate::policy::{Strings, read};
use crate::telemetry::testing;

const CLIENT: &str = "10.0.1.1";
const SERVER: &str = "10.0.1.2";

/// Two enrolled pods of one node, and how a test wants them different.
struct Mesh {
    client: Workload,
    server: Workload,
    client_pod: LocalPod,
    server_pod: LocalPod,
    policies: Vec<Authorization>,
}

impl Mesh {
    fn new() -> Self {
        let (client, server) =
            (unpacked(testing::workload("client", CLIENT)), unpacked(testing::workload("web", SERVER)));
        let (client_pod, server_pod) = (pod(&client), pod(&server));
        Self { client, server, client_pod, server_pod, policies: Vec::new() }
    }

    fn rule(self) -> Ruling {
        self.rule_for(80)
    }

    fn rule_for(self, port: u16) -> Ruling {
        let mut store = Store::new(LocalNode {
            name: "node-1".into(),
            trust_domain: "cluster.local".into(),
            ..LocalNode::default()
        });
        let workloads = [self.client, self.server].map(|workload| Change::Workload(Arc::new(workload)));
        let policies = self.policies.iter().map(|policy| {
            let name = format!("{}/{}", policy.namespace, policy.name);
            Change::Policy(Arc::new(read(&name, &Any::pack(policy), &mut Strings::default()).unwrap()))
        });
        store.apply(workloads.into_iter().chain(policies));
        let pods = LocalPods::new([Arc::new(self.client_pod), Arc::new(self.server_pod)]);
        let destination = SocketAddr::new(SERVER.parse().unwrap(), port);
        rule(&store.shared().load(), &pods, PassageKey { source: CLIENT.parse().unwrap(), destination })
    }
}

fn unpacked(workload: Arc<Workload>) -> Workload {
    Arc::unwrap_or_clone(workload)
}

fn pod(workload: &Workload) -> LocalPod {
    LocalPod {
        uid: Arc::clone(&workload.uid),
        name: workload.name().into(),
        namespace: Arc::clone(&workload.namespace),
        service_account: Arc::clone(&workload.service_account),
        kubernetes_uid: None,
        addresses: workload.addresses.to_vec(),
        device: None,
        enrolled: true,
        redirection: Redirection::default(),
        failure_mode: FailureMode::Open,
    }
}

/// A policy of the server's namespace about clients of these service accounts.
fn policy(action: Action, accounts: &[&str]) -> Authorization {
    let principal = |account: &&str| StringMatch {
        match_type: Some(MatchType::Exact(format!("cluster.local/ns/shop/sa/{account}"))),
    };
    let matching = Match { principals: accounts.iter().map(principal).collect(), ..Match::default() };
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![matching] }] }];
    Authorization {
        name: "web".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace.into(),
        action: action.into(),
        rules,
        ..Authorization::default()
    }
}

fn through(ruling: &Ruling) -> Option<ThroughAgent> {
    match ruling {
        Ruling::Through(reason) => Some(*reason),
        Ruling::Pass(_) | Ruling::Denied(_) => None,
    }
}

#[test]
fn pods_of_one_node_pass_and_are_known() {
    let Ruling::Pass(parties) = Mesh::new().rule() else { panic!() };
    assert_eq!(parties.client.identity.principal(), "cluster.local/ns/shop/sa/client");
    assert_eq!(parties.server.workload.unwrap().name(), "web-1");
    assert_eq!(parties.direction, Direction::Outbound);

    let mut mesh = Mesh::new();
    mesh.client_pod.redirection.exclude_outbound_ports = [80].into();
    let Ruling::Pass(parties) = mesh.rule() else { panic!() };
    assert_eq!(parties.direction, Direction::Inbound, "captured for the server's sake");
}

#[test]
fn policy_sees_the_identity_of_the_device() {
    for (action, account, allowed) in [
        (Action::Allow, "client", true),
        (Action::Allow, "other", false),
        (Action::Deny, "client", false),
        (Action::Deny, "other", true),
    ] {
        let mut mesh = Mesh::new();
        mesh.policies.push(policy(action, &[account]));
        match mesh.rule() {
            Ruling::Pass(_) => assert!(allowed, "{action:?} {account}"),
            Ruling::Denied(denied) => {
                assert!(
                    !allowed && denied.to_string().contains("shop/web"),
                    "{action:?} {account}: {denied}"
                );
            }
            Ruling::Through(reason) => panic!("{reason}"),
        }
    }
}

#[test]
fn a_policy_that_is_not_held_denies() {
    let mut mesh = Mesh::new();
    mesh.server.authorization_policies.push("shop/unknown".into());
    let Ruling::Denied(denied) = mesh.rule() else { panic!() };
    assert!(denied.may_settle());
}

#[test]
fn what_the_agent_has_to_do_with_goes_through_it() {
    let changed = |change: fn(&mut Mesh)| {
        let mut mesh = Mesh::new();
        change(&mut mesh);
        through(&mesh.rule())
    };
    for (change, expected) in [
        ((|mesh| mesh.client_pod.enrolled = false) as fn(&mut Mesh), ThroughAgent::NotEnrolled),
        (|mesh| mesh.server_pod.enrolled = false, ThroughAgent::NotEnrolled),
        (|mesh| mesh.client_pod.addresses.clear(), ThroughAgent::NotEnrolled),
        (|mesh| mesh.server_pod.redirection.exclude_inbound_ports = [80].into(), ThroughAgent::NotCaptured),
        (
            |mesh| mesh.server_pod.redirection.include_inbound_ports = PortSelection::Only([81].into()),
            ThroughAgent::NotCaptured,
        ),
        // Another pod's workload at the server's address.
        (
            |mesh| {
                mesh.server.uid = "c1//Pod/shop/former".into();
            },
            ThroughAgent::UnknownServer,
        ),
        (
            |mesh| {
                mesh.server.waypoint = Some(Gateway {
                    address: GatewayAddress::Address(NetworkAddress {
                        network: "".into(),
                        address: "10.0.9.9".parse().unwrap(),
                    }),
                    hbone_port: 15_008,
                });
            },
            ThroughAgent::NotStraight,
        ),
    ] {
        assert_eq!(changed(change), Some(expected));
    }
    assert_eq!(through(&Mesh::new().rule_for(HBONE_PORT)), Some(ThroughAgent::NotStraight));
    let mut mesh = Mesh::new();
    mesh.server.tunnel = TunnelProtocol::Hbone;
    assert!(through(&mesh.rule()).is_none(), "there is no tunnel within a node");
}

#[test]
fn policy_has_a_say_in_what_has_to_go_through_the_agent() {
    let mut mesh = Mesh::new();
    mesh.client_pod.enrolled = false;
    mesh.policies.push(policy(Action::Deny, &["client"]));
    assert!(matches!(mesh.rule(), Ruling::Denied(_)));
}
