//! Bytes through tunnels: ends, resets, back-pressure, many streams at once.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mesh_agent::proxy::tunnel::{TunnelStream, relay};
use mesh_agent::proxy::{Lifetime, RelayEnd, Stream};
use mesh_agent::telemetry::Traffic;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{Agent, Client, Mesh, eventually, on_worker, server, settings};

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn expect(tcp: &mut TcpStream, text: &str) {
    let mut bytes = vec![0; text.len()];
    tcp.read_exact(&mut bytes).await.unwrap();
    assert_eq!(bytes, text.as_bytes());
}

/// A mesh with one agent for servers and one for clients.
async fn both_agents() -> (Agent, Client) {
    let mesh = Mesh::new();
    let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
    let client = Client::new(&mesh.credentials("client"), &settings());
    (agent, client)
}

#[test]
fn an_open_connection_is_small() {
    on_worker(|| async {
        let (agent, client) = both_agents().await;
        let mut tunnel = client.open(&client.route(agent.address, "web", source().await)).await.unwrap();
        let mut tcp = Stream::new(crate::world::pair().await.1);
        let traffic: Arc<Traffic> = Arc::default();
        let lifetime = Lifetime::new(Duration::from_secs(1));
        let relay = relay(&mut tcp, &mut tunnel, &traffic, &client.buffers, &lifetime);
        let (relay, stream) = (size_of_val(&relay), size_of::<TunnelStream>());
        assert!(relay <= 768, "a relay takes {relay} bytes");
        assert!(stream <= 256, "a stream takes {stream} bytes");
    });
}

#[test]
fn either_side_may_end_first() {
    on_worker(|| async {
        let (agent, client) = both_agents().await;
        let answers_late = server(|mut tcp| async move {
            let mut question = String::new();
            tcp.read_to_string(&mut question).await.unwrap();
            tcp.write_all(format!("{question}, you ask").as_bytes()).await.unwrap();
        })
        .await;
        let mut connection = client.connection(&client.route(agent.address, "web", answers_late)).await;
        connection.tcp.write_all(b"why").await.unwrap();
        connection.tcp.shutdown().await.unwrap();
        let mut answer = String::new();
        connection.tcp.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "why, you ask");
        assert!(matches!(connection.relay.await.unwrap(), RelayEnd::Complete));

        let heard: Rc<Cell<bool>> = Rc::default();
        let hears = Rc::clone(&heard);
        let ends_first = server(move |mut tcp| {
            let hears = Rc::clone(&hears);
            async move {
                tcp.write_all(b"go on").await.unwrap();
                tcp.shutdown().await.unwrap();
                let mut rest = String::new();
                tcp.read_to_string(&mut rest).await.unwrap();
                hears.set(rest == "the rest");
            }
        })
        .await;
        let mut connection = client.connection(&client.route(agent.address, "web", ends_first)).await;
        connection.expect("go on").await;
        assert_eq!(connection.tcp.read(&mut [0; 8]).await.unwrap(), 0);
        connection.tcp.write_all(b"the rest").await.unwrap();
        drop(connection.tcp);
        assert!(matches!(connection.relay.await.unwrap(), RelayEnd::Complete));
        eventually("the server has the rest", || heard.get()).await;
        eventually("both are over", || agent.ends.borrow().len() == 2).await;
        assert!(agent.ends.borrow().iter().all(|end| matches!(end, RelayEnd::Complete)));
    });
}

#[test]
fn resets_travel_both_ways_and_leave_the_tunnel_alone() {
    on_worker(|| async {
        let (agent, client) = both_agents().await;
        let saw_reset: Rc<Cell<bool>> = Rc::default();
        let saw = Rc::clone(&saw_reset);
        let waits = server(move |mut tcp| {
            let saw = Rc::clone(&saw);
            async move {
                expect(&mut tcp, "half").await;
                tcp.write_all(b"got it").await.unwrap();
                let error = tcp.read(&mut [0; 8]).await.unwrap_err();
                saw.set(error.kind() == std::io::ErrorKind::ConnectionReset);
            }
        })
        .await;
        let mut connection = client.connection(&client.route(agent.address, "web", waits)).await;
        connection.tcp.write_all(b"half").await.unwrap();
        connection.expect("got it").await;
        reset(connection.tcp);
        assert!(matches!(connection.relay.await.unwrap(), RelayEnd::ClientBroke(_)));
        eventually("the server sees it", || saw_reset.get()).await;
        assert!(matches!(agent.ends.borrow()[0], RelayEnd::ClientBroke(_)));

        // An answer before the reset is delivered.
        let resets = server(|mut tcp| async move {
            expect(&mut tcp, "question").await;
            tcp.write_all(b"too large").await.unwrap();
            // Closing with bytes unread resets.
            tcp.readable().await.unwrap();
        })
        .await;
        let mut connection = client.connection(&client.route(agent.address, "web", resets)).await;
        connection.tcp.write_all(b"question").await.unwrap();
        connection.tcp.write_all(b" and much more").await.unwrap();
        let mut answer = Vec::new();
        let error = connection.tcp.read_to_end(&mut answer).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(answer, b"too large");
        let RelayEnd::ServerBroke(error) = connection.relay.await.unwrap() else { panic!() };
        assert!(error.to_string().contains("reset by the peer"), "{error}");
        assert_eq!((agent.tunnels.get(), client.tunnels.count()), (1, 1));
    });
}

