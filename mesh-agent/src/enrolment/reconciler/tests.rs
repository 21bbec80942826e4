use std::fmt;
use std::sync::Mutex;

use tokio::sync::Notify;

use super::*;
use crate::pods::{FailureMode, Redirection};

/// Writes down what the kernel is told, and whether the pod was published as enrolled at that moment.
#[derive(Clone, Default)]
struct Kernel {
    told: Arc<Mutex<Vec<String>>>,
    published: Arc<ArcSwap<LocalPods>>,
    refuses: Arc<Mutex<bool>>,
}

#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("refused")
    }
}

impl std::error::Error for Refused {}

impl Kernel {
    fn write(&self, what: &str, pod: &LocalPod) -> Result<(), Refused> {
        if *self.refuses.lock().unwrap() {
            return Err(Refused);
        }
        let published = self.published.load();
        let enrolled =
            published.enrolled_by_address(pod.addresses[0]).is_some_and(|found| found.uid == pod.uid);
        let published = if enrolled { " published" } else { "" };
        self.told.lock().unwrap().push(format!("{what} {}{published}", pod.name));
        Ok(())
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.lock().unwrap())
    }
}

impl PodSteering for Kernel {
    type Error = Refused;

    fn apply(&mut self, pod: &LocalPod) -> Result<(), Refused> {
        let what = match (&pod.device, pod.enrolled) {
            (_, false) => "know",
            (Some(_), true) => "steer",
            (None, true) => "steer without device",
        };
        self.write(what, pod)
    }

    fn withdraw(&mut self, pod: &LocalPod) -> Result<(), Refused> {
        self.write("withdraw", pod)
    }

    fn retain(&mut self, pods: &LocalPods) -> Result<(), Refused> {
        self.told.lock().unwrap().push(format!("retain {}", pods.len()));
        Ok(())
    }
}

fn pod(name: &str, address: &str, enrolled: bool) -> Arc<LocalPod> {
    Arc::new(LocalPod {
        uid: format!("c//Pod/ns/{name}").into(),
        name: name.into(),
        namespace: "ns".into(),
        kubernetes_uid: None,
        service_account: "default".into(),
        addresses: vec![address.parse().unwrap()],
        device: Some(PodDevice { index: 7, name: "veth7".into() }),
        enrolled,
        redirection: Redirection::default(),
        failure_mode: FailureMode::Open,
    })
}

fn complete(pods: &[Arc<LocalPod>]) -> DesiredPods {
    DesiredPods { pods: pods.to_vec(), complete: true, ..DesiredPods::default() }
}

fn setup() -> (Reconciler<Kernel>, Kernel) {
    let kernel = Kernel::default();
    (Reconciler::new(kernel.clone(), Arc::clone(&kernel.published)), kernel)
}

fn step(reconciler: &mut Reconciler<Kernel>, desired: &DesiredPods) -> bool {
    reconciler.reconcile(desired, desired.pods.clone())
}

#[test]
fn a_pod_is_published_before_and_unpublished_after_it_is_steered() {
    let (mut reconciler, kernel) = setup();
    assert!(step(&mut reconciler, &complete(&[pod("a", "10.0.0.1", true)])));
    assert_eq!(kernel.take(), ["steer a published", "retain 1"]);

    assert!(step(&mut reconciler, &complete(&[pod("a", "10.0.0.1", false)])));
    assert_eq!(kernel.take(), ["know a published"]);
    let published = kernel.published.load_full();
    let address = "10.0.0.1".parse().unwrap();
    assert!(published.by_address(address).is_some() && published.enrolled_by_address(address).is_none());

    step(&mut reconciler, &complete(&[pod("a", "10.0.0.1", true)]));
    kernel.take();
    assert!(step(&mut reconciler, &complete(&[])));
    assert_eq!(kernel.take(), ["withdraw a published"]);
    assert!(kernel.published.load().is_empty());
}

#[test]
fn nothing_is_withdrawn_until_the_source_has_named_all() {
    let (mut reconciler, kernel) = setup();
    let partial = |pods: &[Arc<LocalPod>]| DesiredPods { complete: false, ..complete(pods) };
    step(&mut reconciler, &partial(&[pod("a", "10.0.0.1", true)]));
    step(&mut reconciler, &partial(&[pod("b", "10.0.0.2", true)]));
    assert_eq!(kernel.take(), ["steer a published", "steer b published"]);
    assert_eq!(kernel.published.load().len(), 2);

    step(&mut reconciler, &complete(&[pod("b", "10.0.0.2", true)]));
    assert_eq!(kernel.take(), ["withdraw a published", "retain 1"]);
    assert_eq!(kernel.published.load().len(), 1);
}

