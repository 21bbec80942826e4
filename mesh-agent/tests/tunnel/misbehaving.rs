//! Peers that do in a trunk what they must not: each loses it, and is told of by name.

use std::sync::Arc;

use mesh_agent::identity::TRUNK;
use mesh_agent::proxy::tunnel::ServerError;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{Agent, Client, Mesh, echo, eventually, on_worker_once, settings};

const HELLO: u8 = 0;
const OPEN: u8 = 1;
const OPENED: u8 = 2;
const REFUSED: u8 = 3;
const DATA: u8 = 4;
const RESET: u8 = 6;
const PING: u8 = 8;
const PONG: u8 = 9;

fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind, 0], &length[..], &stream.to_be_bytes(), payload].concat()
}

fn hello() -> Vec<u8> {
    frame(HELLO, 0, &[0, 4, 0, 0, 0, 0, 0, 0])
}

fn open(stream: u32, authority: &str) -> Vec<u8> {
    let length = u16::try_from(authority.len()).unwrap().to_be_bytes();
    frame(OPEN, stream, &[&length[..], authority.as_bytes(), &[0; 6]].concat())
}

/// A trunk with an agent, by hand.
async fn by_hand(agent: &Agent, mesh: &Mesh) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(agent.address).await.unwrap();
    let name = ServerName::IpAddress(agent.address.ip().into());
    let connector = TlsConnector::from(mesh.credentials("client").client());
    let tls = connector.with_alpn(vec![TRUNK.to_vec()]).connect(name, tcp).await.unwrap();
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(TRUNK));
    tls
}

/// The next frame that is not of this kind.
async fn next_but(trunk: &mut TlsStream<TcpStream>, ignored: u8) -> (u8, u32, Vec<u8>) {
    loop {
        let mut header = [0; 8];
        trunk.read_exact(&mut header).await.unwrap();
        let [kind, _, high, low, a, b, c, d] = header;
        let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        trunk.read_exact(&mut payload).await.unwrap();
        if kind != ignored {
            return (kind, u32::from_be_bytes([a, b, c, d]), payload);
        }
    }
}

#[test]
fn what_the_protocol_does_not_allow_ends_the_trunk() {
    on_worker_once(async {
        let mesh = Mesh::new();
        let target = echo().await.to_string();
        let window: Vec<u8> = std::iter::repeat_n(frame(DATA, 1, &[0; 60_000]), 8).flatten().collect();
        for (frames, reason) in [
            (vec![open(1, &target)], "OPEN before HELLO"),
            (vec![hello(), hello()], "second HELLO"),
            (vec![hello(), open(1, &target), open(3, &target)], "stream 3 out of order"),
            (vec![hello(), open(1, &target), frame(DATA, 2, b"x")], "stream 2, which was never opened"),
            (vec![hello(), open(1, &target), frame(OPENED, 1, b"")], "OPENED, which only the other side may"),
            (vec![hello(), open(1, &target), frame(77, 1, b"")], "kind 77"),
            // Its server is not connected to yet: nothing takes the bytes.
            (vec![hello(), open(1, &target), window], "window of stream 1"),
        ] {
            let agent = Agent::with(&mesh.credentials("web"), &settings(), |request, _| {
                spawn_local(async move {
                    std::future::pending::<()>().await;
                    drop(request);
                });
            })
            .await;
            let mut trunk = by_hand(&agent, &mesh).await;
            // A stream that is open: else nobody would miss the trunk.
            let mut bytes = frames.concat();
            if reason.contains("HELLO") {
                bytes = [bytes, frame(PING, 0, b"12345678")].concat();
            }
            trunk.write_all(&bytes).await.unwrap();
            let mut rest = Vec::new();
            let _ = trunk.read_to_end(&mut rest).await;
            eventually("the trunk ends", || !agent.ended.borrow().is_empty()).await;
            match &agent.ended.borrow()[0] {
                Err(ServerError::Broken(error)) => {
                    assert!(error.to_string().contains(reason), "{error} instead of {reason}");
                }
                // Without a stream nobody misses it.
                Ok(()) => assert!(reason.contains("HELLO"), "{reason}"),
                Err(error) => panic!("{error} instead of {reason}"),
            }
        }
    });
}

#[test]
fn pings_are_answered_and_streams_beyond_the_limit_are_sent_elsewhere() {
    on_worker_once(async {
        let mesh = Mesh::new();
        let mut few = settings();
        few.tunnel.streams_per_tunnel = 1;
        let agent = Agent::start(&mesh.credentials("web"), &few).await;
        let target = echo().await.to_string();
        let mut trunk = by_hand(&agent, &mesh).await;
        trunk.write_all(&[hello(), frame(PING, 0, b"12345678")].concat()).await.unwrap();
        assert_eq!(next_but(&mut trunk, HELLO).await, (PONG, 0, b"12345678".to_vec()));
        trunk.write_all(&[open(1, &target), open(2, &target)].concat()).await.unwrap();
        assert_eq!(next_but(&mut trunk, OPENED).await, (REFUSED, 2, vec![0, 0]));
        // A wrong authority is answered; what comes for a stream that has ended is ignored.
        trunk.write_all(&frame(RESET, 1, b"")).await.unwrap();
        eventually("the first is over", || agent.ends.borrow().len() == 1).await;
        trunk.write_all(&[frame(DATA, 1, b"late"), open(3, "no authority")].concat()).await.unwrap();
        let (kind, stream, payload) = next_but(&mut trunk, OPENED).await;
        assert_eq!((kind, stream, &payload[..2]), (REFUSED, 3, &400_u16.to_be_bytes()[..]));
    });
}

#[test]
fn agents_agree_on_a_trunk_and_on_hbone_where_one_side_cannot() {
    on_worker_once(async {
        let mesh = Mesh::new();
        let mut hbone = settings();
        hbone.tunnel.trunks = false;
        for (server, client) in [(settings(), settings()), (hbone.clone(), settings()), (settings(), hbone)] {
            let agent = Agent::start(&mesh.credentials("web"), &server).await;
            let client = Client::new(&Arc::clone(&mesh.credentials("client")), &client);
            let mut connection = client.connection(&client.route(agent.address, "web", echo().await)).await;
            connection.echo("either way").await;
        }
    });
}
