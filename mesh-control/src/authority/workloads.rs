//! Which identities a node may have: those of the pods that are on it right now.
//!
//! Written by the thread that works changes in, read by the certificate service. A snapshot shares all that did not
//! change with the one before, so that a change costs what changed, however many pods there are.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use imbl::OrdMap;
use mesh_xds::identity::Identity;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::model::{Kind, ObjectName, Pod, Resource};
use crate::source::Change;

/// Pods that a refusal names.
const NAMED_PODS: usize = 3;
/// An agent and this server learn of a new pod at about the same time: who is first waits for the other.
const BEHIND: Duration = Duration::from_secs(2);

/// A service account: what an identity is of.
type Account = ObjectName;
type Node = Arc<str>;

/// The identities of each node at one time.
#[derive(Debug, Default, Clone)]
pub(super) struct Snapshot {
    /// Accounts of the pods of each node, and how many pods have them.
    nodes: imbl::HashMap<Node, OrdMap<Account, usize>>,
    /// Pods of each account, and their nodes.
    accounts: imbl::HashMap<Account, OrdMap<ObjectName, Node>>,
}

/// Why a node may not have an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotAllowed {
    TrustDomain { identity: Identity, ours: Arc<str> },
    NoPod { node: String, identity: Identity, elsewhere: Vec<(ObjectName, Node)>, more: usize },
}

impl fmt::Display for NotAllowed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrustDomain { identity, ours } => {
                write!(out, "{identity} is not of the trust domain {ours}, which is the one certified here")
            }
            Self::NoPod { node, identity, elsewhere, more } => {
                write!(out, "node {node} may not have {identity}: no pod there has this service account; ")?;
                if elsewhere.is_empty() {
                    return out.write_str("no pod anywhere has it");
                }
                let pods = elsewhere.iter().map(|(pod, node)| format!("{pod} on node {node}"));
                write!(out, "those that have it are {}", pods.collect::<Vec<_>>().join(", "))?;
                if *more > 0 { write!(out, " and {more} more") } else { Ok(()) }
            }
        }
    }
}

/// The latest snapshot.
#[derive(Debug)]
pub(crate) struct Workloads {
    trust_domain: Arc<str>,
    current: ArcSwap<Snapshot>,
    /// Told of every new snapshot.
    changed: watch::Sender<()>,
}

impl Workloads {
    pub(super) fn new(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            current: ArcSwap::default(),
            changed: watch::Sender::default(),
        }
    }

    /// Whether a node may have an identity now, or in a moment.
    pub(super) async fn allow(&self, node: &str, identity: &Identity) -> Result<(), NotAllowed> {
        let mut changes = self.changed.subscribe();
        let until = Instant::now() + BEHIND;
        loop {
            let refusal = match self.check(node, identity) {
                Err(refusal @ NotAllowed::NoPod { .. }) => refusal,
                answer => return answer,
            };
            if !matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))) {
                return Err(refusal);
            }
        }
    }

    fn check(&self, node: &str, identity: &Identity) -> Result<(), NotAllowed> {
        if identity.trust_domain() != &self.trust_domain {
            let (identity, ours) = (identity.clone(), Arc::clone(&self.trust_domain));
            return Err(NotAllowed::TrustDomain { identity, ours });
        }
        let account = Account::new(Arc::clone(identity.namespace()), Arc::clone(identity.service_account()));
        let snapshot = self.current.load();
        if snapshot.nodes.get(node).is_some_and(|accounts| accounts.contains_key(&account)) {
            return Ok(());
        }
        let pods = snapshot.accounts.get(&account);
        let named = pods.into_iter().flatten().take(NAMED_PODS);
        Err(NotAllowed::NoPod {
            node: node.to_owned(),
            identity: identity.clone(),
            elsewhere: named.map(|(pod, node)| (pod.clone(), Arc::clone(node))).collect(),
            more: pods.map_or(0, |pods| pods.len().saturating_sub(NAMED_PODS)),
        })
    }
}

/// Keeps the snapshots up to date.
#[derive(Debug)]
pub(crate) struct WorkloadsWriter {
    published: Arc<Workloads>,
    next: Snapshot,
    /// Account and node of each pod that counts.
    pods: HashMap<ObjectName, (Account, Node)>,
}

impl WorkloadsWriter {
    pub(crate) fn new(published: Arc<Workloads>) -> Self {
        Self { published, next: Snapshot::default(), pods: HashMap::new() }
    }

    /// Works changes in and publishes what they amount to.
    pub(crate) fn apply(&mut self, changes: &[Change]) {
        let mut changed = false;
        for change in changes {
            changed |= match change {
                Change::Upsert(Resource::Pod(pod)) => self.set(&pod.name, place(pod)),
                Change::Remove(key) if key.kind == Kind::Pod => self.set(&key.name, None),
                Change::Upsert(_) | Change::Remove(_) => false,
            };
        }
        if changed {
            self.published.current.store(Arc::new(self.next.clone()));
            self.published.changed.send_replace(());
        }
    }

    fn set(&mut self, pod: &ObjectName, now: Option<(Account, Node)>) -> bool {
        let was = self.pods.remove(pod);
        let changed = was != now;
        if changed && let Some((account, node)) = was {
            self.next.remove(pod, &account, &node);
        }
        if let Some((account, node)) = now {
            if changed {
                self.next.insert(pod, &account, &node);
            }
            self.pods.insert(pod.clone(), (account, node));
        }
        changed
    }
}

