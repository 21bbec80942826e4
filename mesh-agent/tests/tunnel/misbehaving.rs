//! Peers that do in a trunk what they must not: each loses it, and is told of by name.

use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use mesh_agent::identity::TRUNK;
use mesh_agent::proxy::tunnel::ServerError;
use rustls::ClientConnection;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;

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

/// A trunk with an agent, by hand, as the agent's documentation describes it.
struct ByHand {
    tcp: TcpStream,
    sealing: Direction,
    opening: Direction,
    /// Of frames, not asked for yet.
    heard: Vec<u8>,
}

/// The records of one direction.
struct Direction {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Direction {
    fn of(session: &ClientConnection, label: &str) -> Self {
        struct Length(usize);

        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }

        let secret = session.export_keying_material([0; 32], label.as_bytes(), None).unwrap();
        let secret = Prk::new_less_safe(HKDF_SHA256, &secret);
        let (mut key, mut iv) = ([0; 32], [0; 12]);
        secret.expand(&[b"key"], Length(32)).unwrap().fill(&mut key).unwrap();
        secret.expand(&[b"iv"], Length(12)).unwrap().fill(&mut iv).unwrap();
        Self { key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap()), iv, sequence: 0 }
    }

    fn nonce(&mut self) -> Nonce {
        let number = u128::from_be_bytes([&[0; 4], &self.iv[..]].concat().try_into().unwrap());
        let nonce = (number ^ u128::from(self.sequence)).to_be_bytes();
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce[4..].try_into().unwrap())
    }
}

impl ByHand {
    /// Opens a trunk and says something in it that is still within TLS.
    async fn open(agent: &Agent, mesh: &Mesh, first: &[u8]) -> Self {
        let tcp = TcpStream::connect(agent.address).await.unwrap();
        let name = ServerName::IpAddress(agent.address.ip().into());
        let connector = TlsConnector::from(mesh.credentials("client").client());
        let mut tls = connector.with_alpn(vec![TRUNK.to_vec()]).connect(name, tcp).await.unwrap();
        let session = tls.get_ref().1;
        assert_eq!(session.alpn_protocol(), Some(TRUNK));
        assert_eq!(
            session.negotiated_cipher_suite().unwrap().suite(),
            rustls::CipherSuite::TLS13_AES_256_GCM_SHA384
        );
        let sealing = Direction::of(session, "EXPORTER-mesh-trunk client");
        let opening = Direction::of(session, "EXPORTER-mesh-trunk server");
        tls.write_all(first).await.unwrap();
        let mut hello = [0; 16];
        tls.read_exact(&mut hello).await.unwrap();
        assert_eq!(hello[..4], [HELLO, 0, 0, 8]);
        Self { tcp: tls.into_inner().0, sealing, opening, heard: Vec::new() }
    }

    fn record(&mut self, frames: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(frames.len() + 16).unwrap().to_be_bytes();
        let header = [23, 3, 3, high, low];
        let mut sealed = frames.to_vec();
        let nonce = self.sealing.nonce();
        self.sealing.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).unwrap();
        [&header[..], &sealed].concat()
    }

    /// Says something in a record of the trunk's.
    async fn say(&mut self, frames: &[u8]) {
        let record = self.record(frames);
        self.tcp.write_all(&record).await.unwrap();
    }

    /// Waits for the end.
    async fn until_the_end(&mut self) {
        let _ = self.tcp.read_to_end(&mut Vec::new()).await;
    }

    async fn hear(&mut self, length: usize) -> Vec<u8> {
        while self.heard.len() < length {
            let mut header = [0; 5];
            self.tcp.read_exact(&mut header).await.unwrap();
            let [23, 3, 3, high, low] = header else { panic!("{header:?}") };
            let mut sealed = vec![0; usize::from(u16::from_be_bytes([high, low]))];
            self.tcp.read_exact(&mut sealed).await.unwrap();
            let nonce = self.opening.nonce();
            let opened = self.opening.key.open_in_place(nonce, Aad::from(header), &mut sealed).unwrap();
            self.heard.extend_from_slice(opened);
        }
        self.heard.drain(..length).collect()
    }

    /// The next frame that is not of this kind.
    async fn next_but(&mut self, ignored: u8) -> (u8, u32, Vec<u8>) {
        loop {
            let header: [u8; 8] = self.hear(8).await.try_into().unwrap();
            let [kind, _, high, low, a, b, c, d] = header;
            let payload = self.hear(usize::from(u16::from_be_bytes([high, low]))).await;
            if kind != ignored {
                return (kind, u32::from_be_bytes([a, b, c, d]), payload);
            }
        }
    }
}

/// An agent that takes connections and never answers.
async fn silent_agent(mesh: &Mesh) -> Agent {
    Agent::with(&mesh.credentials("web"), &settings(), |request, _| {
        spawn_local(async move {
            std::future::pending::<()>().await;
            drop(request);
        });
    })
    .await
}

