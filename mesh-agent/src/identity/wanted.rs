//! Which identities the node needs: those of its enrolled pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_xds::identity::Identity;
use tokio::sync::watch;

use crate::enrolment::{DesiredPods, PodStatuses};
use crate::pods::{LocalPod, LocalPods};

/// Identities, and the uids of the pods that have each.
pub type Wanted = Arc<BTreeMap<Arc<Identity>, Vec<Arc<str>>>>;

/// The identities of the enrolled ones of `pods`, of which the same may come twice.
pub fn identities_of<'a>(
    pods: impl IntoIterator<Item = &'a Arc<LocalPod>>,
    trust_domain: &Arc<str>,
) -> Wanted {
    let mut wanted: BTreeMap<Identity, Vec<Arc<str>>> = BTreeMap::new();
    for pod in pods.into_iter().filter(|pod| pod.enrolled) {
        let LocalPod { namespace, service_account, uid, .. } = &**pod;
        let identity =
            Identity::new(Arc::clone(trust_domain), Arc::clone(namespace), Arc::clone(service_account));
        let uids = wanted.entry(identity).or_default();
        if let Err(place) = uids.binary_search(uid) {
            uids.insert(place, Arc::clone(uid));
        }
    }
    Arc::new(wanted.into_iter().map(|(identity, uids)| (Arc::new(identity), uids)).collect())
}

/// Keeps `wanted` up to date, for ever: pods count from when they are named, before their traffic is steered, until
/// they are no longer published, after it.
pub async fn follow(
    mut desired: watch::Receiver<DesiredPods>,
    mut statuses: watch::Receiver<PodStatuses>,
    published: Arc<ArcSwap<LocalPods>>,
    trust_domain: Arc<str>,
    wanted: watch::Sender<Wanted>,
) {
    loop {
        let named = desired.borrow_and_update().clone();
        statuses.mark_unchanged();
        let now = identities_of(named.pods.iter().chain(published.load().iter()), &trust_domain);
        wanted.send_if_modified(|before| {
            let news = *before != now;
            if news {
                *before = now;
            }
            news
        });
        let changed = tokio::select! {
            changed = desired.changed() => changed,
            changed = statuses.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
