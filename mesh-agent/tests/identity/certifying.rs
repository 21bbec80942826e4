use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::identity::{
    Credentials, Identities, Identity, IdentityManager, IdentitySettings, PeerError, PeerSide, SystemClock,
    Wanted, check_peer_is, peer_identity,
};
use mesh_lab::certificates::Authority;
use mesh_xds::transport::{TlsConfig, Transport};
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::authority::{CertificateService, TOKEN};

struct Agent {
    identities: Identities,
    running: AbortHandle,
    _wanted: watch::Sender<Wanted>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Agent {
    fn start(settings: &IdentitySettings, service_accounts: &[&str]) -> Self {
        let wanted: BTreeMap<_, _> =
            service_accounts.iter().map(|name| (Arc::new(identity(name)), vec![(*name).into()])).collect();
        let (wanted, receiver) = watch::channel(Arc::new(wanted));
        let (identities, manager) = IdentityManager::new(settings, receiver, Arc::new(SystemClock)).unwrap();
        let running = tokio::spawn(manager.run(std::future::pending())).abort_handle();
        Self { identities, running, _wanted: wanted }
    }

    async fn ready(&self, service_account: &str) -> Arc<Credentials> {
        let identity = identity(service_account);
        let ready = timeout(Duration::from_secs(20), self.identities.ready(&identity)).await;
        ready.unwrap_or_else(|_| panic!("{:#?}", self.identities.list())).unwrap()
    }
}

fn identity(service_account: &str) -> Identity {
    Identity::new("cluster.local", "shop", service_account)
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), holds).await.expect(what);
}

/// The files of an agent, and how it reaches the authority with them.
struct Node {
    directory: TempDir,
    settings: IdentitySettings,
}

impl Node {
    fn new(server_authority: &Authority, servers: Vec<String>) -> Self {
        let directory = TempDir::new().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("ca.pem"), server_authority.root_pem()).unwrap();
        let transport = Transport {
            tls: Some(TlsConfig { roots: path("ca.pem"), server_name: None }),
            token_file: Some(path("token")),
            ..Transport::default()
        };
        let settings = IdentitySettings {
            backoff: (Duration::from_millis(20), Duration::from_millis(200)),
            reload_interval: Duration::from_millis(50),
            ..IdentitySettings::new(servers, transport, "cluster.local".into())
        };
        let node = Self { directory, settings };
        node.write("token", TOKEN);
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }
}

/// A handshake and one byte each way; returns what the server knows of the client.
async fn meet(
    client: &Credentials,
    server: &Credentials,
) -> Result<Vec<CertificateDer<'static>>, (PeerError, PeerError)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async {
        let (stream, _) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(server.server()).accept(stream).await?;
        stream.write_all(b"!").await?;
        Ok::<_, std::io::Error>(stream.get_ref().1.peer_certificates().unwrap().to_vec())
    };
    let connecting = async {
        let stream = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(client.client());
        let mut stream = connector.connect(ServerName::from(address.ip()), stream).await?;
        let peer = peer_identity(stream.get_ref().1.peer_certificates()).unwrap();
        check_peer_is(&peer, &[Identity::clone(server.identity())]).unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        stream.read_exact(&mut [0]).await
    };
    match tokio::join!(serving, connecting) {
        (Ok(chain), Ok(_)) => Ok(chain),
        (served, connected) => {
            let reason = |result: Option<std::io::Error>| match result {
                Some(error) => PeerError::from_io(&error),
                None => PeerError::Handshake("succeeded".into()),
            };
            Err((reason(served.err()), reason(connected.err())))
        }
    }
}

