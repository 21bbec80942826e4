use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream as Blocking};
use std::thread;

use socket2::SockRef;
use tokio::runtime::{Builder, LocalOptions};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
const BUDGET: usize = 1 << 20;

/// What a relay left behind.
struct Outcome {
    end: RelayEnd,
    sent: u64,
    received: u64,
    /// Most memory its buffers took, and what they took at the end.
    peak: usize,
    kept: usize,
}

/// Relays between two connections, whose far ends `client` and `server` play on threads of their own.
fn relayed(
    idle: Duration,
    client: impl FnOnce(Blocking) + Send + 'static,
    server: impl FnOnce(Blocking) + Send + 'static,
) -> Outcome {
    relayed_until(|_| false, idle, client, server)
}

/// The same, with the last call as soon as `last_call` says so of what has moved.
fn relayed_until(
    last_call: impl Fn(&Traffic) -> bool + 'static,
    idle: Duration,
    client: impl FnOnce(Blocking) + Send + 'static,
    server: impl FnOnce(Blocking) + Send + 'static,
) -> Outcome {
    let (client_end, ours) = pair();
    let player = thread::spawn(move || client(client_end));
    let (server_end, theirs) = pair();
    let other_player = thread::spawn(move || server(server_end));
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    let outcome = runtime.block_on(async {
        let traffic = Rc::new(Traffic::default());
        let buffers = BufferPool::new(BUDGET);
        let lifetime = Lifetime::new(idle);
        let stream = |tcp: Blocking| Stream::new(TcpStream::from_std(tcp).unwrap());
        let (watched, counted, ending) = (Rc::clone(&buffers), Rc::clone(&traffic), lifetime.clone());
        let watch = tokio::task::spawn_local(async move {
            let mut peak = 0;
            loop {
                if last_call(&counted) {
                    ending.end_at_rest();
                }
                peak = peak.max(watched.allocated());
                PEAK.set(peak);
                sleep(Duration::from_millis(1)).await;
            }
        });
        let (mut client, mut server) = (stream(ours), stream(theirs));
        let end = relay(&mut client, &mut server, &traffic, &buffers, &lifetime).await;
        drop((client, server));
        watch.abort();
        Outcome {
            end,
            sent: traffic.sent(),
            received: traffic.received(),
            peak: PEAK.get(),
            kept: buffers.allocated(),
        }
    });
    player.join().unwrap();
    other_player.join().unwrap();
    outcome
}

thread_local! {
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// Two ends of a connection: one for a player, one for the relay.
fn pair() -> (Blocking, Blocking) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let player = Blocking::connect(listener.local_addr().unwrap()).unwrap();
    player.set_read_timeout(Some(PATIENCE)).unwrap();
    player.set_write_timeout(Some(PATIENCE)).unwrap();
    let (relayed, _) = listener.accept().unwrap();
    relayed.set_nonblocking(true).unwrap();
    (player, relayed)
}

fn reset(stream: Blocking) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

fn expect(stream: &mut Blocking, text: &str) {
    let mut bytes = vec![0; text.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, text.as_bytes());
}

fn expect_end(stream: &mut Blocking) {
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

fn expect_reset(stream: &mut Blocking) {
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn an_open_connection_is_small() {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let traffic = Traffic::default();
        let stream = || Stream::new(TcpStream::from_std(pair().1).unwrap());
        let buffers = BufferPool::new(BUDGET);
        let (mut client, mut server) = (stream(), stream());
        let lifetime = Lifetime::new(PATIENCE);
        let relay = relay(&mut client, &mut server, &traffic, &buffers, &lifetime);
        let size = size_of_val(&relay);
        assert!(size <= 744, "a relay takes {size} bytes");
    });
}

#[test]
fn at_the_last_call_a_client_is_dismissed_once_its_request_is_answered() {
    // Called while the answer is due.
    let outcome = relayed_until(
        |traffic| traffic.sent() >= 3,
        PATIENCE,
        |mut client| {
            client.write_all(b"one").unwrap();
            expect(&mut client, "two");
            expect_end(&mut client);
        },
        |mut server| {
            expect(&mut server, "one");
            // Long enough for a relay that takes silence alone for rest.
            thread::sleep(REST_CHECK * 5);
            server.write_all(b"two").unwrap();
            expect_end(&mut server);
        },
    );
    assert!(matches!(outcome.end, RelayEnd::Complete), "{:?}", outcome.end);
    assert_eq!((outcome.sent, outcome.received), (3, 3));
}

#[test]
fn the_client_ends_its_side_first_and_still_gets_the_answer() {
    let outcome = relayed(
        PATIENCE,
        |mut client| {
            client.write_all(b"question").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            expect(&mut client, "a late answer");
            expect_end(&mut client);
        },
        |mut server| {
            expect(&mut server, "question");
            expect_end(&mut server);
            server.write_all(b"a late answer").unwrap();
        },
    );
    assert!(matches!(outcome.end, RelayEnd::Complete), "{:?}", outcome.end);
    assert_eq!((outcome.sent, outcome.received), (8, 13));
}

