#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::wire::{Counted, Header, MESSAGE};
use super::{DriveOptions, Outcome, Work, connects, exchanges, run, server, streams};

/// Runs a client against a server that runs on the same thread.
fn drive(work: Work, connections: usize, server: impl AsyncFnOnce(TcpListener) + 'static) -> Outcome {
    run(async {
        let listener = server::listen((Ipv4Addr::LOCALHOST, 0).into())?;
        let to = listener.local_addr()?;
        tokio::task::spawn_local(server(listener));
        measure(work, connections, to).await
    })
    .unwrap()
}

async fn measure(work: Work, connections: usize, to: SocketAddr) -> anyhow::Result<Outcome> {
    let [warm_up, window] = [20, 200].map(Duration::from_millis);
    let options = DriveOptions { work, to, connections, warm_up, window };
    match work {
        Work::Streams => streams::measure(&options).await,
        Work::Exchanges => exchanges::measure(&options).await,
        Work::Connects => connects::measure(&options).await,
    }
}

async fn serve(listener: TcpListener) {
    server::accept(listener).await.unwrap();
}

/// Closes every connection at once.
async fn slam(listener: TcpListener) {
    loop {
        drop(listener.accept().await.unwrap());
    }
}

#[test]
fn streams_are_counted_by_the_receiver() {
    for connections in [1, 4] {
        let outcome = drive(Work::Streams, connections, serve);
        assert!(outcome.errors.is_empty(), "{outcome:?}");
        assert_eq!(outcome.completed, connections as u64);
        assert!(outcome.seconds >= 0.2 && outcome.bytes_per_second > 0.0, "{outcome:?}");
    }
}

/// The server's count is that of the window: neither what came before nor what comes after.
#[test]
fn only_the_window_is_counted() {
    run(async {
        let listener = server::listen((Ipv4Addr::LOCALHOST, 0).into())?;
        let to = listener.local_addr()?;
        tokio::task::spawn_local(serve(listener));
        let mut stream = TcpStream::connect(to).await?;
        let [warm_up, window] = [50, 50].map(Duration::from_millis);
        Header::Stream { warm_up, window }.write(&mut stream).await?;
        stream.write_all(&[0; 100]).await?;
        tokio::time::sleep(warm_up).await;
        // Ends the warm-up, which is over; what is read for that is of before.
        stream.write_all(&[0; 100]).await?;
        tokio::time::sleep(window).await;
        stream.write_all(&[0; 7]).await?;
        let counted = Counted::read(&mut stream).await?;
        assert!(counted.time >= window && counted.bytes <= 107, "{counted:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn exchanges_add_up() {
    for connections in [1, 16] {
        let outcome = drive(Work::Exchanges, connections, serve);
        assert!(outcome.errors.is_empty(), "{outcome:?}");
        assert!(outcome.completed > 0 && outcome.rate() > 0.0, "{outcome:?}");
        assert!(outcome.p50_us > 0.0 && outcome.p50_us <= outcome.p99_us, "{outcome:?}");
        assert!(outcome.processor_seconds >= 0.0, "{outcome:?}");
    }
}

/// Exactly as many are counted as the server has answered.
#[test]
fn exchanges_are_those_that_were_answered() {
    const ANSWERS: u64 = 5;
    let outcome = drive(Work::Exchanges, 1, async |listener: TcpListener| {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Or the second part of an answer waits until the first is acknowledged, 40 ms, which is as long as all of them may take.
        stream.set_nodelay(true).unwrap();
        assert_eq!(Header::read(&mut stream).await.unwrap(), Header::Exchange);
        // Past the warm-up, during which nothing is counted.
        tokio::time::sleep(Duration::from_millis(40)).await;
        for _ in 0..ANSWERS {
            stream.read_exact(&mut [0; MESSAGE]).await.unwrap();
            // In two parts: an answer need not come at once.
            stream.write_all(&[0; MESSAGE / 2]).await.unwrap();
            tokio::task::yield_now().await;
            stream.write_all(&[0; MESSAGE / 2]).await.unwrap();
        }
        stream.read_exact(&mut [0; MESSAGE]).await.unwrap();
        drop(stream);
        slam(listener).await;
    });
    assert_eq!(outcome.completed, ANSWERS, "{outcome:?}");
    assert!(outcome.failed() > 0, "{outcome:?}");
}

#[test]
fn connections_add_up() {
    let outcome = drive(Work::Connects, 16, serve);
    assert!(outcome.errors.is_empty(), "{outcome:?}");
    assert!(outcome.completed > 0 && outcome.p50_us > 0.0, "{outcome:?}");
}

#[test]
fn connections_that_are_closed_are_errors() {
    for work in [Work::Exchanges, Work::Connects, Work::Streams] {
        let outcome = drive(work, 4, slam);
        assert!(outcome.failed() > 0, "{work:?}: {outcome:?}");
        assert_eq!((outcome.completed, outcome.bytes_per_second), (0, 0.0), "{work:?}: {outcome:?}");
    }
}

#[test]
fn connections_that_are_refused_are_errors() {
    let refusing = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    for work in [Work::Exchanges, Work::Connects, Work::Streams] {
        let outcome = run(measure(work, 4, refusing)).unwrap();
        assert!(outcome.errors.keys().all(|kind| kind.contains("ConnectionRefused")), "{outcome:?}");
        assert!(outcome.failed() > 0 && outcome.completed == 0, "{outcome:?}");
    }
}
