//! Against a stand-in for the API server, over real HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::{Client, Config};
use mesh_lab::{ApiServer, ResourceType};
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::DropGuard;

use super::*;
use crate::model::ObjectName;
use crate::source::{Batch, Change, Report};

const DEADLINE: Duration = Duration::from_secs(30);

/// A source and what came of it.
struct Source {
    server: ApiServer,
    batches: mpsc::Receiver<Batch>,
    /// Every resource as it was told last.
    known: BTreeMap<ResourceKey, Resource>,
    report: Report,
    _stop: DropGuard,
}

fn istio(versions: &[&str]) -> [ResourceType; 4] {
    [Kind::ServiceEntry, Kind::WorkloadEntry, Kind::AuthorizationPolicy, Kind::PeerAuthentication]
        .map(|kind| ResourceType::namespaced(kind.group(), versions, kind.plural(), kind.name()))
}

fn server() -> ApiServer {
    let server = ApiServer::start().unwrap();
    istio(&["v1", "v1beta1"]).into_iter().for_each(|kind| server.install(kind));
    server
}

impl Source {
    fn of(server: ApiServer) -> Self {
        let mut config = Config::new(server.url().parse().unwrap());
        config.default_retry = false;
        let client = Client::try_from(config).unwrap();
        let (sender, batches) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let ended = stop.clone();
        tokio::spawn(async move {
            watch(client, "istio-system", sender, WatchMetrics::default(), ended).await;
        });
        let (known, report) = Default::default();
        Self { server, batches, known, report, _stop: stop.drop_guard() }
    }

    /// One that has read everything.
    async fn ready(server: ApiServer) -> Self {
        let mut source = Self::of(server);
        source.until("everything read", |source| source.is_followed()).await;
        source
    }

    fn is_followed(&self) -> bool {
        let followed = |watch: &crate::source::WatchReport| {
            matches!(watch.state, WatchState::Watching { .. } | WatchState::Missing)
        };
        let told = self.report.watches.len() == Kind::ALL.len();
        told && self.report.unread.is_empty() && self.report.watches.iter().all(followed)
    }

    /// Takes the next batch and returns what it changes.
    async fn next(&mut self) -> Vec<String> {
        let batch = timeout(DEADLINE, self.batches.recv()).await.expect("a batch in time").unwrap();
        self.report = Report::clone(&batch.report);
        let changes = batch.changes.into_iter().map(|change| match change {
            Change::Upsert(resource) => {
                let key = resource.key();
                let said = format!("+{key}");
                assert_ne!(self.known.insert(key, resource.clone()), Some(resource), "{said} is no news");
                said
            }
            Change::Remove(key) => {
                assert!(self.known.remove(&key).is_some(), "{key} was never told");
                format!("-{key}")
            }
        });
        let mut changes: Vec<String> = changes.collect();
        changes.sort();
        changes
    }

    /// Takes batches until it is as wanted, and returns what they changed.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) -> Vec<String> {
        let mut changes = Vec::new();
        while !wanted(self) {
            let next = timeout(DEADLINE, self.next()).await;
            changes.extend(next.unwrap_or_else(|_| panic!("never {what}: {:?}", self.report)));
        }
        changes
    }

    fn lists(&self, kind: Kind) -> usize {
        let answered = self.server.answered();
        let first = |query: &BTreeMap<String, String>| !query.contains_key("continue");
        let of_kind = answered.iter().filter(|answered| answered.resource == kind.plural());
        of_kind.filter(|answered| answered.verb == "list" && first(&answered.query)).count()
    }

    fn state(&self, kind: Kind) -> &WatchState {
        &self.report.watches.iter().find(|watch| watch.kind == kind).unwrap().state
    }

    fn problems(&self) -> Vec<String> {
        self.report.problems.iter().map(ToString::to_string).collect()
    }

    fn resource(&self, kind: Kind, name: &str) -> Option<&Resource> {
        self.known.get(&ResourceKey { kind, name: ObjectName::new("shop", name) })
    }
}

fn pod(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "managedFields": [{"manager": "kubelet"}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"podIP": address, "phase": "Running"},
    })
}

fn policy(spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "web", "namespace": "shop", "generation": 7}, "spec": spec,
        "status": {"conditions": [{"type": "Accepted"}]},
    })
}

