//! Whom the two sides of a tunnel trust, and what they say about it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_agent::identity::{Credentials, PeerError};
use mesh_agent::proxy::RelayEnd;
use mesh_agent::proxy::tunnel::{ServerError, TunnelEnd, TunnelFailure};
use mesh_agent::telemetry::ResponseFlag;
use mesh_lab::certificates::{Authority, Leaf};
use tokio::io::AsyncReadExt;

use crate::world::{
    Agent, Client, Mesh, credentials, echo, eventually, identity, on_worker, set_revoked, set_roots,
    settings, trust,
};

const HOUR: Duration = Duration::from_secs(3600);

fn expired(name: &str) -> Leaf {
    let now = SystemTime::now();
    Leaf { not_before: now - 2 * HOUR, not_after: now - HOUR, ..Leaf::workload(identity(name)) }
}

fn early(name: &str) -> Leaf {
    let now = SystemTime::now();
    Leaf { not_before: now + HOUR, not_after: now + 2 * HOUR, ..Leaf::workload(identity(name)) }
}

/// What a client says of a server with these credentials, of which it expects to be `web`.
async fn verdict_on_server(mesh: &Mesh, server: &Arc<Credentials>) -> PeerError {
    let agent = Agent::start(server, &settings()).await;
    let client = Client::new(&mesh.credentials("client"), &settings());
    let error = client.failure(&client.route(agent.address, "web", agent.address)).await;
    assert_eq!(error.flag(), ResponseFlag::TlsFailure);
    assert!(error.to_string().contains("sa/web"), "{error}");
    assert_eq!(agent.requests.get(), 0);
    assert_eq!(client.tunnels.count(), 0);
    match error.cause {
        TunnelFailure::Tls(reason) => reason,
        cause => panic!("{cause:?}"),
    }
}

/// What a server says of a client with these credentials, and the client of that.
async fn verdict_on_client(mesh: &Mesh, client: &Arc<Credentials>) -> (PeerError, String) {
    let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
    let client = Client::new(client, &settings());
    let error = client.failure(&client.route(agent.address, "web", agent.address)).await;
    assert_eq!(error.flag(), ResponseFlag::TlsFailure, "{error}");
    eventually("the server ends it", || agent.ended.borrow().len() == 1).await;
    assert_eq!(agent.requests.get(), 0);
    let end = agent.ended.borrow_mut().pop().unwrap();
    match end {
        Err(ServerError::Tls(reason)) => (reason, error.to_string()),
        end => panic!("{end:?}"),
    }
}

#[test]
fn servers_are_who_they_should_be_or_are_sent_nothing() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let stranger = Authority::root("stranger").unwrap();
        let web = Leaf::workload(identity("web"));
        let foreign = credentials(&stranger, &web, &trust(&[&mesh.authority, &stranger]));
        assert_eq!(verdict_on_server(&mesh, &foreign).await, PeerError::UnknownIssuer);
        let reason = verdict_on_server(&mesh, &mesh.credentials_of(&expired("web"))).await;
        assert!(matches!(reason, PeerError::Expired { .. }), "{reason}");
        let reason = verdict_on_server(&mesh, &mesh.credentials_of(&early("web"))).await;
        assert!(matches!(reason, PeerError::NotYetValid { .. }), "{reason}");
        let reason = verdict_on_server(&mesh, &mesh.credentials("db")).await;
        assert!(matches!(reason, PeerError::OtherIdentity { .. }), "{reason}");
        let lookalike = Leaf::workload("spiffe://evil.example/ns/shop/sa/web");
        let reason = verdict_on_server(&mesh, &mesh.credentials_of(&lookalike)).await;
        assert!(matches!(reason, PeerError::OtherIdentity { .. }), "{reason}");

        let revoked = Leaf { serial: Some(7), ..web };
        let list = mesh.authority.revoke(&[7]).unwrap();
        set_revoked(&mesh.trust, &list);
        assert_eq!(verdict_on_server(&mesh, &mesh.credentials_of(&revoked)).await, PeerError::Revoked);
    });
}

