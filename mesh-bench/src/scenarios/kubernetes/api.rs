//! The Kubernetes API: the stand-in for its server, on a host of a lab, in this process.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mesh_lab::{ApiServer, Machine, ResourceType};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::synthetic::SyntheticMesh;

const PORT: u16 = 6443;
/// Threads that serve.
const THREADS: usize = 2;
/// How often it is looked whether everything was listed.
const POLL: Duration = Duration::from_millis(20);

/// The kinds that the mesh reads.
const KINDS: [&str; 9] = [
    "namespaces",
    "nodes",
    "pods",
    "services",
    "endpointslices",
    "serviceentries",
    "workloadentries",
    "authorizationpolicies",
    "peerauthentications",
];

/// A server that runs until it is dropped.
pub(super) struct Api {
    server: ApiServer,
    runtime: Option<Runtime>,
}

impl Api {
    /// Serves a mesh, and Istio's kinds without objects, on loopback of a machine.
    pub(super) fn start(machine: &Machine, mesh: SyntheticMesh) -> Result<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        let listener = machine.namespace().tcp_listener(address).context("the API server")?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
        let server = {
            let _inside = runtime.enter();
            ApiServer::serve(listener)?
        };
        let versions = ["v1", "v1beta1"];
        for (plural, kind) in [("serviceentries", "ServiceEntry"), ("workloadentries", "WorkloadEntry")] {
            server.install(ResourceType::namespaced("networking.istio.io", &versions, plural, kind));
        }
        for (plural, kind) in
            [("authorizationpolicies", "AuthorizationPolicy"), ("peerauthentications", "PeerAuthentication")]
        {
            server.install(ResourceType::namespaced("security.istio.io", &versions, plural, kind));
        }
        mesh.objects().for_each(|object| server.apply(object));
        Ok(Self { server, runtime: Some(runtime) })
    }

    /// How a client on the same machine reaches it.
    pub(super) fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: bench, cluster: {{server: \"{}\"}}}}]\n\
             users: [{{name: bench, user: {{}}}}]\n\
             contexts: [{{name: bench, context: {{cluster: bench, user: bench}}}}]\ncurrent-context: bench\n",
            self.server.url()
        )
    }

    /// Changes a field of an object, which must be there.
    pub(super) fn set(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        field: &str,
        value: Value,
    ) -> Result<()> {
        let object = self.server.object(kind, namespace, name);
        let mut object = object.with_context(|| format!("there is no {kind} {namespace}/{name}"))?;
        let held = object.pointer_mut(field).with_context(|| format!("no {field} in {namespace}/{name}"))?;
        *held = value;
        self.server.apply(object);
        Ok(())
    }

    /// Is away for a moment and comes back without a past; returns once every kind was listed and is followed again.
    pub(super) fn restart(&self, patience: Duration) -> Result<()> {
        self.server.set_away(true);
        self.server.expire();
        let before = self.server.answered().len();
        self.server.set_away(false);
        let end = Instant::now() + patience;
        loop {
            let answered = self.server.answered();
            let since = answered.get(before..).unwrap_or_default();
            let lagging = KINDS.into_iter().find(|kind| {
                let mut of_kind = since.iter().filter(|request| request.resource == *kind);
                !(of_kind.any(|request| request.verb == "list")
                    && of_kind.any(|request| request.verb == "watch"))
            });
            match lagging {
                None => return Ok(()),
                Some(kind) if Instant::now() > end => {
                    bail!("{kind} were not listed again within {patience:?}")
                }
                Some(_) => thread::sleep(POLL),
            }
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
