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
const ELSEWHERE: &str = "10.0.2.1";

/// Two enrolled pods of one node, and how a test wants them different.
struct Mesh {
    client: Workload,
    server: Workload,
    client_pod: LocalPod,
    server_pod: LocalPod,
    policies: Vec<Authorization>,
    /// A workload of another node, where the control server knows one.
    elsewhere: Option<Workload>,
}

impl Mesh {
    fn new() -> Self {
        let (client, server) =
            (unpacked(testing::workload("client", CLIENT)), unpacked(testing::workload("web", SERVER)));
        let (client_pod, server_pod) = (pod(&client), pod(&server));
        Self { client, server, client_pod, server_pod, policies: Vec::new(), elsewhere: None }
    }

    fn rule(self) -> Ruling {
        self.rule_for(80)
    }

    fn rule_for(self, port: u16) -> Ruling {
        self.rule_between(CLIENT, SERVER, port)
    }

    fn rule_between(self, source: &str, destination: &str, port: u16) -> Ruling {
        let mut store = Store::new(LocalNode {
            name: "node-1".into(),
            trust_domain: "cluster.local".into(),
            ..LocalNode::default()
        });
        let workloads = [self.client, self.server].into_iter().chain(self.elsewhere);
        let workloads = workloads.map(|workload| Change::Workload(Arc::new(workload)));
        let policies = self.policies.iter().map(|policy| {
            let name = format!("{}/{}", policy.namespace, policy.name);
            Change::Policy(Arc::new(read(&name, &Any::pack(policy), &mut Strings::default()).unwrap()))
        });
        store.apply(workloads.chain(policies));
        let pods = LocalPods::new([Arc::new(self.client_pod), Arc::new(self.server_pod)]);
        let destination = SocketAddr::new(destination.parse().unwrap(), port);
        rule(&store.shared().load(), &pods, PassageKey { source: source.parse().unwrap(), destination })
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
    assert_eq!(parties.client.identity.unwrap().principal(), "cluster.local/ns/shop/sa/client");
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

/// A workload of another node that takes plain text.
fn elsewhere() -> Workload {
    let mut workload = unpacked(testing::workload("db", ELSEWHERE));
    workload.node = "node-2".into();
    workload
}

#[test]
fn plain_text_from_elsewhere_passes_from_nobody() {
    for known in [None, Some(elsewhere())] {
        let mesh = Mesh { elsewhere: known.clone(), ..Mesh::new() };
        let Ruling::Pass(parties) = mesh.rule_between(ELSEWHERE, SERVER, 80) else { panic!("{known:?}") };
        assert_eq!(parties.direction, Direction::Inbound);
        assert!(parties.client.pod.is_none() && parties.client.identity.is_none());
        assert_eq!(parties.client.workload.is_some(), known.is_some());
        assert_eq!(parties.server.workload.unwrap().name(), "web-1");

        // Nobody is who a policy names, whatever the address's owner would be.
        let mut mesh = Mesh { elsewhere: known, ..Mesh::new() };
        mesh.policies.push(policy(Action::Allow, &["db"]));
        assert!(matches!(mesh.rule_between(ELSEWHERE, SERVER, 80), Ruling::Denied(_)));
    }
}

#[test]
fn plain_text_to_elsewhere_passes() {
    for known in [None, Some(elsewhere())] {
        let mesh = Mesh { elsewhere: known.clone(), ..Mesh::new() };
        let Ruling::Pass(parties) = mesh.rule_between(CLIENT, ELSEWHERE, 5432) else { panic!("{known:?}") };
        assert_eq!(parties.direction, Direction::Outbound);
        assert!(parties.server.pod.is_none() && parties.server.identity.is_none());
        assert_eq!(parties.client.identity.unwrap().principal(), "cluster.local/ns/shop/sa/client");
    }
    // What only a server of this node answers for.
    let mut mesh = Mesh::new();
    mesh.policies.push(policy(Action::Deny, &["client"]));
    assert!(matches!(mesh.rule_between(CLIENT, ELSEWHERE, 80), Ruling::Pass(_)));
}

#[test]
fn what_is_tunnelled_or_not_captured_does_not_pass_to_elsewhere() {
    let through_agent = |change: fn(&mut Mesh), source, destination, port| {
        let mut mesh = Mesh { elsewhere: Some(elsewhere()), ..Mesh::new() };
        change(&mut mesh);
        through(&mesh.rule_between(source, destination, port))
    };
    let tunnelled = |mesh: &mut Mesh| {
        if let Some(known) = &mut mesh.elsewhere {
            known.tunnel = TunnelProtocol::Hbone;
        }
    };
    let not_straight = Some(ThroughAgent::NotStraight);
    assert_eq!(through_agent(tunnelled, CLIENT, ELSEWHERE, 80), not_straight);
    let excluded = |mesh: &mut Mesh| mesh.client_pod.redirection.exclude_outbound_ports = [80].into();
    assert_eq!(through_agent(excluded, CLIENT, ELSEWHERE, 80), not_straight, "it is nobody's to decide");
    assert_eq!(through_agent(|_| (), ELSEWHERE, SERVER, HBONE_PORT), not_straight);
    let not_enrolled = Some(ThroughAgent::NotEnrolled);
    assert_eq!(through_agent(|_| (), ELSEWHERE, "10.0.3.1", 80), not_enrolled);
    assert_eq!(through_agent(|mesh| mesh.client_pod.enrolled = false, CLIENT, ELSEWHERE, 80), not_enrolled);
    assert_eq!(through_agent(|mesh| mesh.server_pod.enrolled = false, ELSEWHERE, SERVER, 80), not_enrolled);
}
