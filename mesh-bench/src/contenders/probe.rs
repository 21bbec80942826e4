//! One connection that is looked at, before any is measured: whose address the server sees, and what can be read on the way.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::{Capture, Lab, UPLINK};

use super::agent::Way;
use super::{CLIENT, Place, Stage};
use crate::load::{PROBE, PROBE_TEXT};

/// How long connections may go another way until everybody knows everything.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time for one connection.
const TIMEOUT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(50);

/// What a connection is expected to look like.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// The server sees the client's own address, or that of somebody in between.
    client_address: bool,
    /// Nobody between the nodes can read it.
    encrypted: bool,
}

/// Looks until a connection is as it should be.
pub(super) fn check(stage: &Stage, place: Place, target: SocketAddr) -> Result<()> {
    let expected = match stage {
        Stage::Lab(_) => Expected { client_address: true, encrypted: false },
        Stage::Mesh { way, .. } => Expected { client_address: true, encrypted: *way == Way::Tunnel },
        Stage::Plugin { encrypted, .. } => Expected { client_address: false, encrypted: *encrypted },
    };
    let end = Instant::now() + PATIENCE;
    loop {
        match look(stage.lab(), place, target, expected) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > end => return Err(error.context("a first connection")),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

fn look(lab: &Lab, place: Place, target: SocketAddr, expected: Expected) -> Result<()> {
    let capture = Capture::of(lab.node(CLIENT.1)?.namespace(), UPLINK).start()?;
    let client = lab.pod(CLIENT.0)?;
    let seen = client.namespace().run(|| ask(target))?.with_context(|| format!("connect to {target}"))?;
    let captured = capture.stop()?;
    let own = client.ipv4().is_some_and(|ip| seen.ip() == ip);
    ensure!(
        own == expected.client_address,
        "the server sees the address {}, which is {}the client's own",
        seen.ip(),
        if own { "" } else { "not " }
    );
    if place == Place::OtherNode {
        ensure!(captured.packets() > 0, "nothing went from node to node");
        let readable = captured.contains(PROBE_TEXT);
        ensure!(
            readable != expected.encrypted,
            "between the nodes everybody can{} read it",
            if readable { "" } else { "not" }
        );
    }
    Ok(())
}

/// Sends a text that can be looked for, and returns the address that the server sees.
fn ask(target: SocketAddr) -> Result<SocketAddr> {
    let mut stream = TcpStream::connect_timeout(&target, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(&[&[PROBE][..], PROBE_TEXT].concat())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.parse().with_context(|| format!("the server said {answer:?}"))
}