#[tokio::test]
async fn everything_is_listed_in_pages_before_anything_is_told() {
    let server = server();
    for number in 0..1_200 {
        server.apply(pod(&format!("p{number:04}"), &format!("10.0.{}.{}", number / 250, number % 250 + 1)));
    }
    server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}));
    let mut source = Source::of(server);
    let mut changes = Vec::new();
    while changes.is_empty() {
        changes = source.next().await;
    }
    assert_eq!(changes.len(), 1_201, "all at once");
    assert!(source.report.unread.is_empty() && source.problems().is_empty(), "{:?}", source.report);

    let answered = source.server.answered();
    let pages = answered.iter().filter(|answered| answered.verb == "list" && answered.resource == "pods");
    let limits: Vec<_> =
        pages.map(|page| (&*page.query["limit"], page.query.contains_key("continue"))).collect();
    assert_eq!(limits, [("500", false), ("500", true), ("500", true)]);
    source.until("followed", |source| source.is_followed()).await;
    assert_eq!(*source.state(Kind::Pod), WatchState::Watching { api_version: "v1".to_owned() });
}

#[tokio::test]
async fn changes_are_told_and_what_is_none_is_not() {
    let server = server();
    server.apply(pod("a", "10.0.0.1"));
    let mut source = Source::ready(server).await;
    assert_eq!(source.known.len(), 1);

    // The kubelet renews what nobody looks at; then something happens.
    let mut renewed = pod("a", "10.0.0.1");
    renewed["status"]["containerStatuses"] = json!([{"restartCount": 1}]);
    source.server.apply(renewed);
    source.server.apply(pod("b", "10.0.0.2"));
    assert_eq!(source.next().await, ["+Pod shop/b"]);
    source.server.apply(pod("b", "10.0.0.3"));
    source.server.delete("Pod", "shop", "a");
    let changes = source.until("both", |source| source.known.len() == 1).await;
    assert!(changes.contains(&"-Pod shop/a".to_owned()), "{changes:?}");
    source.until("the new address", |source| {
        matches!(source.resource(Kind::Pod, "b"), Some(Resource::Pod(pod)) if pod.addresses == ["10.0.0.3".parse::<std::net::IpAddr>().unwrap()])
    })
    .await;
}

#[tokio::test]
async fn a_watch_goes_on_after_the_last_bookmark_and_lists_anew_when_that_is_too_old() {
    let server = server();
    server.apply(pod("stays", "10.0.0.1"));
    server.apply(pod("goes", "10.0.0.2"));
    let mut source = Source::ready(server).await;
    let before = source.lists(Kind::Pod);

    // All watches end in the course of things and go on.
    source.server.bookmark();
    source.server.set_away(true);
    source.server.set_away(false);
    source.server.apply(pod("new", "10.0.0.3"));
    source.until("the new pod", |source| source.known.len() == 3).await;
    assert_eq!(source.lists(Kind::Pod), before, "nothing was forgotten");

    // While nobody looks one pod goes, and the server forgets how.
    source.server.set_away(true);
    source.server.delete("Pod", "shop", "goes");
    source.server.expire();
    source.server.set_away(false);
    let changes = source.until("the pod gone", |source| source.known.len() == 2).await;
    assert_eq!(changes, ["-Pod shop/goes"], "the others are as they were");
    assert!(source.lists(Kind::Pod) > before);
}

#[tokio::test]
async fn while_the_api_is_away_what_is_known_stays_and_the_report_says_so() {
    let server = server();
    server.apply(pod("a", "10.0.0.1"));
    let mut source = Source::ready(server).await;
    source.server.set_away(true);
    let broken = |source: &Source| {
        source.report.watches.iter().all(|watch| matches!(watch.state, WatchState::Broken { .. }))
    };
    let changes = source.until("broken", broken).await;
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(source.report.unready(), None, "it can serve");
    let stale: Vec<String> = source.report.stale().collect();
    assert_eq!(stale.len(), Kind::ALL.len());
    assert!(stale.iter().any(|line| line.starts_with("Pod: not followed since 20")), "{stale:?}");

    source.server.set_away(false);
    let changes = source.until("followed again", Source::is_followed).await;
    assert!(changes.is_empty(), "{changes:?}");
    assert_eq!(source.report.stale().count(), 0);
}

