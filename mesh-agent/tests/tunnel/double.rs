//! Tunnels within tunnels.

use mesh_agent::proxy::RelayEnd;
use mesh_agent::proxy::decision::TunnelPath;
use mesh_agent::proxy::tunnel::TunnelFailure;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{Agent, Client, Mesh, eventually, identity, on_worker, server, settings};

#[test]
fn a_gateway_carries_what_it_cannot_read() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let mirror = server(|mut tcp| async move {
            let mut question = Vec::new();
            tcp.read_to_end(&mut question).await.unwrap();
            tcp.write_all(&question).await.unwrap();
        })
        .await;
        // The workload's agent connects to the server whatever the service's name; the gateway, to that agent.
        let agent = Agent::leading_to(&mesh.credentials("web"), &settings(), mirror).await;
        let gateway = Agent::leading_to(&mesh.credentials("gateway"), &settings(), agent.address).await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let route = |inner: &str| {
            client.route_of(TunnelPath {
                gateway: gateway.address,
                expected: [identity("gateway")].into(),
                authority: "web.shop.svc.cluster.local:80".into(),
                inner: Some([identity(inner)].into()),
            })
        };
        for _ in 0..2 {
            let mut connection = client.connection(&route("web")).await;
            let sent = vec![5; 3 << 20];
            connection.tcp.write_all(&sent).await.unwrap();
            connection.tcp.shutdown().await.unwrap();
            let mut received = Vec::new();
            connection.tcp.read_to_end(&mut received).await.unwrap();
            assert_eq!(received.len(), sent.len());
            assert!(matches!(connection.relay.await.unwrap(), RelayEnd::Complete));
        }
        // The outer tunnel is shared, the inner one is not, and is gone with its connection.
        assert_eq!((gateway.tunnels.get(), agent.tunnels.get()), (1, 2));
        eventually("the inner tunnels are closed", || agent.ended.borrow().len() == 2).await;
        assert!(agent.ended.borrow().iter().all(Result::is_ok), "{:?}", agent.ended.borrow());
        eventually("and their streams", || gateway.open.get() == 0).await;

        // Who is at the inner end is verified as well.
        let error = client.failure(&route("db")).await;
        assert!(matches!(error.cause, TunnelFailure::Tls(_)), "{error}");
        assert!(error.to_string().contains("sa/db"), "{error}");
        assert_eq!(agent.requests.get(), 2);
    });
}
