//! Which connections share a tunnel, and what becomes of tunnels.

use std::time::{Duration, Instant};

use mesh_agent::proxy::RelayEnd;
use mesh_agent::proxy::tunnel::{ServerError, Step, TunnelEnd, TunnelFailure};
use tokio::io::AsyncReadExt;

use crate::world::{Agent, Client, Mesh, Wire, echo, eventually, on_worker, settings};

#[test]
fn a_burst_opens_as_many_tunnels_as_it_needs() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let mut settings = settings();
        settings.tunnel.streams_per_tunnel = 100;
        let agent = Agent::start(&mesh.credentials("web"), &settings).await;
        let client = Client::new(&mesh.credentials("client"), &settings);
        let route = client.route(agent.address, "web", echo().await);
        let opening = (0..1000).map(|_| client.connection(&route));
        let mut open = futures::future::join_all(opening).await;
        assert_eq!(agent.tunnels.get(), 10);
        for (number, connection) in open.iter_mut().enumerate() {
            connection.echo(&format!("number {number}")).await;
        }
        assert_eq!(agent.open.get(), 1000);
        drop(open);
        eventually("all end", || agent.open.get() == 0).await;
    });
}

#[test]
fn a_peer_that_takes_fewer_streams_gets_more_tunnels() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let mut few = settings();
        few.tunnel.streams_per_tunnel = 4;
        let agent = Agent::start(&mesh.credentials("web"), &few).await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let route = client.route(agent.address, "web", echo().await);
        let opening = (0..30).map(|_| client.connection(&route));
        let mut open = futures::future::join_all(opening).await;
        for connection in &mut open {
            connection.echo("here").await;
        }
        assert_eq!(agent.open.get(), 30);
        assert!(agent.tunnels.get() >= 8);
    });
}

#[test]
fn tunnels_are_limited_and_idle_ones_make_room() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let mut settings = settings();
        settings.tunnel.streams_per_tunnel = 1;
        settings.tunnel.tunnels_per_destination = 2;
        settings.tunnel.tunnels = 3;
        let agents = [
            Agent::start(&mesh.credentials("web"), &settings).await,
            Agent::start(&mesh.credentials("web"), &settings).await,
        ];
        let client = Client::new(&mesh.credentials("client"), &settings);
        let server = echo().await;
        let routes = agents.each_ref().map(|agent| client.route(agent.address, "web", server));
        let _one = client.connection(&routes[0]).await;
        let two = client.connection(&routes[0]).await;
        let error = client.failure(&routes[0]).await;
        assert!(error.to_string().contains("tunnels_per_destination"), "{error}");
        let _three = client.connection(&routes[1]).await;
        let error = client.failure(&routes[1]).await;
        assert!(matches!(error.cause, TunnelFailure::Overflow(3, "tunnels")), "{error}");
        drop(two.tcp);
        eventually("it ends", || agents[0].open.get() == 1).await;
        let mut four = client.connection(&routes[1]).await;
        four.echo("room").await;
        assert_eq!(client.tunnels.count(), 3);
    });
}

#[test]
fn another_identity_or_certificate_gets_another_tunnel() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let mut client = Client::new(&mesh.credentials("client"), &settings());
        let server = echo().await;
        let route = client.route(agent.address, "web", server);
        let mut old = client.connection(&route).await;

        // The address belongs to another workload now: its old tunnel must not be used, although it is still open.
        let error = client.failure(&client.route(agent.address, "db", server)).await;
        assert!(matches!(error.cause, TunnelFailure::Tls(_)), "{error}");
        assert_eq!(agent.tunnels.get(), 2);
        assert_eq!(agent.requests.get(), 1);

        // The certificate was renewed.
        client.credentials = mesh.credentials("client");
        let mut new = client.connection(&client.route(agent.address, "web", server)).await;
        assert_eq!(agent.tunnels.get(), 3);
        new.echo("new").await;
        old.echo("old").await;
    });
}