#[test]
fn a_silent_connection_is_ended() {
    on_worker(|| async {
        let mesh = Mesh::new();
        let mut impatient = settings();
        impatient.idle_timeout = Duration::from_millis(200);
        let agent = Agent::start(&mesh.credentials("web"), &settings()).await;
        let client = Client::new(&mesh.credentials("client"), &impatient);
        let sink = server(|tcp| async move { drop(tcp.ready(tokio::io::Interest::ERROR).await) }).await;
        let mut connection = client.connection(&client.route(agent.address, "web", sink)).await;
        assert!(connection.tcp.read(&mut [0; 8]).await.is_err());
        assert!(matches!(connection.relay.await.unwrap(), RelayEnd::Idle));
        eventually("the server's side ends", || agent.ends.borrow().len() == 1).await;
        assert!(matches!(agent.ends.borrow()[0], RelayEnd::ClientBroke(_)));
    });
}

/// A length that no buffer divides, and more than all buffers on the way hold.
const TOTAL: usize = 251 << 17;

fn pattern() -> Vec<u8> {
    (0..=250).collect::<Vec<u8>>().repeat(TOTAL / 251)
}

/// Sends [`TOTAL`] bytes of a pattern to whoever connects.
async fn source() -> SocketAddr {
    let pattern: Rc<[u8]> = pattern().into();
    server(move |mut tcp| {
        let pattern = Rc::clone(&pattern);
        async move { drop(tcp.write_all(&pattern).await) }
    })
    .await
}

#[test]
fn everything_arrives_in_order() {
    on_worker(|| async {
        let (agent, client) = both_agents().await;
        let mut connection = client.connection(&client.route(agent.address, "web", source().await)).await;
        let mut bytes = Vec::new();
        connection.tcp.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes == pattern(), "{} bytes", bytes.len());
        // What was on its way is given back.
        assert!(client.buffers.allocated() <= 3 << 20, "{} bytes", client.buffers.allocated());
    });
}

/// As many streams as fit that nobody reads, in the tunnel of one that is.
#[test]
fn streams_that_nobody_reads_do_not_stall_another() {
    on_worker(|| async {
        let (agent, client) = both_agents().await;
        let route = client.route(agent.address, "web", source().await);
        let mut stuck = Vec::new();
        for _ in 0..settings().tunnel.streams_per_tunnel - 1 {
            stuck.push(client.connection(&route).await);
        }
        let received = |stuck: &[crate::world::Connection]| -> Vec<u64> {
            stuck.iter().map(|connection| connection.traffic.received()).collect()
        };
        // Until none of them moves any more: every window is used up.
        let mut before = Vec::new();
        loop {
            let now = received(&stuck);
            if now == before && now.iter().all(|bytes| *bytes > 0) {
                break;
            }
            before = now;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let mut fast = client.connection(&route).await;
        let mut bytes = vec![0; 1 << 20];
        let mut sum = 0;
        while let Ok(count @ 1..) = fast.tcp.read(&mut bytes).await {
            sum += count;
        }
        assert_eq!(sum, TOTAL);
        assert_eq!(agent.tunnels.get(), 1, "all in one tunnel");
        assert_eq!(received(&stuck), before, "the others stood still all the time");

        // And each of them gets its bytes when it is read again.
        let mut resumed = stuck.pop().unwrap();
        let mut sum = 0;
        while let Ok(count @ 1..) = resumed.tcp.read(&mut bytes).await {
            sum += count;
        }
        assert_eq!(sum, TOTAL);
    });
}

/// The worst case for bookkeeping: single bytes that nobody takes.
#[test]
fn a_server_that_takes_nothing_stops_its_client_and_no_other() {
    on_worker(|| async {
        let (agent, client) = both_agents().await;
        let deaf = server(|tcp| async move {
            SockRef::from(&tcp).set_recv_buffer_size(4096).unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let mut connection = client.connection(&client.route(agent.address, "web", deaf)).await;
        connection.tcp.set_nodelay(true).unwrap();
        let mut sent = 0_u64;
        let write_some = async {
            loop {
                let size = if sent < 20_000 { 1 } else { 64 << 10 };
                sent += connection.tcp.write(&vec![1; size]).await.unwrap() as u64;
                if sent < 20_000 {
                    tokio::task::yield_now().await;
                }
            }
        };
        let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(3), write_some).await;
        // The kernel's buffers at both ends, the window, and what is unsent.
        assert!(sent < 32 << 20, "{sent} bytes were taken");
        assert!(client.buffers.allocated() <= 1 << 20, "{} bytes", client.buffers.allocated());
        assert!(client.open(&client.route(agent.address, "web", deaf)).await.is_ok());
        reset(connection.tcp);
        assert!(matches!(connection.relay.await.unwrap(), RelayEnd::ClientBroke(_)));
        eventually("the server's side ends", || !agent.ends.borrow().is_empty()).await;
    });
}