impl Snapshot {
    fn insert(&mut self, pod: &ObjectName, account: &Account, node: &Node) {
        *self.nodes.entry(Arc::clone(node)).or_default().entry(account.clone()).or_default() += 1;
        self.accounts.entry(account.clone()).or_default().insert(pod.clone(), Arc::clone(node));
    }

    fn remove(&mut self, pod: &ObjectName, account: &Account, node: &Node) {
        if let Some(accounts) = self.nodes.get_mut(node) {
            match accounts.get_mut(account) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(accounts.remove(account)),
            }
            if accounts.is_empty() {
                self.nodes.remove(node);
            }
        }
        if let Some(pods) = self.accounts.get_mut(account) {
            pods.remove(pod);
            if pods.is_empty() {
                self.accounts.remove(account);
            }
        }
    }
}

/// Pods count from when they are scheduled, before they have an address: their certificate is to be there first.
/// Those that share the node's network are never enrolled, so that no agent has a use for their identity.
fn place(pod: &Pod) -> Option<(Account, Node)> {
    let counts = !pod.node.is_empty() && !pod.finished && !pod.host_network;
    let account = || Account::new(Arc::clone(&pod.name.namespace), pod.service_account.as_str());
    counts.then(|| (account(), Arc::clone(&pod.node)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::files::resources;

    fn pod(name: &str, account: &str, node: &str, more: &str) -> Change {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{nodeName: '{node}', serviceAccountName: {account}, containers: []{more}}}\n"
        );
        Change::Upsert(resources(&manifest).0.pop().unwrap())
    }

    fn gone(name: &str) -> Change {
        Change::Remove(crate::model::ResourceKey { kind: Kind::Pod, name: ObjectName::new("shop", name) })
    }

    fn identity(account: &str) -> Identity {
        Identity::new("cluster.local", "shop", account)
    }

    fn workloads() -> (Arc<Workloads>, WorkloadsWriter) {
        let workloads = Arc::new(Workloads::new("cluster.local"));
        (Arc::clone(&workloads), WorkloadsWriter::new(workloads))
    }

    #[test]
    fn a_node_may_have_what_its_pods_are_while_they_are_there() {
        let (workloads, mut writer) = workloads();
        let may = |node: &str, account: &str| workloads.check(node, &identity(account)).is_ok();
        writer.apply(&[pod("a", "web", "n1", ""), pod("b", "web", "n1", ""), pod("c", "db", "n2", "")]);
        assert!(may("n1", "web") && may("n2", "db"));
        assert!(!may("n2", "web") && !may("n1", "db") && !may("n3", "web") && !may("", "web"));
        writer.apply(&[gone("a")]);
        assert!(may("n1", "web"), "the other one is still there");
        writer.apply(&[pod("b", "api", "n1", "")]);
        assert!(!may("n1", "web") && may("n1", "api"));
        writer.apply(&[pod("b", "api", "n2", ""), gone("never-seen")]);
        assert!(!may("n1", "api") && may("n2", "api"), "made anew elsewhere");
        writer.apply(&[gone("b"), gone("c")]);
        let snapshot = workloads.current.load();
        assert!(snapshot.nodes.is_empty() && snapshot.accounts.is_empty(), "{snapshot:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_first_to_know_of_a_pod_waits_for_the_other() {
        let (workloads, mut writer) = workloads();
        let web = identity("web");
        let asked = Instant::now();
        let (allowed, ()) = tokio::join!(workloads.allow("n1", &web), async {
            tokio::time::sleep(BEHIND / 4).await;
            writer.apply(&[pod("other", "db", "n1", "")]);
            tokio::time::sleep(BEHIND / 4).await;
            writer.apply(&[pod("a", "web", "n1", "")]);
        });
        assert_eq!((allowed, asked.elapsed()), (Ok(()), BEHIND / 2));
        assert!(workloads.allow("n2", &web).await.is_err());
        assert_eq!(asked.elapsed(), BEHIND / 2 + BEHIND, "not for ever");
    }

    #[test]
    fn pods_that_are_not_steered_do_not_count() {
        let (workloads, mut writer) = workloads();
        writer.apply(&[pod("a", "web", "", ""), pod("b", "web", "n1", ", hostNetwork: true")]);
        assert!(workloads.check("n1", &identity("web")).is_err());
        assert!(workloads.check("", &identity("web")).is_err());
    }

    #[test]
    fn a_refusal_says_which_pods() {
        let (workloads, mut writer) = workloads();
        let refusal = |identity: &Identity| workloads.check("n1", identity).unwrap_err().to_string();
        assert_eq!(
            refusal(&identity("web")),
            "node n1 may not have spiffe://cluster.local/ns/shop/sa/web: no pod there has this service account; no pod \
             anywhere has it"
        );
        writer.apply(&["a", "b", "c", "d", "e"].map(|name| pod(name, "web", "n2", "")));
        assert!(refusal(&identity("web")).ends_with(
            "those that have it are shop/a on node n2, shop/b on node n2, shop/c on node n2 and 2 more"
        ));
        let foreign = refusal(&Identity::new("elsewhere", "shop", "web"));
        assert!(foreign.contains("not of the trust domain cluster.local"), "{foreign}");
    }
}
