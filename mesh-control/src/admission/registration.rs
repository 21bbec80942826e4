//! The webhook's entry in the API server: its caBundle is the roots of the mesh's authority, whoever else writes there.
//!
//! Only the leader writes. It looks when the configuration changes, when the roots do, and a while after it failed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Admission;

/// Time between writes: whoever else insists on another bundle is not to be an endless loop at full speed.
const PAUSE: Duration = Duration::from_secs(1);
/// Time after a write that failed.
const RETRY: Duration = Duration::from_secs(5);
/// Who the API server says has written.
const FIELD_MANAGER: &str = "mesh-control";
/// HTTP status of what the service account may not do.
const FORBIDDEN: u16 = 403;

/// What became of the registration, as far as this server, while it leads, has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Registration {
    /// Whether the API server verifies the webhook by the roots of now; unknown to servers that do not lead.
    pub(super) registered: Option<bool>,
    /// Why not.
    pub(super) problem: Option<String>,
}

/// Keeps the registration.
#[derive(Debug, Clone)]
pub(crate) struct Registrar {
    admission: Arc<Admission>,
    configurations: Api<ValidatingWebhookConfiguration>,
    roots: watch::Receiver<Arc<str>>,
}

impl Registrar {
    pub(crate) fn new(admission: Arc<Admission>, client: Client, roots: watch::Receiver<Arc<str>>) -> Self {
        Self { admission, configurations: Api::all(client), roots }
    }

    /// Keeps the caBundle right for as long as it is polled.
    pub(crate) async fn keep(mut self) {
        let _unknown_afterwards = Forget(Arc::clone(&self.admission));
        let name = self.admission.settings.configuration.clone();
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut events = pin!(watcher(self.configurations.clone(), only).default_backoff());
        let mut known = None;
        let mut listed = false;
        loop {
            let settled = !listed || self.settle(known.as_ref(), &name).await;
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => (known, listed) = (None, false),
                    Some(Ok(Event::InitApply(object) | Event::Apply(object))) => known = Some(object),
                    Some(Ok(Event::Delete(_))) => known = None,
                    Some(Ok(Event::InitDone)) => listed = true,
                    Some(Err(error)) => self.note(Some(format!("{name} cannot be watched: {error}"))),
                    None => return,
                },
                changed = self.roots.changed() => if changed.is_err() { return },
                () = sleep(RETRY), if !settled => {}
            }
        }
    }

    /// Mends the bundle if it is another; whether there is nothing left to do.
    async fn settle(&mut self, known: Option<&ValidatingWebhookConfiguration>, name: &str) -> bool {
        let roots = Arc::clone(&self.roots.borrow_and_update());
        if roots.is_empty() {
            self.note(Some("the authority has no root yet".to_owned()));
            return true;
        }
        let Some(known) = known else {
            self.note(Some(format!(
                "there is no ValidatingWebhookConfiguration {name}: nobody asks the webhook"
            )));
            return true;
        };
        let bundle = ByteString(roots.as_bytes().to_vec());
        let others: Vec<_> = known
            .webhooks
            .iter()
            .flatten()
            .filter(|webhook| webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        if others.is_empty() {
            self.note(None);
            return true;
        }
        // Merged by name: what somebody has put before or after is left alone.
        let patch = Patch::Strategic(json!({"webhooks": others}));
        let written = self.configurations.patch(name, &PatchParams::apply(FIELD_MANAGER), &patch).await;
        match written {
            Ok(_) => {
                info!(configuration = name, "the API server verifies the webhook by these roots from now on");
                self.note(None);
                sleep(PAUSE).await;
                true
            }
            Err(error) => {
                self.note(Some(explain(name, &error)));
                false
            }
        }
    }

    fn note(&self, problem: Option<String>) {
        let registration = Registration { registered: Some(problem.is_none()), problem };
        self.admission.metrics.set_registered(registration.problem.is_none());
        let before = self.admission.registration.swap(Arc::new(registration.clone()));
        if let Some(problem) = registration.problem
            && before.problem.as_ref() != Some(&problem)
        {
            warn!(problem, "the webhook is not registered as it should be");
        }
    }
}

/// Another server knows more, once this one does not lead any more.
struct Forget(Arc<Admission>);

impl Drop for Forget {
    fn drop(&mut self) {
        self.0.registration.store(Arc::default());
        self.0.metrics.set_registered(false);
    }
}

fn explain(name: &str, error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == FORBIDDEN => format!(
            "{}: allow the service account of mesh-control to get, list, watch and patch {name}",
            status.message
        ),
        error => format!("the caBundle of {name} cannot be written: {error}"),
    }
}
