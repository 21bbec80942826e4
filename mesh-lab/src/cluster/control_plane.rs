//! etcd, the API server, the controllers and the scheduler.

use std::net::SocketAddr;

use super::credentials::{CONTROLLERS, Credentials, SCHEDULER};
use super::part::{Part, Ready};
use super::{CONTROL, Cluster, ClusterError, addresses};

pub(super) const API_SERVER: &str = "kube-apiserver";
const API_PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";

/// Where the API server is.
pub(super) fn url(cluster: &Cluster) -> Result<String, ClusterError> {
    let address = cluster.control_addresses()?.into_iter().next();
    let address = address.ok_or_else(|| ClusterError::Unknown(cluster.name().to_owned()))?;
    Ok(format!("https://{}", SocketAddr::new(address, API_PORT)))
}

/// The parts, in the order they start in.
pub(super) fn parts(cluster: &Cluster) -> Result<Vec<Part<'_>>, ClusterError> {
    let machine = cluster.lab.host(CONTROL)?;
    let part = |name: &str| Part::new(cluster, name, machine, name);
    let credentials = Credentials::of(cluster);
    Ok(vec![
        part("etcd").program("etcd".into()).arguments(etcd(cluster)),
        part(API_SERVER)
            .program(cluster.program(API_SERVER))
            .arguments(api_server(cluster, &credentials)?)
            .ready(Ready::ApiServer),
        part(CONTROLLERS).program(cluster.program(CONTROLLERS)).arguments(controllers(&credentials)),
        part(SCHEDULER).program(cluster.program(SCHEDULER)).arguments(vec![
            format!("--kubeconfig={}", credentials.kubeconfig(SCHEDULER)),
            "--leader-elect=false".to_owned(),
        ]),
    ])
}

fn etcd(cluster: &Cluster) -> Vec<String> {
    vec![
        format!("--data-dir={}", cluster.data().join("etcd").display()),
        // A cluster that lives for minutes need not survive a power cut.
        "--unsafe-no-fsync".to_owned(),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
    ]
}

fn api_server(cluster: &Cluster, credentials: &Credentials) -> Result<Vec<String>, ClusterError> {
    let own = cluster.control_addresses()?.into_iter().take(1);
    Ok(vec![
        format!("--etcd-servers={ETCD}"),
        format!("--advertise-address={}", addresses::listed(own)),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", credentials.file("api-server.pem")),
        format!("--tls-private-key-file={}", credentials.file("api-server-key.pem")),
        format!("--client-ca-file={}", credentials.file("ca.pem")),
        format!("--token-auth-file={}", credentials.file("tokens.csv")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged".to_owned(),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-signing-key-file={}", credentials.file("accounts-key.pem")),
        format!("--service-account-key-file={}", credentials.file("accounts.pem")),
        // The audience of the tokens that agents prove their node with.
        "--api-audiences=https://kubernetes.default.svc,istio-ca".to_owned(),
        format!("--service-cluster-ip-range={}", addresses::listed(addresses::services())),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        // No kube-proxy runs beside it, so cluster IPs lead nowhere from here: with this it calls the endpoints of a service instead,
        // of webhooks as well, and this machine has routes to all pods.
        "--enable-aggregator-routing".to_owned(),
    ])
}

fn controllers(credentials: &Credentials) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", credentials.kubeconfig(CONTROLLERS)),
        format!("--service-account-private-key-file={}", credentials.file("accounts-key.pem")),
        format!("--root-ca-file={}", credentials.file("ca.pem")),
        format!("--cluster-signing-cert-file={}", credentials.file("ca.pem")),
        format!("--cluster-signing-key-file={}", credentials.file("ca-key.pem")),
        "--use-service-account-credentials".to_owned(),
        "--leader-elect=false".to_owned(),
        // Nodes have their ranges from the lab.
        "--allocate-node-cidrs=false".to_owned(),
        // With an election, controllers that have lost the API server give up and later begin anew, with time for every node. These
        // stay, and would take nodes for lost that could not report for a minute.
        "--node-monitor-grace-period=120s".to_owned(),
    ]
}
