use super::*;
use crate::proto::Name;
use crate::proto::workload::Workload;

mod fuzz;

fn response(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        resources: resources.iter().map(|resource| resource.encode_to_vec().into()).collect(),
        type_url: Workload::type_url(),
        nonce: "7".to_owned(),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

fn resource(name: &str, version: &str) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any::pack(&Workload::default())),
        ..Default::default()
    }
}

fn accept(_: &Update) -> Vec<Rejection> {
    Vec::new()
}

fn versions(types: &Types) -> Vec<(String, String)> {
    let requests = types.first_requests(&Node::default());
    requests[0].initial_resource_versions.clone().into_iter().collect()
}

fn wildcard() -> Types {
    Types::new(vec![Subscription::wildcard::<Workload>()])
}

fn wanted(names: &[&str]) -> Names {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    [(Workload::type_url().into(), names)].into()
}

#[test]
fn what_was_never_accepted_is_named_without_a_version_until_it_is_gone() {
    let mut types = wildcard();
    let mut refuse = |update: &Update| {
        let all = update.resources.iter();
        all.map(|resource| Rejection::new(&resource.name, "no")).collect::<Vec<_>>()
    };
    types.receive(response(vec![resource("a", "1")], &[]), &mut accept);
    let bodiless = Resource { resource: None, ..resource("b", "1") };
    types.receive(response(vec![resource("a", "2"), bodiless, resource("c", "1")], &[]), &mut refuse);
    let mut named = versions(&types);
    named.sort();
    let pair = |name: &str, version: &str| (name.to_owned(), version.to_owned());
    assert_eq!(named, [pair("a", "1"), pair("b", ""), pair("c", "")]);
    types.receive(response(vec![resource("c", "2")], &["b"]), &mut accept);
    let mut named = versions(&types);
    named.sort();
    assert_eq!(named, [pair("a", "1"), pair("c", "2")]);
}

#[test]
fn what_is_accepted_is_held_and_named_by_the_next_stream() {
    let mut types = wildcard();
    let ack = types.receive(response(vec![resource("a", "1"), resource("b", "1")], &[]), &mut accept).answer;
    assert_eq!((ack.response_nonce.as_str(), ack.error_detail), ("7", None));
    types.receive(response(vec![resource("a", "2")], &["b", "unknown"]), &mut accept);
    assert_eq!(versions(&types), [("a".to_owned(), "2".to_owned())]);

    let node = Node::new("me", [("NODE_NAME", "n1")]);
    let request = types.first_requests(&node).remove(0);
    assert_eq!(
        (request.resource_names_subscribe, request.resource_names_unsubscribe),
        (vec!["*".to_owned()], vec![])
    );
    assert_eq!(request.node.unwrap().fact("NODE_NAME"), Some("n1"));
}

