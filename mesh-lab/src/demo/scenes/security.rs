//! What is encrypted, who may do what, and who says so.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::capture::Stream;
use mesh_lab::{Capture, Machine, Mesh, UPLINK};

use super::super::{Stage, journey};
use super::live::steady;

/// What must not be readable on the way.
const SECRET: &str = "4111-1111-1111-1111";
/// The port of tunnels.
const HBONE_PORT: u16 = 15008;
/// The port of the pods' servers.
const PORT: u16 = 8080;
/// How long a change of policy may take from the file to its effect.
const EFFECT: Duration = Duration::from_secs(10);
/// Life of a certificate in the demo, so that some are renewed while people watch.
pub(in super::super) const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(36);

/// Every packet between the nodes is read.
pub(super) fn encrypted(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, .. } = stage;
    show.scene("Encrypted", "every packet between the nodes is read while a card number is on the way");
    let (web, orders) = (address(mesh, "web-2", PORT)?, address(mesh, "orders-1", 9187)?);

    let capture = Capture::of(mesh.lab().node("node1")?.namespace(), UPLINK).hosts([web.ip()]).start()?;
    let meshed = curl(mesh, "client", web, &["-H", &format!("X-Card: {SECRET}")])?;
    let captured = capture.stop()?;
    show.command("client", &format!("curl -H 'X-Card: {SECRET}' http://{web}/"));
    ensure!(meshed.contains("web-2"), "web-2 does not answer: {meshed:?}");
    let ports = |stream: &Stream| [stream.from().port(), stream.to().port()];
    let tunnelled = captured.streams().iter().all(|stream| ports(stream).contains(&HBONE_PORT));
    show.say(format!(
        "{} packets of web-2 on the uplink of node1, all to or from port {HBONE_PORT}",
        captured.packets()
    ));
    let hidden = !captured.contains(SECRET.as_bytes()) && tunnelled && captured.packets() > 0;
    show.expect(hidden, "nothing but tunnels between enrolled pods; the card number is nowhere in them")?;

    let capture = Capture::of(mesh.lab().node("node1")?.namespace(), UPLINK).start()?;
    curl(mesh, "billing-1", orders, &["-H", &format!("X-Card: {SECRET}")])?;
    let captured = capture.stop()?;
    show.expect(
        captured.contains(SECRET.as_bytes()),
        "the same capture reads it where a pod outside the mesh sends it",
    )?;

    let open = connect(mesh.lab().pod("client")?, web)?;
    show.command("node1", "meshctl connections");
    show.output(&mesh.meshctl_text("node1", &["connections"])?);
    let json = mesh.meshctl("node1", &["connections"])?.to_string();
    drop(open);
    show.expect(
        json.contains("mutual_tls") && json.contains("spiffe://cluster.local/ns/shop/sa/web"),
        "and both ends have proved who they are",
    )
}

/// Who is refused learns it at once, and whoever asks learns why.
pub(super) fn refused(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, examples, .. } = stage;
    show.scene(
        "Refused",
        "examples/policies: nobody gets in, but the client to the web front end, and that encrypted",
    );
    let policies = apply_policies(mesh, &examples.join("policies"))?;
    show.command("you", "cp examples/policies/*.yaml manifests/");
    let web = address(mesh, "web-2", PORT)?;
    let begin = Instant::now();
    let plain = until_refused(mesh, "billing-1", web)?;
    let intruder = until_refused(mesh, "vault-1", web)?;
    show.timing("in force", begin.elapsed());

    let reason = |line: &serde_json::Value| text(line, "error").to_owned();
    let row = |from: &str, line: &serde_json::Value| {
        let flag = text(line, "response_flags").to_owned();
        [from.to_owned(), "web-2".to_owned(), flag, reason(line)]
    };
    show.table(
        ["from", "to", "flag", "what the agent of the server's node has logged"],
        [row("shop/vault-1, of this mesh", &intruder), row("legacy/billing-1, in plain text", &plain)],
    );
    show.expect(
        text(&intruder, "response_flags") == "UAEX" && reason(&intruder).contains("shop/"),
        "an intruder with another identity is refused, and the log names the policy",
    )?;
    show.expect(
        text(&plain, "response_flags") == "MTLS" && reason(&plain).contains("PeerAuthentication"),
        "plain text is refused by the PeerAuthentication, whoever sends it",
    )?;
    let client = curl(mesh, "client", web, &[])?;
    show.expect(client.contains("web-2"), "the client gets its answer")?;
    show.command("node2", "meshctl explain shop/vault-1 10.244.2.12:8080");
    show.output(&mesh.meshctl_text("node2", &["explain", "shop/vault-1", &web.to_string()])?);
    for file in policies {
        mesh.withdraw(&file)?;
    }
    Ok(())
}

/// A policy that changes ends what it no longer allows.
pub(super) fn taken_back(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, examples, .. } = stage;
    show.scene("Taken back", "connections that are open when a policy forbids them");
    let client = mesh.lab().pod("client")?;
    let servers = [("web-2, through the tunnel", "web-2"), ("web-1, on the same node", "web-1")];
    // Twice: from the second one on, connections on one node pass in the kernel.
    let mut open = Vec::new();
    for (what, pod) in servers {
        drop(connect(client, address(mesh, pod, PORT)?)?);
        open.push((what, connect(client, address(mesh, pod, PORT)?)?));
    }
    let policy = fs::read_to_string(examples.join("policies/10-deny-by-default.yaml"))?;
    show.command("you", "cp examples/policies/10-deny-by-default.yaml manifests/");
    let begin = Instant::now();
    mesh.apply("policy-10-deny-by-default.yaml", &policy)?;
    let mut ended = Vec::new();
    for (what, mut stream) in open {
        stream.set_read_timeout(Some(EFFECT))?;
        // What the server says when it is connected to may still be there.
        let end = loop {
            match stream.read(&mut [0; 1024]) {
                Ok(0) => break "closed",
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break "reset",
                Err(error) => {
                    return Err(error).with_context(|| format!("the connection to {what} is still open"));
                }
            }
        };
        ended.push([what.to_owned(), end.to_owned(), format!("{} ms", begin.elapsed().as_millis())]);
    }
    show.table(["connection to", "end", "after the file was written"], ended);
    show.expect(true, "both were ended, idle as they were")?;
    mesh.withdraw("policy-10-deny-by-default.yaml")?;
    ["web-1", "web-2", "web-3"]
        .iter()
        .try_for_each(|pod| until_allowed(mesh, "client", address(mesh, pod, PORT)?))
}