#[tokio::test]
async fn custom_kinds_may_be_missing_and_come_later_and_go() {
    let mut source = Source::ready(ApiServer::start().unwrap()).await;
    for kind in Kind::ALL {
        assert_eq!(*source.state(kind) == WatchState::Missing, kind.is_custom(), "{kind}");
    }
    let [_, _, policies, _] = istio(&["v1beta1", "v1alpha1"]);
    source.server.install(policies);
    let mut older = policy(json!({}));
    older["apiVersion"] = "security.istio.io/v1beta1".into();
    source.server.apply(older);
    let changes = source.until("the policy", |source| !source.known.is_empty()).await;
    assert_eq!(changes, ["+AuthorizationPolicy shop/web"]);
    let version = WatchState::Watching { api_version: "security.istio.io/v1beta1".to_owned() };
    source.until("watched", |source| *source.state(Kind::AuthorizationPolicy) == version).await;

    source.server.uninstall("security.istio.io", "authorizationpolicies");
    let broken =
        |source: &Source| matches!(source.state(Kind::AuthorizationPolicy), WatchState::Broken { .. });
    let changes = source.until("missed", broken).await;
    assert!(changes.is_empty(), "a server that has just started may not know its kinds yet");
    let changes =
        source.until("given up", |source| *source.state(Kind::AuthorizationPolicy) == WatchState::Missing);
    assert_eq!(changes.await, ["-AuthorizationPolicy shop/web"]);
}

#[tokio::test]
async fn a_policy_that_cannot_be_used_opens_nothing() {
    let server = server();
    server.apply(policy(json!({"rules": [{}]})));
    let stand_in = |source: &Source| {
        source.resource(Kind::AuthorizationPolicy, "web").and_then(Resource::stands_in).is_some()
    };
    let bad = json!({"action": "CUSTOM", "future": true});
    let mut source = Source::ready(server.clone()).await;
    assert!(!stand_in(&source));
    source.server.apply(policy(bad));
    let changes = source.until("two problems", |source| source.report.problems.len() == 2).await;
    assert!(changes.is_empty() && !stand_in(&source), "the last good version stays: {changes:?}");
    let problems = source.problems();
    assert!(problems[0].starts_with("AuthorizationPolicy shop/web: spec."), "{problems:?}");
    assert!(problems.iter().all(|problem| problem.contains("the last good version is still served")));
    let shown = serde_json::to_value(&source.report.problems[0]).unwrap();
    assert_eq!(shown["generation"], 7);

    // After a restart there is no good version.
    let mut source = Source::ready(server).await;
    assert!(stand_in(&source));
    assert!(source.problems()[0].contains("everything it is for is denied"), "{:?}", source.problems());
    source.server.apply(policy(json!({"action": "AUDIT"})));
    source.until("another reason", |source| !source.problems()[0].contains("CUSTOM")).await;
    assert!(stand_in(&source));
    source.server.apply(policy(json!({})));
    source.until("mended", |source| source.report.problems.is_empty()).await;
    assert!(!stand_in(&source) && source.known.len() == 1);
    source.server.delete("AuthorizationPolicy", "shop", "web");
    source.until("gone", |source| source.known.is_empty()).await;
}

/// What a role allows, as `group/resource verb`.
fn allowed(rules: &Value) -> BTreeSet<String> {
    let texts = |rule: &Value, field: &str| -> Vec<String> {
        rule[field].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
    };
    let mut allowed = BTreeSet::new();
    for rule in rules.as_array().unwrap() {
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                allowed.extend(texts(rule, "verbs").iter().map(|verb| format!("{group}/{resource} {verb}")));
            }
        }
    }
    allowed
}

#[tokio::test]
async fn the_chart_allows_what_is_asked_for_and_nothing_else() {
    let source = Source::ready(server()).await;
    let asked: BTreeSet<String> = source
        .server
        .answered()
        .iter()
        .map(|answered| format!("{}/{} {}", answered.group, answered.resource, answered.verb))
        .collect();
    let rendered = include_str!("../../../../deploy/mesh.yaml");
    let role = rendered
        .split("\n---\n")
        .filter_map(|document| serde_saphyr::from_str::<Value>(document).ok())
        .find(|object| {
            object["kind"] == "ClusterRole" && object["metadata"]["name"] == "mesh-control-mesh-system"
        })
        .expect("mesh-control has a ClusterRole");
    let watched: BTreeSet<&str> = Kind::ALL.map(Kind::plural).into();
    let allowed: BTreeSet<String> = allowed(&role["rules"])
        .into_iter()
        // What others of its parts ask for has tests of its own.
        .filter(|rule| watched.iter().any(|plural| rule.contains(&format!("/{plural} "))))
        .collect();
    assert_eq!(allowed, asked);
}
