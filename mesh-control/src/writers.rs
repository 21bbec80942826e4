//! What is written to the Kubernetes API, by the one of several servers that leads: the registration of the webhook and the
//! status of policies and entries. What else is added belongs here, behind the same lease.

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, LeaderSettings, Registrar};
use crate::authority::Authority;
use crate::conditions::StatusWriter;
use crate::leader::{Election, LeaderStatus};
use crate::metrics::Metrics;

/// Writes to the Kubernetes API, on one of several servers.
#[derive(Debug)]
pub(crate) struct Writers {
    election: Election,
    registrar: Option<Registrar>,
    conditions: Option<StatusWriter>,
}

impl Writers {
    pub(crate) fn new(
        settings: LeaderSettings,
        client: Client,
        root_namespace: &str,
        admission: Option<&Arc<Admission>>,
        authority: Option<&Arc<Authority>>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let registrar = admission.zip(authority).map(|(admission, authority)| {
            Registrar::new(Arc::clone(admission), client.clone(), authority.roots())
        });
        let conditions = settings
            .write_status
            .then(|| StatusWriter::new(client.clone(), root_namespace, Arc::clone(metrics)));
        let election = Election::new(client, settings.lease, settings.identity, Arc::clone(metrics));
        Self { election, registrar, conditions }
    }

    /// Who leads, now and later.
    pub(crate) fn leader(&self) -> watch::Receiver<LeaderStatus> {
        self.election.status()
    }

    /// What writes statuses, if anything is to.
    pub(crate) fn conditions(&self) -> Option<StatusWriter> {
        self.conditions.clone()
    }

    /// Runs until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let Self { election, registrar, conditions } = self;
        let write = || {
            let (registrar, conditions) = (registrar.clone(), conditions.clone());
            async move {
                let register = async {
                    if let Some(registrar) = registrar {
                        registrar.keep().await
                    }
                };
                let report = async {
                    if let Some(conditions) = conditions {
                        conditions.keep().await
                    }
                };
                futures::join!(register, report);
            }
        };
        election.run(stop, write).await;
    }
}
