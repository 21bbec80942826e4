//! A certificate service such as mesh-control's and istiod's.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use mesh_lab::certificates::{Authority, Leaf};
use mesh_xds::proto::auth::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use mesh_xds::proto::auth::{IstioCertificateRequest, IstioCertificateResponse};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// The token that is accepted.
pub(crate) const TOKEN: &str = "the-token-of-this-node";

pub(crate) struct CertificateService {
    pub(crate) address: SocketAddr,
    pub(crate) signer: Arc<Signer>,
    serving: AbortHandle,
}

impl Drop for CertificateService {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(crate) struct Signer {
    pub(crate) root: Authority,
    /// Serial number of the next certificate.
    pub(crate) serial: Mutex<u64>,
    /// Who asked with which token.
    pub(crate) asked: Mutex<Vec<String>>,
}

impl CertificateService {
    /// Serves over TLS with a certificate of `server_authority`.
    pub(crate) async fn start(server_authority: &Authority, root: Authority) -> Self {
        let signer = Arc::new(Signer { root, serial: Mutex::new(1), asked: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let issued = server_authority.issue(&Leaf::server("127.0.0.1")).unwrap();
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(issued.chain, issued.key));
        let serving = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(IstioCertificateServiceServer::from_arc(Arc::clone(&signer)))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let serving = tokio::spawn(async move { serving.await.unwrap() }).abort_handle();
        Self { address, signer, serving }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Signer {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request.metadata().get("authorization").and_then(|token| token.to_str().ok());
        if token != Some(&format!("Bearer {TOKEN}")) {
            return Err(Status::unauthenticated(format!("bad token {token:?}")));
        }
        let request = request.into_inner();
        let impersonated = format!("{:?}", request.metadata.unwrap().fields["ImpersonatedIdentity"].kind);
        let identity = impersonated.split('"').nth(1).unwrap().to_owned();
        self.asked.lock().unwrap().push(identity.clone());
        let serial = {
            let mut serial = self.serial.lock().unwrap();
            *serial += 1;
            *serial
        };
        let now = SystemTime::now();
        let leaf = Leaf {
            not_before: now - Duration::from_secs(1),
            not_after: now + Duration::from_secs(u64::try_from(request.validity_duration).unwrap()),
            serial: Some(serial),
            ..Leaf::workload(identity)
        };
        let mut cert_chain = self
            .root
            .sign(&request.csr, &leaf)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        cert_chain.push(self.root.root_pem().to_owned());
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}