#[tokio::test]
async fn certificates_are_signed_renewed_and_good_for_meeting_others() {
    let server_authority = Authority::root("servers").unwrap();
    let service = CertificateService::start(&server_authority, Authority::root("mesh").unwrap()).await;
    let mut node = Node::new(&server_authority, vec![service.url()]);
    node.settings.lifetime = Duration::from_secs(4);
    let agent = Agent::start(&node.settings, &["client", "web"]);
    let (client, web) = (agent.ready("client").await, agent.ready("web").await);
    let seen = meet(&client, &web).await.unwrap();
    assert_eq!(peer_identity(Some(&seen)), Ok(identity("client")));
    let mut asked = service.signer.asked.lock().unwrap().clone();
    asked.sort();
    assert_eq!(asked[..2], [identity("client").to_string(), identity("web").to_string()]);

    eventually("renewed", || {
        agent.identities.current(&identity("web")).unwrap().generation() > web.generation()
    })
    .await;
    let renewed = agent.identities.current(&identity("web")).unwrap();
    assert!(renewed.expires() > web.expires());
    let client = agent.ready("client").await;
    meet(&client, &renewed).await.unwrap();
}

#[tokio::test]
async fn the_token_is_read_anew_and_another_server_takes_over() {
    let server_authority = Authority::root("servers").unwrap();
    let service = CertificateService::start(&server_authority, Authority::root("mesh").unwrap()).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let node = Node::new(&server_authority, vec![format!("https://{nobody}"), service.url()]);
    node.write("token", "stale");
    let agent = Agent::start(&node.settings, &["web"]);
    eventually("the reason is known", || {
        let status = agent.identities.list().remove(0);
        status.last_error.is_some_and(|error| error.contains("bad token") && error.contains("stale"))
    })
    .await;
    let pending = agent.identities.current(&identity("web")).unwrap_err().to_string();
    assert!(pending.contains("bad token"), "{pending}");
    node.write("token", TOKEN);
    agent.ready("web").await;
}

#[tokio::test]
async fn an_authority_that_is_not_who_it_should_be_gets_no_token() {
    let impostor =
        CertificateService::start(&Authority::root("impostors").unwrap(), Authority::root("mesh").unwrap())
            .await;
    let node = Node::new(&Authority::root("servers").unwrap(), vec![impostor.url()]);
    let agent = Agent::start(&node.settings, &["web"]);
    eventually("refused", || {
        let status = agent.identities.list().remove(0);
        status.last_error.is_some_and(|error| error.contains("UnknownIssuer") && error.contains("ca.pem"))
    })
    .await;
    assert_eq!(impostor.signer.asked.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn a_revocation_list_ends_what_was_trusted_and_refuses_the_next_handshake() {
    let server_authority = Authority::root("servers").unwrap();
    let service = CertificateService::start(&server_authority, Authority::root("mesh").unwrap()).await;
    let mut node = Node::new(&server_authority, vec![service.url()]);
    node.settings.crl_file = Some(node.path("crl.pem"));
    node.write("crl.pem", &service.signer.root.revoke(&[]).unwrap());
    let agent = Agent::start(&node.settings, &["client", "web"]);
    let (client, web) = (agent.ready("client").await, agent.ready("web").await);
    // Until the list has been read, everybody is refused.
    let meeting = async {
        loop {
            match meet(&client, &web).await {
                Ok(seen) => return seen,
                Err((PeerError::NoRevocationList(_), _) | (_, PeerError::NoRevocationList(_))) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    let seen = timeout(Duration::from_secs(20), meeting).await.unwrap();
    let mut revision = agent.identities.trust().revision();
    assert_eq!(agent.identities.trust().still_trusted(PeerSide::Client, &seen), Ok(()));

    let serials: Vec<_> = agent.identities.list().into_iter().filter_map(|status| status.serial).collect();
    let serial = u64::from_str_radix(&serials[0], 16).unwrap();
    node.write("crl.pem", &service.signer.root.revoke(&[serial]).unwrap());
    timeout(Duration::from_secs(20), revision.changed()).await.unwrap().unwrap();
    assert_eq!(
        agent.identities.trust().still_trusted(PeerSide::Client, &seen),
        Err(PeerError::Revoked),
        "{serials:?}"
    );
    assert_eq!(
        meet(&client, &web).await.unwrap_err(),
        (PeerError::Revoked, PeerError::RefusedOurs("it is revoked"))
    );
}
