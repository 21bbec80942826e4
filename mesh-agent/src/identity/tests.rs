//! Handshakes between real endpoints: who is let in, and what either side says of who is not.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_lab::certificates::{Authority, Issued, Leaf};
use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use webpki::OwnedCertRevocationList;

use super::*;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A trust in `authority` with domain cluster.local and alias old.local.
fn trust(authority: &Authority) -> Arc<Trust> {
    let trust = Trust::new(["cluster.local".into(), "old.local".into()], Arc::new(SystemClock));
    trust.set_roots(RootSource::File, [root(authority)]).unwrap();
    trust
}

fn root(authority: &Authority) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(authority.root_pem().as_bytes()).unwrap()
}

fn lists(pem: &str) -> Revocation {
    let list = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap();
    Revocation::Lists(vec![OwnedCertRevocationList::from_der(&list).unwrap().into()])
}

fn credentials(issued: &Issued, trust: &Arc<Trust>) -> Credentials {
    Credentials::from_pem(&issued.chain, &issued.key, trust).unwrap()
}

/// What each side makes of a handshake: whom it met, or why not.
#[derive(Debug)]
struct Met {
    by_client: Result<Identity, PeerError>,
    by_server: Result<Identity, PeerError>,
}

async fn meet(client: &rustls::ClientConfig, server: &rustls::ServerConfig) -> Met {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server.clone()));
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await?;
        let peer = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
        stream.write_all(b"!").await?;
        stream.shutdown().await?;
        Ok(peer)
    };
    let connector = TlsConnector::from(Arc::new(client.clone()));
    let connecting = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::from(address.ip());
        let mut stream = connector.connect(name, stream).await?;
        let peer = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec);
        // Only now does a client hear that a server refused it.
        stream.read_exact(&mut [0]).await?;
        Ok(peer)
    };
    let (by_server, by_client) = tokio::join!(serving, connecting);
    let identity = |met: io::Result<Option<Vec<CertificateDer<'_>>>>| {
        met.map_err(|error| PeerError::from_io(&error)).and_then(|peer| peer_identity(peer.as_deref()))
    };
    Met { by_client: identity(by_client), by_server: identity(by_server) }
}

#[tokio::test]
async fn both_sides_know_who_the_other_is() {
    let authority = Authority::root("mesh").unwrap();
    let intermediate = authority.intermediate("mesh, node side").unwrap();
    let trust = trust(&authority);
    let server = credentials(&intermediate.issue(&Leaf::workload(WEB)).unwrap(), &trust);
    for client in [CLIENT, "spiffe://old.local/ns/shop/sa/client"] {
        let credentials = credentials(&authority.issue(&Leaf::workload(client)).unwrap(), &trust);
        let met = meet(&credentials.client(), &server.server()).await;
        assert_eq!(met.by_server.unwrap().to_string(), client);
        let web = met.by_client.unwrap();
        assert_eq!(web.to_string(), WEB);
        let other = Identity::new("cluster.local", "shop", "other");
        check_peer_is(&web, &[other.clone(), web.clone()]).unwrap();
        let refused = check_peer_is(&web, std::slice::from_ref(&other)).unwrap_err();
        assert_eq!(refused.to_string(), format!("the peer is {WEB} instead of {other}"));
    }
}

/// A certificate with something wrong, what the side that sees it says, and what the other side is told.
struct Wrong {
    leaf: Leaf,
    authority: fn(&Authorities) -> &Authority,
    reason: &'static str,
    told: &'static str,
    /// That it names nobody is the client's own check, after the handshake.
    client_asks: bool,
}

struct Authorities {
    ours: Authority,
    theirs: Authority,
    namesake: Authority,
}

fn wrong_certificates() -> Vec<Wrong> {
    let good = Leaf::workload("spiffe://cluster.local/ns/shop/sa/wrong");
    let now = SystemTime::now();
    let wrong = |leaf: &Leaf, reason, told| Wrong {
        leaf: leaf.clone(),
        authority: |authorities| &authorities.ours,
        reason,
        told,
        client_asks: false,
    };
    let identity = |uris: &[&str], reason| Wrong {
        client_asks: true,
        ..wrong(
            &Leaf { uris: uris.iter().map(ToString::to_string).collect(), ..Leaf::default() },
            reason,
            "its identity, or its trust domain, is not accepted there",
        )
    };
    let by = |authority, wrong: Wrong| Wrong { authority, ..wrong };
    vec![
        by(
            |authorities| &authorities.theirs,
            wrong(&good, "does not lead to a root that is trusted here", "does not lead to a root"),
        ),
        by(
            |authorities| &authorities.namesake,
            wrong(&good, "wrong signature, or is of another root with the same name", "wrong signature"),
        ),
        wrong(
            &Leaf { not_before: now - 2 * DAY, not_after: now - DAY, ..good.clone() },
            "certificate expired at 20",
            "expired, or is not valid yet",
        ),
        wrong(
            &Leaf { not_before: now + DAY, not_after: now + 2 * DAY, ..good.clone() },
            "certificate is not valid before 20",
            "expired, or is not valid yet",
        ),
        wrong(&Leaf { serial: Some(66), ..good.clone() }, "certificate is revoked", "it is revoked"),
        wrong(
            &Leaf { usages: vec![ExtendedKeyUsagePurpose::CodeSigning], ..good.clone() },
            "not made for its side",
            "not made for our side",
        ),
        identity(&[], "names no identity"),
        identity(&[CLIENT, WEB], "names 2 identities instead of one"),
        identity(&["https://cluster.local/ns/shop/sa/wrong"], "names no workload: \"https://cluster.local"),
    ]
}