#[test]
fn clients_are_refused_and_told_why() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let stranger = Authority::root("stranger").unwrap();
        let leaf = Leaf::workload(identity("client"));
        let foreign = credentials(&stranger, &leaf, &trust(&[&mesh.authority, &stranger]));
        let (reason, told) = verdict_on_client(&mesh, &foreign).await;
        assert_eq!(reason, PeerError::UnknownIssuer);
        assert!(told.contains("does not lead to a root"), "{told}");
        let (reason, told) = verdict_on_client(&mesh, &mesh.credentials_of(&expired("client"))).await;
        assert!(matches!(reason, PeerError::Expired { .. }), "{reason}");
        assert!(told.contains("expired"), "{told}");
        let (reason, _) = verdict_on_client(&mesh, &mesh.credentials_of(&early("client"))).await;
        assert!(matches!(reason, PeerError::NotYetValid { .. }), "{reason}");
        let other = Leaf::workload("spiffe://evil.example/ns/shop/sa/client");
        let (reason, told) = verdict_on_client(&mesh, &mesh.credentials_of(&other)).await;
        assert!(matches!(reason, PeerError::WrongTrustDomain { .. }), "{reason}");
        assert!(told.contains("trust domain"), "{told}");

        let revoked = Leaf { serial: Some(7), ..leaf };
        let list = mesh.authority.revoke(&[7]).unwrap();
        set_revoked(&mesh.trust, &list);
        let (reason, told) = verdict_on_client(&mesh, &mesh.credentials_of(&revoked)).await;
        assert_eq!(reason, PeerError::Revoked);
        assert!(told.contains("revoked"), "{told}");
    });
}

/// The tunnel is open when its peer falls from grace.
#[test]
fn tunnels_of_peers_that_lose_trust_are_ended() {
    on_worker(|| async {
        // The client's own state of trust, and the server's: each ends it alone.
        for of_server in [false, true] {
            let mesh = Mesh::new();
            let own = trust(&[&mesh.authority]);
            let revoked = |name| Leaf { serial: Some(7), ..Leaf::workload(identity(name)) };
            let (server, client) = if of_server {
                (mesh.credentials("web"), credentials(&mesh.authority, &revoked("client"), &own))
            } else {
                (credentials(&mesh.authority, &revoked("web"), &own), mesh.credentials("client"))
            };
            let agent = Agent::start(&server, &settings()).await;
            let client = Client::new(&client, &settings());
            let route = client.route(agent.address, "web", echo().await);
            let mut connection = client.connection(&route).await;
            connection.echo("here").await;

            // What concerns others changes nothing.
            let list = mesh.authority.revoke(&[8]).unwrap();
            set_revoked(&mesh.trust, &list);
            connection.echo("still here").await;

            let list = mesh.authority.revoke(&[7, 8]).unwrap();
            set_revoked(&mesh.trust, &list);
            assert!(connection.tcp.read(&mut [0; 8]).await.is_err());
            let RelayEnd::ServerBroke(error) = connection.relay.await.unwrap() else { panic!() };
            assert_eq!(error.to_string().contains("revoked"), !of_server, "{error}");
            eventually("both sides end it", || {
                client.tunnels.count() == 0 && agent.ended.borrow().len() == 1
            })
            .await;
            if of_server {
                let ended = agent.ended.borrow();
                let revoked = Err::<(), _>(TunnelEnd::Distrusted(PeerError::Revoked));
                assert_eq!(format!("{:?}", ended[0]), format!("{:?}", revoked.map_err(ServerError::Ended)));
            }
        }
    });
}

#[test]
fn tunnels_outlive_a_root_that_is_added_and_end_with_their_own() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let mut connection = client.connection(&client.route(agent.address, "web", echo().await)).await;
        let new = Authority::root("new").unwrap();
        set_roots(&mesh.trust, &[&mesh.authority, &new]);
        connection.echo("both roots").await;
        set_roots(&mesh.trust, &[&new]);
        assert!(connection.tcp.read(&mut [0; 8]).await.is_err());
    });
}