/// Certificates are replaced and nobody notices.
pub(super) fn rotated(stage: &mut Stage) -> Result<()> {
    let Stage { show, mesh, .. } = stage;
    show.scene("Rotated", "certificates live for 36 s here; they are renewed under 200 requests a second");
    let before = serials(mesh)?;
    let traffic = steady(mesh)?;
    let begin = Instant::now();
    let after = loop {
        let now = serials(mesh)?;
        if before.iter().all(|(identity, serial)| now.get(identity) != Some(serial)) {
            break now;
        }
        ensure!(begin.elapsed() < CERTIFICATE_LIFETIME, "they were not renewed: {now:?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    traffic.wait_for(EFFECT, |report| report.succeeded > 200)?;
    let report = traffic.stop();
    let rows = after.iter().map(|((node, identity), serial)| {
        let old =
            before.get(&(node.clone(), identity.clone())).map(|serial| tail(serial)).unwrap_or_default();
        [node.clone(), identity.clone(), old, tail(serial)]
    });
    show.table(["node", "identity", "serial, before", "after"], rows.collect::<Vec<_>>());
    show.timing("all renewed", begin.elapsed());
    show.say(format!("{} requests, {} failed", report.requests, report.failed));
    show.expect(report.failed == 0, "every certificate was replaced without one failed request")
}

fn text<'a>(value: &'a serde_json::Value, field: &str) -> &'a str {
    value.get(field).and_then(serde_json::Value::as_str).unwrap_or_default()
}

fn tail(serial: &str) -> String {
    format!("…{}", serial.get(serial.len().saturating_sub(8)..).unwrap_or(serial))
}

/// Serial numbers by node and identity.
fn serials(mesh: &Mesh) -> Result<BTreeMap<(String, String), String>> {
    let mut serials = BTreeMap::new();
    for node in mesh.nodes() {
        let report = mesh.meshctl(&node, &["identities"])?;
        let identities = report.get("identities").and_then(serde_json::Value::as_array);
        for known in identities.into_iter().flatten() {
            let text = |field: &str| text(known, field).to_owned();
            serials.insert((node.clone(), text("identity")), text("serial"));
        }
    }
    Ok(serials)
}

fn address(mesh: &Mesh, pod: &str, port: u16) -> Result<SocketAddr> {
    let address = mesh.lab().pod(pod)?.ipv4().with_context(|| format!("{pod} has no IPv4 address"))?;
    Ok(SocketAddr::new(address.into(), port))
}

/// Opens a connection that stays, once the server behind it has answered.
fn connect(from: &Machine, to: SocketAddr) -> Result<TcpStream> {
    let mut stream = from.namespace().run(|| TcpStream::connect_timeout(&to, EFFECT))??;
    stream.set_read_timeout(Some(EFFECT))?;
    stream.write_all(b"who\n")?;
    let read = stream.read(&mut [0; 1024])?;
    ensure!(read > 0, "{to} closed the connection");
    Ok(stream)
}

/// What curl in a pod gets; empty where it is refused.
fn curl(mesh: &Mesh, pod: &str, to: SocketAddr, arguments: &[&str]) -> Result<String> {
    let program = mesh.lab().pod(pod)?.program("curl")?;
    let output =
        program.args(["-sg", "--max-time", "5"]).args(arguments).arg(format!("http://{to}/")).output()?;
    Ok(output.stdout)
}

/// Copies the policies to the manifests; returns the names of the files.
fn apply_policies(mesh: &Mesh, directory: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in super::super::sorted_files(directory)? {
        if entry.extension().is_some_and(|extension| extension == "yaml") {
            let name = format!("policy-{}", entry.file_name().unwrap_or_default().to_string_lossy());
            mesh.apply(&name, &fs::read_to_string(&entry)?)?;
            files.push(name);
        }
    }
    Ok(files)
}

/// Waits until a pod's request is refused; returns the line of the log that says why, on the server's side.
fn until_refused(mesh: &Mesh, pod: &str, to: SocketAddr) -> Result<serde_json::Value> {
    let end = Instant::now() + EFFECT;
    loop {
        let mark = journey::mark(mesh);
        let answer = curl(mesh, pod, to, &[])?;
        while answer.is_empty() && Instant::now() < end {
            let refused = journey::since(mesh, &mark).into_iter().find(|(_, line)| {
                text(line, "direction") == "inbound"
                    && text(line, "src.workload") == pod
                    && text(line, "response_flags") != "-"
            });
            if let Some((_, line)) = refused {
                return Ok(line);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        ensure!(Instant::now() < end, "{pod} still gets answers from {to}: {answer:?}");
    }
}

/// Waits until a pod gets an answer.
fn until_allowed(mesh: &Mesh, pod: &str, to: SocketAddr) -> Result<()> {
    let end = Instant::now() + EFFECT;
    while curl(mesh, pod, to, &[])?.is_empty() {
        ensure!(Instant::now() < end, "{pod} is still refused by {to}");
    }
    Ok(())
}