#[tokio::test]
async fn each_wrong_certificate_is_refused_for_its_own_reason_on_both_sides() {
    let authorities = Authorities {
        ours: Authority::root("mesh").unwrap(),
        theirs: Authority::root("another mesh").unwrap(),
        namesake: Authority::root("mesh").unwrap(),
    };
    let trust = trust(&authorities.ours);
    trust.set_revocation(lists(&authorities.ours.revoke(&[7, 66]).unwrap()));
    let good = credentials(&authorities.ours.issue(&Leaf::workload(WEB)).unwrap(), &trust);

    for Wrong { leaf, authority, reason, told, client_asks } in wrong_certificates() {
        let issued = authority(&authorities).issue(&leaf).unwrap();
        let (client, server) = unchecked(&issued, &trust);

        let met = meet(&client, &good.server()).await;
        let refused = met.by_server.unwrap_err().to_string();
        assert!(refused.contains(reason), "as a client: {refused:?} should contain {reason:?}");
        let heard = met.by_client.unwrap_err().to_string();
        assert!(heard.contains("the peer refused our certificate"), "{heard}");
        assert!(heard.contains(told), "as a client it is told {heard:?} instead of {told:?}");

        let met = meet(&good.client(), &server).await;
        let refused = met.by_client.unwrap_err().to_string();
        assert!(refused.contains(reason), "as a server: {refused:?} should contain {reason:?}");
        if !client_asks {
            let heard = met.by_server.unwrap_err().to_string();
            assert!(heard.contains(told), "as a server it is told {heard:?} instead of {told:?}");
        }
    }
}

/// TLS with a certificate that [`Credentials`] would not take.
fn unchecked(issued: &Issued, trust: &Arc<Trust>) -> (rustls::ClientConfig, rustls::ServerConfig) {
    let authority = Authority::root("placeholder").unwrap();
    let base = credentials(&authority.issue(&Leaf::workload(WEB)).unwrap(), trust);
    let chain = CertificateDer::pem_slice_iter(issued.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
    let key = trust.provider().key_provider.load_private_key(key).unwrap();
    let certified = rustls::sign::SingleCertAndKey::from(rustls::sign::CertifiedKey::new(chain, key));
    let certified = Arc::new(certified);
    let mut client = rustls::ClientConfig::clone(&base.client());
    client.client_auth_cert_resolver = Arc::clone(&certified) as _;
    let mut server = rustls::ServerConfig::clone(&base.server());
    server.cert_resolver = certified;
    (client, server)
}

/// A client without a certificate.
#[derive(Debug)]
struct Nothing;

impl rustls::client::ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_of_another_trust_domain_or_without_a_certificate_is_refused() {
    let authority = Authority::root("mesh").unwrap();
    let trust = trust(&authority);
    let web = credentials(&authority.issue(&Leaf::workload(WEB)).unwrap(), &trust);
    let stranger = "spiffe://elsewhere/ns/shop/sa/client";
    let issued = authority.issue(&Leaf::workload(stranger)).unwrap();
    let mut client = rustls::ClientConfig::clone(&credentials(&issued, &trust).client());

    let met = meet(&client, &web.server()).await;
    let refused = met.by_server.unwrap_err().to_string();
    assert_eq!(
        refused,
        format!("the peer is {stranger}, which is not of trust domain cluster.local or old.local")
    );
    assert!(met.by_client.unwrap_err().to_string().contains("its trust domain"), "it is told");

    client.client_auth_cert_resolver = Arc::new(Nothing);
    let met = meet(&client, &web.server()).await;
    assert_eq!(met.by_server.unwrap_err(), PeerError::NoCertificate);
    assert_eq!(met.by_client.unwrap_err(), PeerError::RefusedOurs("there was none"));
}
