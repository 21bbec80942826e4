//! Who gets which certificates.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_xds::identity::Identity;
use mesh_xds::proto::auth::IstioCertificateRequest;
use mesh_xds::proto::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use mesh_xds::transport::{TlsConfig, Transport, describe};
use rcgen::{CertificateParams, KeyPair};
use tonic::{Code, Request, Status};

use crate::world::{ENROLLED, World};

pub(super) fn an_agent_gets_no_identity_of_another_node(world: &World) -> Result<()> {
    let namespace = world.namespace("identity", &[ENROLLED])?;
    for (name, node) in [("near", "node1"), ("far", "node2")] {
        namespace.client_of_its_own(name, node)?;
        namespace.wait_for_enrolment(name, true)?;
    }
    let authority = Authority::of(world, "node1")?;
    let identity = |account: &str| Identity::new("cluster.local", namespace.name(), account);
    let chain = authority.sign(&identity("near"))?.map_err(|status| anyhow::anyhow!(describe(&status)))?;
    ensure!(chain.len() > 1, "a certificate and its root were expected, not {chain:?}");

    for (account, why) in [("far", "node2"), ("nobody", "node1")] {
        let Err(status) = authority.sign(&identity(account))? else {
            anyhow::bail!("the agent of node1 has got a certificate of {account}");
        };
        ensure!(status.code() == Code::PermissionDenied, "{account}: {status:?}");
        ensure!(status.message().contains(account), "{why}: the refusal does not name whom: {status:?}");
    }
    Ok(())
}

pub(super) fn nobody_but_agents_gets_a_certificate(world: &World) -> Result<()> {
    let namespace = world.namespace("impostor", &[ENROLLED])?;
    namespace.client_of_its_own("near", "node1")?;
    namespace.wait_for_enrolment("near", true)?;
    let authority = Authority::of(world, "node1")?;
    let token = ["create", "token", "near", "--namespace", namespace.name(), "--audience=istio-ca"];
    let bound = ["--bound-object-kind=Pod", "--bound-object-name=near"];
    authority.set_token(&world.cluster().kubectl(token.iter().chain(&bound))?)?;
    let identity = Identity::new("cluster.local", namespace.name(), "near");
    let Err(status) = authority.sign(&identity)? else {
        anyhow::bail!("a pod has got a certificate with its own token");
    };
    ensure!(status.message().contains("is not an agent"), "{status:?}");
    Ok(())
}

/// The authority of the mesh, as an agent calls it.
struct Authority<'a> {
    world: &'a World,
    server: String,
    transport: Transport,
    /// Holds the token and the roots.
    files: tempfile::TempDir,
}

impl<'a> Authority<'a> {
    /// With the token of the agent of a node.
    fn of(world: &'a World, node: &str) -> Result<Self> {
        let system = world.chart().namespace();
        let files = tempfile::tempdir()?;
        let template = r#"go-template={{index .data "root-cert.pem" | base64decode}}"#;
        let roots = world.cluster().kubectl([
            "get",
            "secret",
            "mesh-ca",
            "--namespace",
            system,
            "--output",
            template,
        ])?;
        let transport = Transport {
            tls: Some(TlsConfig {
                roots: files.path().join("roots.pem"),
                server_name: Some(format!("mesh-control.{system}.svc")),
            }),
            token_file: Some(files.path().join("token")),
            ..Transport::default()
        };
        std::fs::write(files.path().join("roots.pem"), roots)?;
        let selector = "--selector=app.kubernetes.io/name=mesh-control";
        let pods = world.cluster().get(&["pods", "--namespace", system, selector])?;
        let address = pods.pointer("/items/0/status/podIP").and_then(|address| address.as_str());
        let server = format!("https://{}:15012", address.context("no mesh-control runs")?);
        let authority = Self { world, server, transport, files };
        let token = ["create", "token", "mesh-agent", "--namespace", system, "--audience=istio-ca"];
        let agent = format!("--bound-object-name={}", world.agent(node)?);
        let bound = ["--bound-object-kind=Pod", &agent];
        authority.set_token(&world.cluster().kubectl(token.iter().chain(&bound))?)?;
        Ok(authority)
    }

    fn set_token(&self, token: &str) -> Result<()> {
        Ok(std::fs::write(self.files.path().join("token"), token)?)
    }

    /// Asks for a certificate.
    fn sign(&self, identity: &Identity) -> Result<Result<Vec<String>, Status>> {
        let csr = CertificateParams::default().serialize_request(&KeyPair::generate()?)?.pem()?;
        let message = IstioCertificateRequest::on_behalf_of(identity, csr, Duration::from_secs(3600));
        let outside = self.world.cluster().lab().host("control")?;
        outside.namespace().block_on(|| async {
            let [server] = self
                .transport
                .addresses(std::slice::from_ref(&self.server))?
                .try_into()
                .map_err(|servers| anyhow::anyhow!("one server, not {servers:?}"))?;
            let channel = self.transport.connect(&server).await?;
            let mut request = Request::new(message);
            if let Some(token) = self.transport.bearer_token().await? {
                request.metadata_mut().insert("authorization", token);
            }
            let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await;
            Ok(answer.map(|answer| answer.into_inner().cert_chain))
        })?
    }
}
