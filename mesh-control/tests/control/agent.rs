//! An agent as far as configuration goes: the delta client of `mesh-xds`, and what it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mesh_xds::client::{Client, ClientConfig, Rejection, Subscription, Update};
use mesh_xds::proto::Name;
use mesh_xds::proto::discovery::Node;
use mesh_xds::proto::security::Authorization;
use mesh_xds::proto::workload::Address;
use mesh_xds::proto::workload::address::Type;
use tokio::task::AbortHandle;

const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) resources: BTreeMap<String, Address>,
    pub(super) policies: BTreeMap<String, Authorization>,
    /// Names in the order they came, removed ones with a `-`.
    pub(super) log: Vec<String>,
    /// Responses by type.
    pub(super) responses: BTreeMap<String, usize>,
}

pub(super) struct Agent {
    told: Arc<Mutex<Told>>,
    task: AbortHandle,
}

impl Agent {
    pub(super) fn connect(uri: &str) -> Self {
        Self::with(uri, |config| config, |_| Vec::new())
    }

    pub(super) fn with(
        uri: &str,
        configure: impl FnOnce(ClientConfig) -> ClientConfig,
        mut refuse: impl FnMut(&Update) -> Vec<Rejection> + Send + 'static,
    ) -> Self {
        let node = Node::new(
            "ztunnel~127.0.0.1~agent.mesh-system~mesh-system.svc.cluster.local",
            [("NODE_NAME", "n1")],
        );
        let subscriptions =
            vec![Subscription::wildcard::<Authorization>(), Subscription::wildcard::<Address>()];
        let config = configure(ClientConfig::new(vec![uri.to_owned()], node, subscriptions));
        let told = Arc::new(Mutex::new(Told::default()));
        let sink = Arc::clone(&told);
        let handler = move |update: &Update| {
            let mut told = sink.lock().unwrap();
            *told.responses.entry(update.type_url.to_string()).or_default() += 1;
            let mut malformed = Vec::new();
            if *update.type_url == *Authorization::type_url() {
                for (resource, policy) in update.decode::<Authorization>(&mut malformed) {
                    told.log.push(resource.name.clone());
                    told.policies.insert(resource.name.clone(), policy);
                }
                told.policies.retain(|name, _| !update.removed.contains(name));
            } else {
                for (resource, address) in update.decode::<Address>(&mut malformed) {
                    told.log.push(resource.name.clone());
                    told.resources.insert(resource.name.clone(), address);
                }
                told.resources.retain(|name, _| !update.removed.contains(name));
            }
            told.log.extend(update.removed.iter().map(|name| format!("-{name}")));
            assert!(malformed.is_empty(), "{malformed:?}");
            refuse(update)
        };
        let (client, _) = Client::new(config, handler).unwrap();
        Self { told, task: tokio::spawn(client.run()).abort_handle() }
    }

    /// Waits until what it was told is as wanted.
    pub(super) async fn eventually<T>(&self, what: &str, wanted: impl Fn(&Told) -> Option<T>) -> T {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = wanted(&self.told.lock().unwrap()) {
                return value;
            }
            assert!(Instant::now() < until, "never {what}: {:?}", self.told.lock().unwrap().log);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn has(&self, count: usize) {
        self.eventually(&format!("{count} resources"), |told| (told.resources.len() == count).then_some(()))
            .await;
    }

    /// What came since the last call.
    pub(super) fn in_order(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap().log)
    }

    /// What came since the last call, sorted.
    pub(super) fn news(&self) -> Vec<String> {
        let mut log = self.in_order();
        log.sort();
        log
    }

    /// Waits until it holds these policies.
    pub(super) async fn has_policies(&self, names: &[&str]) {
        self.eventually(&format!("{names:?}"), |told| told.policies.keys().eq(names).then_some(())).await;
    }

    /// The first port of a service.
    pub(super) fn port(&self, service: &str) -> Option<u32> {
        port(&self.told.lock().unwrap(), service)
    }

    /// Waits until a service has this port.
    pub(super) async fn sees_port(&self, service: &str, wanted: u32) {
        self.eventually(&format!("port {wanted}"), |told| {
            (port(told, service) == Some(wanted)).then_some(())
        })
        .await;
    }
}

fn port(told: &Told, service: &str) -> Option<u32> {
    match told.resources.get(service)?.r#type.as_ref()? {
        Type::Service(service) => Some(service.ports.first()?.service_port),
        Type::Workload(_) => None,
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}
