use mesh_xds::proto::security;
use mesh_xds::proto::workload::{Workload, address};

use super::*;
use crate::config::{LocalNode, Snapshot};
use crate::policy::Request;

/// A client's handler with its disk.
struct World {
    directory: tempfile::TempDir,
    handler: ConfigHandler,
    readers: Arc<SharedSnapshot>,
}

fn new_store() -> Store {
    Store::new(LocalNode { name: "n1".into(), ..LocalNode::default() })
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = new_store();
        let readers = store.shared();
        let handler = ConfigHandler {
            store: Some(store),
            writer: CacheWriter::new(Cache::new(directory.path())),
            state: watch::Sender::default(),
            answers: Answers::default(),
            give_back: mpsc::channel(1).0,
        };
        Self { directory, handler, readers }
    }

    fn receive(&mut self, resources: &[Resource], removed: &[&str]) -> Vec<Rejection> {
        let type_url = match resources.first() {
            Some(resource) => resource.resource.as_ref().unwrap().type_url.as_str().into(),
            None => Authorization::type_url().into(),
        };
        let removed = removed.iter().map(|name| (*name).to_owned()).collect();
        self.handler.apply(&Update { type_url, resources: resources.to_vec(), removed, ..Update::default() })
    }

    fn seen(&self) -> Arc<Snapshot> {
        self.readers.load()
    }

    fn state(&self) -> (Origin, Option<String>) {
        let state = self.handler.state.borrow();
        (state.origin, state.awaited.as_deref().map(str::to_owned))
    }

    /// What an agent knows that is started anew on the same disk, and whether it may serve from it.
    async fn restarted(&self) -> (Store, Held, bool) {
        self.handler.writer.clone().run(std::future::ready(()), || panic!("not damaged")).await;
        let mut store = new_store();
        let (held, ready) = restore(&Cache::new(self.directory.path()), &mut store).unwrap();
        (store, held, ready)
    }
}

fn resource(name: &str, body: Any) -> Resource {
    Resource { name: name.to_owned(), version: "1".to_owned(), resource: Some(body), ..Resource::default() }
}