#[test]
fn the_server_ends_its_side_first_and_still_gets_the_rest() {
    let outcome = relayed(
        PATIENCE,
        |mut client| {
            expect(&mut client, "hello");
            expect_end(&mut client);
            client.write_all(b"the rest").unwrap();
        },
        |mut server| {
            server.write_all(b"hello").unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            expect(&mut server, "the rest");
            expect_end(&mut server);
        },
    );
    assert!(matches!(outcome.end, RelayEnd::Complete), "{:?}", outcome.end);
}

#[test]
fn both_sides_may_end_at_once_and_without_a_word() {
    let outcome = relayed(PATIENCE, drop, drop);
    assert!(matches!(outcome.end, RelayEnd::Complete), "{:?}", outcome.end);
    assert_eq!((outcome.sent, outcome.received), (0, 0));
}

#[test]
fn a_reset_of_the_client_reaches_the_server() {
    let outcome = relayed(
        PATIENCE,
        |mut client| {
            client.write_all(b"half a quest").unwrap();
            expect(&mut client, "got it");
            reset(client);
        },
        |mut server| {
            expect(&mut server, "half a quest");
            server.write_all(b"got it").unwrap();
            expect_reset(&mut server);
        },
    );
    assert!(matches!(outcome.end, RelayEnd::ClientBroke(_)), "{:?}", outcome.end);
}

#[test]
fn a_reset_of_the_server_reaches_the_client() {
    let outcome = relayed(
        PATIENCE,
        |mut client| {
            client.write_all(b"question").unwrap();
            expect_reset(&mut client);
        },
        |mut server| {
            expect(&mut server, "question");
            reset(server);
        },
    );
    assert!(matches!(outcome.end, RelayEnd::ServerBroke(_)), "{:?}", outcome.end);
}

/// A server that refuses an upload answers, and closes with bytes unread: that resets.
#[test]
fn an_answer_before_a_reset_is_delivered() {
    let outcome = relayed(
        PATIENCE,
        |mut client| {
            // Goes on until the server's reset comes back.
            while client.write_all(&[b'x'; 4096]).is_ok() {}
            // The kernel keeps what came before the reset.
            expect(&mut client, "too large");
        },
        |mut server| {
            expect(&mut server, "xxxx");
            server.write_all(b"too large").unwrap();
        },
    );
    assert!(matches!(outcome.end, RelayEnd::ServerBroke(_)), "{:?}", outcome.end);
    assert_eq!(outcome.received, 9);
}

#[test]
fn a_client_that_resets_while_the_server_takes_nothing_is_noticed() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let outcome = relayed(
        PATIENCE,
        |mut client| {
            client.set_nonblocking(true).unwrap();
            // Until every buffer on the way is full.
            let mut quiet = 0;
            while quiet < 20 {
                if client.write_all(&[b'x'; 4096]).is_ok() {
                    quiet = 0;
                } else {
                    quiet += 1;
                    thread::sleep(Duration::from_millis(5));
                }
            }
            reset(client);
        },
        move |server| {
            let _ = stopped.recv_timeout(Duration::from_secs(1));
            drop(server);
        },
    );
    drop(stop);
    match outcome.end {
        RelayEnd::ClientBroke(_) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_slow_reader_holds_one_buffer_and_gets_everything() {
    const TOTAL: usize = 24 << 20;
    let outcome = relayed(
        PATIENCE,
        |mut client| {
            let mut pieces = vec![0; 1 << 20];
            let mut sum = 0_usize;
            loop {
                let count = client.read(&mut pieces).unwrap();
                if count == 0 {
                    break;
                }
                sum += count;
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(sum, TOTAL);
        },
        |mut server| server.write_all(&vec![7; TOTAL]).unwrap(),
    );
    assert!(matches!(outcome.end, RelayEnd::Complete), "{:?}", outcome.end);
    assert_eq!(outcome.received, TOTAL as u64);
    // One of each size, as the stream grew.
    assert!(outcome.peak <= (4 + 16 + 64) << 10, "{} bytes of buffers", outcome.peak);
    assert!(outcome.kept <= outcome.peak);
}

#[test]
fn a_silent_connection_is_ended_and_a_busy_one_is_not() {
    let started = Instant::now();
    let idle = Duration::from_millis(400);
    let outcome = relayed(
        idle,
        |mut client| {
            for _ in 0..20 {
                client.write_all(b".").unwrap();
                expect(&mut client, ".");
                thread::sleep(Duration::from_millis(40));
            }
            expect_reset(&mut client);
        },
        |mut server| {
            for _ in 0..20 {
                expect(&mut server, ".");
                server.write_all(b".").unwrap();
            }
            expect_reset(&mut server);
        },
    );
    assert!(matches!(outcome.end, RelayEnd::Idle), "{:?}", outcome.end);
    assert_eq!((outcome.sent, outcome.received), (20, 20));
    assert!(started.elapsed() >= Duration::from_millis(19 * 40) + idle);
}