#[test]
fn an_address_that_changes_hands_stays_with_the_newcomer() {
    let (mut reconciler, kernel) = setup();
    step(&mut reconciler, &complete(&[pod("old", "10.0.0.1", true)]));
    kernel.take();
    step(&mut reconciler, &complete(&[pod("new", "10.0.0.1", true)]));
    // The newcomer owns it before the kernel is told anything, and is written after the old one is erased.
    assert_eq!(kernel.take(), ["withdraw old", "steer new published"]);

    step(&mut reconciler, &complete(&[pod("new", "10.0.0.2", true)]));
    assert_eq!(kernel.take(), ["withdraw new", "steer new published"]);
}

#[test]
fn a_pod_that_was_made_anew_under_its_name_is_another() {
    let (mut reconciler, kernel) = setup();
    let of_uid = |uid: Option<&str>| {
        let kubernetes_uid = uid.map(Arc::from);
        complete(&[Arc::new(LocalPod { kubernetes_uid, ..LocalPod::clone(&pod("web-0", "10.0.0.1", true)) })])
    };
    // As the control server names it, and as the API does: the same.
    step(&mut reconciler, &of_uid(None));
    step(&mut reconciler, &of_uid(Some("first")));
    assert_eq!(kernel.take(), ["steer web-0 published", "retain 1", "steer web-0 published"]);
    step(&mut reconciler, &of_uid(Some("second")));
    assert_eq!(kernel.take(), ["withdraw web-0 published", "steer web-0 published"]);
}

#[test]
fn what_is_as_it_should_be_is_not_touched() {
    let (mut reconciler, kernel) = setup();
    let desired = complete(&[pod("a", "10.0.0.1", true)]);
    step(&mut reconciler, &desired);
    kernel.take();
    assert!(step(&mut reconciler, &desired));
    assert_eq!(kernel.take(), Vec::<String>::new());
}

#[test]
fn refusals_and_problems_show_in_the_status_and_are_tried_again() {
    let (mut reconciler, kernel) = setup();
    let statuses = reconciler.statuses();
    let uid: Arc<str> = "c//Pod/ns/a".into();
    *kernel.refuses.lock().unwrap() = true;
    let mut desired = complete(&[pod("a", "10.0.0.1", true)]);
    assert!(!step(&mut reconciler, &desired));
    let status = statuses.borrow()[&uid].clone();
    assert_eq!((status.steered_since, status.error.as_deref()), (None, Some("refused")));

    *kernel.refuses.lock().unwrap() = false;
    desired.problems.insert(Arc::clone(&uid), "annotation".into());
    assert!(step(&mut reconciler, &desired));
    let status = statuses.borrow()[&uid].clone();
    assert!(status.steered_since.is_some());
    assert_eq!(status.error.as_deref(), Some("annotation"));
}

/// Devices that are found at the third look.
struct Slow {
    looks: u32,
    found: Arc<Notify>,
}

impl Devices for Slow {
    async fn locate(&mut self, pods: &[Arc<LocalPod>]) -> HashMap<Arc<str>, PodDevice> {
        self.looks += 1;
        if self.looks < 3 {
            return HashMap::new();
        }
        self.found.notify_one();
        let device = PodDevice { index: 9, name: "veth9".into() };
        pods.iter().map(|pod| (Arc::clone(&pod.uid), device.clone())).collect()
    }

    async fn changed(&mut self) {
        future::pending().await
    }
}

#[tokio::test]
async fn a_pod_is_steered_while_its_device_is_still_looked_for() {
    let (reconciler, kernel) = setup();
    let mut statuses = reconciler.statuses();
    let (desired, follow) = watch::channel(complete(&[]));
    let found = Arc::new(Notify::new());
    let running = tokio::spawn(reconciler.run(follow, Slow { looks: 0, found: Arc::clone(&found) }));
    let bare = LocalPod { device: None, ..LocalPod::clone(&pod("a", "10.0.0.1", true)) };
    desired.send_replace(complete(&[Arc::new(bare)]));
    // The source may go; what it said stays.
    drop(desired);

    found.notified().await;
    let located = |statuses: &PodStatuses| statuses.values().any(|status| status.pod.device.is_some());
    statuses.wait_for(located).await.unwrap();
    assert_eq!(
        kernel.take().into_iter().filter(|told| told.starts_with("steer")).collect::<Vec<_>>(),
        ["steer without device a published", "steer a published"]
    );
    running.abort();
}