#[test]
fn idle_tunnels_are_closed_by_either_side() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let (mut eager, mut patient) = (settings(), settings());
        eager.tunnel.idle_timeout = Duration::from_millis(100);
        eager.tunnel.idle_grace = Duration::ZERO;
        patient.tunnel.idle_timeout = Duration::from_secs(600);
        for (of_client, of_server) in [(&eager, &patient), (&patient, &eager)] {
            let agent = Agent::start(&mesh.credentials("web"), of_server).await;
            let client = Client::new(&mesh.credentials("client"), of_client);
            let route = client.route(agent.address, "web", echo().await);
            let mut connection = client.connection(&route).await;
            // Not as long as there is a stream, however quiet.
            tokio::time::sleep(Duration::from_millis(300)).await;
            connection.echo("here").await;
            assert_eq!((agent.tunnels.get(), client.tunnels.count()), (1, 1));
            drop(connection);
            eventually("the tunnel is closed", || client.tunnels.count() == 0).await;
            eventually("on both sides", || agent.ended.borrow().len() == 1).await;
            assert!(agent.ended.borrow()[0].is_ok(), "{:?}", agent.ended.borrow());
            client.connection(&route).await.echo("again").await;
        }
    });
}

#[test]
fn a_draining_server_keeps_its_streams_and_gets_no_new_ones() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let route = client.route(agent.address, "web", echo().await);
        let mut old = client.connection(&route).await;
        agent.drain.notify_one();
        let deadline = Instant::now() + Duration::from_secs(10);
        while agent.tunnels.get() == 1 {
            assert!(Instant::now() < deadline, "no new tunnel");
            client.connection(&route).await.echo("new").await;
        }
        old.echo("old").await;
        drop(old);
        eventually("the old tunnel is closed", || agent.ended.borrow().len() == 1).await;
        assert!(agent.ended.borrow()[0].is_ok());
    });
}

#[test]
fn a_peer_that_is_silent_is_given_up() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let mut settings = settings();
        settings.tunnel.ping_interval = Duration::from_millis(100);
        settings.tunnel.ping_timeout = Duration::from_millis(300);
        let agent = Agent::start(&mesh.credentials("web"), &settings).await;
        let wire = Wire::to(agent.address).await;
        let client = Client::new(&mesh.credentials("client"), &settings);
        let mut connection = client.connection(&client.route(wire.address, "web", echo().await)).await;
        connection.echo("here").await;
        wire.hold();
        let error = connection.tcp.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        match connection.relay.await.unwrap() {
            RelayEnd::ServerBroke(error) => assert!(error.to_string().contains("does not answer"), "{error}"),
            end => panic!("{end:?}"),
        }
        assert_eq!(client.tunnels.count(), 0);
        eventually("the server notices too", || agent.ended.borrow().len() == 1).await;
        let ended = agent.ended.borrow();
        assert!(matches!(ended[0], Err(ServerError::Ended(TunnelEnd::Silent))), "{ended:?}");
    });
}

/// A tunnel that looks alive and is not: the opener does not wait for it twice.
#[test]
fn a_stream_without_answer_casts_doubt_on_its_tunnel() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let wire = Wire::to(agent.address).await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let route = client.route(wire.address, "web", echo().await);
        client.connection(&route).await.echo("here").await;
        wire.hold();
        for tunnels in [1, 2] {
            let deadline = Instant::now() + Duration::from_millis(200);
            let error = client.tunnels.open(&route, deadline).await.map(drop).unwrap_err();
            assert!(matches!(error.cause, TunnelFailure::Timeout(_)), "{error}");
            let answer = matches!(error.cause, TunnelFailure::Timeout(Step::Answer));
            assert_eq!(answer, tunnels == 1, "{error}");
            assert_eq!(client.tunnels.count(), tunnels);
        }
    });
}

#[test]
fn a_tunnel_that_died_unseen_is_replaced() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let agent = Agent::with(&mesh.credentials("web"), &settings(), {
            let count = std::cell::Cell::new(0);
            move |request, seen| {
                count.set(count.get() + 1);
                if count.get() == 2 {
                    // As if the agent had been killed between the request and the answer.
                    seen.kill.notify_waiters();
                }
                if count.get() > 1 {
                    tokio::task::spawn_local(async move {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        let _ = request.accept();
                    });
                } else {
                    let _ = request.accept();
                }
            }
        })
        .await;
        let client = Client::new(&mesh.credentials("client"), &settings());
        let route = client.route(agent.address, "web", agent.address);
        client.open(&route).await.map(drop).unwrap();
        client.open(&route).await.map(drop).unwrap();
        assert_eq!((agent.tunnels.get(), agent.requests.get()), (2, 3));
    });
}