fn pod(name: &str, policies: &[&str]) -> Resource {
    let uid = format!("/v1/Pod/shop/{name}");
    let workload = Workload {
        uid: uid.clone(),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        node: "n1".to_owned(),
        authorization_policies: policies.iter().map(|name| (*name).to_owned()).collect(),
        ..Workload::default()
    };
    resource(&uid, Any::pack(&Address { r#type: Some(address::Type::Workload(workload)) }))
}

fn policy(name: &str, action: security::Action) -> Resource {
    let message = Authorization {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        scope: security::Scope::Namespace.into(),
        action: action.into(),
        rules: vec![security::Rule::default()],
        ..Authorization::default()
    };
    resource(&format!("shop/{name}"), Any::pack(&message))
}

fn damaged(name: &str) -> Resource {
    let body = Any { type_url: Authorization::type_url(), value: vec![0xff].into() };
    resource(&format!("shop/{name}"), body)
}

/// What a client without an identity is told at a pod; `None` if it is allowed.
fn refusal(snapshot: &Snapshot, name: &str) -> Option<String> {
    let workload = snapshot.workload(&format!("/v1/Pod/shop/{name}")).expect("the pod is known");
    let request = Request {
        source: None,
        source_ip: [10, 0, 0, 9].into(),
        destination: ([10, 0, 0, 1], 80).into(),
        workload,
    };
    snapshot.authorize(&request).err().map(|denied| denied.to_string())
}

#[tokio::test]
async fn nothing_is_shown_or_kept_before_both_types_have_come() {
    let mut world = World::new();
    world.handler.stream_opened();
    world.receive(&[pod("a", &[])], &[]);
    assert_eq!(world.state(), (Origin::Nothing, Some(Authorization::type_url())));
    assert_eq!(world.seen().workload_count(), 0);
    assert!(!world.restarted().await.2);

    world.receive(&[policy("deny", security::Action::Deny)], &[]);
    assert_eq!(world.state(), (Origin::Server, None));
    assert!(refusal(&world.seen(), "a").is_some());
    assert!(world.restarted().await.2);
}

#[test]
fn after_a_reconnect_the_policies_of_the_new_server_are_waited_for_too() {
    let mut world = World::new();
    world.handler.stream_opened();
    world.receive(&[], &[]);
    world.receive(&[pod("a", &[])], &[]);
    assert_eq!(world.seen().workload_count(), 1);

    world.handler.stream_opened();
    world.receive(&[pod("b", &[])], &[]);
    assert_eq!(world.seen().workload_count(), 1, "the last good state stays");
    world.receive(&[policy("deny", security::Action::Deny)], &[]);
    assert_eq!(world.seen().workload_count(), 2);
    assert!(refusal(&world.seen(), "b").is_some());
}

#[test]
fn a_change_that_goes_on_is_shown_when_it_is_complete() {
    let mut world = World::new();
    world.handler.stream_opened();
    world.receive(&[], &[]);
    let type_url = Address::type_url().into();
    let begin = Update { type_url, resources: vec![pod("a", &[])], more: true, ..Update::default() };
    world.handler.apply(&begin);
    assert_eq!(world.seen().workload_count(), 0);
    world.receive(&[pod("b", &[])], &[]);
    assert_eq!(world.seen().workload_count(), 2);
}

#[tokio::test]
async fn what_cannot_be_read_leaves_the_last_good_version_or_else_denies() {
    let mut world = World::new();
    world.handler.stream_opened();
    world.receive(&[pod("a", &[])], &[]);
    assert_eq!(world.receive(&[damaged("p")], &[]).len(), 1);
    let reason = refusal(&world.seen(), "a").expect("its namespace is denied");
    assert!(reason.starts_with("denied by AuthorizationPolicy shop/p, which cannot be used: "), "{reason}");
    // Also by an agent that starts while the server is away, and that asks for the policy again.
    let (store, held, ready) = world.restarted().await;
    assert!(ready && refusal(&store.shared().load(), "a").is_some());
    assert_eq!(held.policies.get("shop/p").map(ToString::to_string).as_deref(), Some(""));

    assert!(world.receive(&[policy("p", security::Action::Allow)], &[]).is_empty());
    assert_eq!(refusal(&world.seen(), "a"), None);
    assert_eq!(world.receive(&[damaged("p")], &[]).len(), 1);
    assert_eq!(refusal(&world.seen(), "a"), None, "the last good version stays");
    let (store, held, _) = world.restarted().await;
    assert_eq!(refusal(&store.shared().load(), "a"), None);
    assert_eq!(held.policies.get("shop/p").map(ToString::to_string).as_deref(), Some("1"));
}

#[tokio::test]
async fn a_policy_without_a_body_denies_until_it_is_gone() {
    let mut world = World::new();
    world.handler.stream_opened();
    world.receive(&[pod("a", &[])], &[]);
    let unreadable = vec![Rejection::new("shop/p", "it has no body")];
    let type_url = Authorization::type_url().into();
    world.handler.apply(&Update { type_url, unreadable, ..Update::default() });
    assert!(refusal(&world.seen(), "a").is_some());
    assert!(refusal(&world.restarted().await.0.shared().load(), "a").is_some());
    world.receive(&[], &["shop/p"]);
    assert_eq!(refusal(&world.seen(), "a"), None);
    assert_eq!(refusal(&world.restarted().await.0.shared().load(), "a"), None);
}

#[tokio::test]
async fn policies_outlive_a_restart_without_the_server() {
    let mut world = World::new();
    world.handler.stream_opened();
    world.receive(&[pod("a", &[]), pod("b", &["shop/later"])], &[]);
    world.receive(&[policy("deny", security::Action::Deny)], &[]);
    let (store, held, ready) = world.restarted().await;
    assert!(ready);
    assert_eq!((held.addresses.len(), held.policies.len()), (2, 1));
    for pod in ["a", "b"] {
        assert_eq!(refusal(&store.shared().load(), pod), refusal(&world.seen(), pod));
    }
    world.receive(&[], &["shop/deny"]);
    assert_eq!(refusal(&world.seen(), "a"), None);
    let missing = refusal(&world.seen(), "b").expect("it names a policy that is not there");
    assert!(missing.contains("shop/later"), "{missing}");
}
