//! Opening connections: who gets one, and what the others are told.

use mesh_agent::proxy::RelayEnd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{Agent, Client, Mesh, echo, eventually, on_worker, settings};

#[test]
fn connections_share_a_tunnel() {
    on_worker(async {
        let mesh = Mesh::new();
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let route = client.route(agent.address, "web", echo().await);
        let mut one = client.connection(&route).await;
        let mut two = client.connection(&route).await;
        one.echo("hello").await;
        two.echo("and hello").await;
        assert_eq!((agent.tunnels.get(), agent.requests.get(), client.tunnels.count()), (1, 2, 1));

        // Ends travel both ways.
        one.tcp.shutdown().await.unwrap();
        assert_eq!(one.tcp.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(matches!(one.relay.await.unwrap(), RelayEnd::Complete));
        eventually("the server's side ends", || agent.open.get() == 1).await;
        assert!(matches!(agent.ends.borrow()[0], RelayEnd::Complete));
        assert_eq!((one.traffic.sent(), one.traffic.received()), (5, 5));
        two.echo("still here").await;
    });
}