#[test]
fn what_the_protocol_does_not_allow_ends_the_trunk() {
    on_worker_once(async {
        let mesh = Mesh::new();
        let target = echo().await.to_string();
        let window: Vec<u8> = std::iter::repeat_n(frame(DATA, 1, &[0; 8_000]), 7).flatten().collect();
        for (first, frames, reason) in [
            (open(1, &target), vec![], "OPEN before HELLO"),
            ([hello(), hello()].concat(), vec![], "second HELLO"),
            (hello(), vec![hello()], "second HELLO"),
            (hello(), vec![open(1, &target), open(3, &target)], "stream 3 out of order"),
            (hello(), vec![open(1, &target), frame(DATA, 2, b"x")], "stream 2, which was never opened"),
            (hello(), vec![open(1, &target), frame(OPENED, 1, b"")], "OPENED, which only the other side may"),
            (hello(), vec![open(1, &target), frame(77, 1, b"")], "kind 77"),
            // Its server is not connected to yet: nothing takes the bytes.
            (hello(), [vec![open(1, &target)], vec![window; 8]].concat(), "window of stream 1"),
        ] {
            let agent = silent_agent(&mesh).await;
            let mut trunk = ByHand::open(&agent, &mesh, &first).await;
            for frames in frames {
                trunk.say(&frames).await;
            }
            ended(&agent, &mut trunk, reason).await;
        }
    });
}

/// Waits until the agent has ended a trunk for this reason. Without a stream nobody misses it.
async fn ended(agent: &Agent, trunk: &mut ByHand, reason: &str) {
    trunk.until_the_end().await;
    eventually("the trunk ends", || !agent.ended.borrow().is_empty()).await;
    match &agent.ended.borrow()[0] {
        Err(ServerError::Broken(error)) => {
            assert!(error.to_string().contains(reason), "{error} instead of {reason}");
        }
        Ok(()) => assert!(reason.contains("HELLO"), "{reason}"),
        Err(error) => panic!("{error} instead of {reason}"),
    }
}

#[test]
fn what_was_not_sealed_by_the_peer_in_this_order_ends_the_trunk() {
    on_worker_once(async {
        let mesh = Mesh::new();
        let target = echo().await.to_string();
        let changed: fn(Vec<u8>) -> Vec<u8> = |mut record| {
            let last = record.len() - 1;
            record[last] ^= 1;
            record
        };
        for (change, reason) in [
            (changed, "changed on its way"),
            // Once more what was said already.
            (|record| [&record[..], &record].concat(), "out of order"),
            (|_| b"GET / HTTP/1.1\r\n".to_vec(), "where a record begins"),
            (|_| vec![23, 3, 3, 0, 0], "changed on its way"),
        ] {
            let agent = silent_agent(&mesh).await;
            let mut trunk = ByHand::open(&agent, &mesh, &hello()).await;
            trunk.say(&open(1, &target)).await;
            let record = trunk.record(&frame(PING, 0, b"12345678"));
            trunk.tcp.write_all(&change(record)).await.unwrap();
            ended(&agent, &mut trunk, reason).await;
        }
    });
}

#[test]
fn records_may_come_in_pieces() {
    on_worker_once(async {
        let mesh = Mesh::new();
        let agent = silent_agent(&mesh).await;
        let mut trunk = ByHand::open(&agent, &mesh, &hello()).await;
        trunk.tcp.set_nodelay(true).unwrap();
        let records =
            [trunk.record(&frame(PING, 0, b"12345678")), trunk.record(&frame(PING, 0, b"87654321"))];
        for byte in records.concat() {
            trunk.tcp.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        assert_eq!(trunk.next_but(OPENED).await, (PONG, 0, b"12345678".to_vec()));
        assert_eq!(trunk.next_but(OPENED).await, (PONG, 0, b"87654321".to_vec()));
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
        let mut trunk = ByHand::open(&agent, &mesh, &hello()).await;
        trunk.say(&frame(PING, 0, b"12345678")).await;
        assert_eq!(trunk.next_but(OPENED).await, (PONG, 0, b"12345678".to_vec()));
        trunk.say(&[open(1, &target), open(2, &target)].concat()).await;
        assert_eq!(trunk.next_but(OPENED).await, (REFUSED, 2, vec![0, 0]));
        // A wrong authority is answered; what comes for a stream that has ended is ignored.
        trunk.say(&frame(RESET, 1, b"")).await;
        eventually("the first is over", || agent.ends.borrow().len() == 1).await;
        trunk.say(&[frame(DATA, 1, b"late"), open(3, "no authority")].concat()).await;
        let (kind, stream, payload) = trunk.next_but(OPENED).await;
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