#[test]
fn a_refused_version_is_not_held() {
    let mut types = wildcard();
    types.receive(response(vec![resource("a", "1")], &[]), &mut accept);
    let mut refuse_a = |_: &Update| vec![Rejection::new("a", "no")];
    let nack =
        types.receive(response(vec![resource("a", "2"), resource("b", "2")], &[]), &mut refuse_a).answer;
    assert_eq!(versions(&types), [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);

    let error = nack.error_detail.unwrap();
    assert_eq!((error.code, error.message.as_str()), (INVALID_ARGUMENT, "refused 1 resources: a: no"));
    let detail = error.details[0].unpack::<RejectedResource>().unwrap();
    assert_eq!((detail.name.as_str(), detail.reason.as_str()), ("a", "no"));
}

#[test]
fn a_damaged_resource_spoils_only_itself() {
    let mut types = wildcard();
    let mut damaged = response(vec![resource("good", "1")], &[]);
    let wrong_type = Any { type_url: "other".to_owned(), ..Any::default() };
    let others = [
        Resource { resource: None, ..resource("no-body", "1") },
        Resource { resource: Some(wrong_type), ..resource("wrong-type", "1") },
        resource("", "1"),
    ];
    damaged.resources.push(bytes::Bytes::from_static(b"\xff\xff"));
    damaged.resources.extend(others.iter().map(|resource| bytes::Bytes::from(resource.encode_to_vec())));

    let mut seen = Vec::new();
    let mut handler = |update: &Update| {
        seen.extend(update.resources.iter().map(|resource| resource.name.clone()));
        Vec::new()
    };
    let received = types.receive(damaged, &mut handler);
    let refused: Vec<&str> = received.rejections.iter().map(|rejection| rejection.name.as_str()).collect();
    assert_eq!(refused, ["", "no-body", "wrong-type", ""]);
    assert_eq!(seen, ["good"]);
    let mut named = versions(&types);
    named.retain(|(_, version)| !version.is_empty());
    assert_eq!(named, [("good".to_owned(), "1".to_owned())]);
}

#[test]
fn a_sign_of_life_is_no_change() {
    let mut types = wildcard();
    types.receive(response(vec![resource("a", "1")], &[]), &mut accept);
    let heartbeat =
        Resource { resource: None, ttl: Some(prost_types::Duration::default()), ..resource("a", "1") };
    let received = types.receive(response(vec![heartbeat], &[]), &mut accept);
    assert_eq!((received.update.resources.len(), received.rejections.len()), (0, 0));
    assert_eq!(versions(&types), [("a".to_owned(), "1".to_owned())]);
}

#[test]
fn a_type_nobody_asked_for_is_refused() {
    let mut types = wildcard();
    let unasked = DeltaDiscoveryResponse { type_url: "other".to_owned(), ..response(vec![], &[]) };
    let mut never = |_: &Update| -> Vec<Rejection> { unreachable!("not for the handler") };
    assert!(types.receive(unasked, &mut never).answer.error_detail.is_some());
}

#[test]
fn a_nack_is_bounded() {
    let mut types = wildcard();
    let mut refuse_all = |update: &Update| {
        let reason = "ü".repeat(10_000);
        update.resources.iter().map(|resource| Rejection::new(&resource.name, &reason)).collect::<Vec<_>>()
    };
    let many = (0..1000).map(|number| resource(&format!("r{number}"), "1")).collect();
    let answer = types.receive(response(many, &[]), &mut refuse_all).answer;
    assert!(answer.error_detail.as_ref().unwrap().message.starts_with("refused 1000 resources: r0: "));
    assert!(answer.encoded_len() < 64 * 1024, "{}", answer.encoded_len());
}

#[test]
fn on_demand_asks_for_what_is_wanted_and_forgets_what_is_not() {
    let mut types = Types::new(vec![Subscription::on_demand::<Workload>()]);
    let first = types.first_requests(&Node::default()).remove(0);
    assert_eq!(first.resource_names_subscribe, ["*"], "asks for everything");
    assert_eq!(first.resource_names_unsubscribe, ["*"], "and leaves it: on demand");

    let asked = types.want(&wanted(&["a", "net/10.0.0.1"]), &mut accept).remove(0);
    assert_eq!(asked.resource_names_subscribe, ["a", "net/10.0.0.1"]);
    let pod = Resource { aliases: vec!["net/10.0.0.1".to_owned()], ..resource("pod", "1") };
    types.receive(response(vec![resource("a", "1"), pod], &[]), &mut accept);
    assert!(types.want(&wanted(&["a", "net/10.0.0.1"]), &mut accept).is_empty());

    let mut forgotten = Vec::new();
    let mut handler = |update: &Update| {
        forgotten.extend(update.removed.clone());
        Vec::new()
    };
    let left = types.want(&wanted(&["a"]), &mut handler).remove(0);
    assert_eq!(left.resource_names_unsubscribe, ["net/10.0.0.1", "pod"]);
    assert_eq!(forgotten, ["pod"]);
    assert_eq!(versions(&types), [("a".to_owned(), "1".to_owned())]);
    assert_eq!(types.first_requests(&Node::default()).remove(0).resource_names_subscribe, ["*", "a"]);
}
