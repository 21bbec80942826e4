//! `meshctl connections`: who talks to whom right now.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use clap::Args;

use crate::admin::api::{ConnectionInfo, PeerInfo, path};
use crate::telemetry::{ConnectionSecurity, Direction, Transport};

use super::screen::{DUBIOUS, EMPHASIS, FAINT, GOOD, PLAIN, Screen, faint};
use super::table::{Cell, Table, numbers, words};
use super::text::{age, bytes, plural, short_identity, short_service};
use super::{Context, MeshctlError, Output, REFRESH};

#[derive(Debug, Args)]
pub(super) struct ConnectionsArgs {
    /// Keep showing them, with their rates. With -o json, one array per line.
    #[arg(short, long)]
    follow: bool,

    /// Only connections from or to this namespace.
    #[arg(short, long)]
    namespace: Option<String>,

    /// Only connections from or to a pod with this in its name or address.
    #[arg(short, long, value_name = "TEXT")]
    pod: Option<String>,

    /// Only connections from or to somebody who has proved an identity with this in it.
    #[arg(long, value_name = "TEXT")]
    principal: Option<String>,

    /// Only connections whose ends know each other like this.
    #[arg(long, value_enum)]
    security: Option<ConnectionSecurity>,

    /// Only connections whose bytes travel like this.
    #[arg(long, value_enum)]
    transport: Option<Transport>,
}

impl ConnectionsArgs {
    fn selects(&self, connection: &ConnectionInfo) -> bool {
        let ends = || [Some(&connection.source), connection.destination.as_ref()].into_iter().flatten();
        let in_namespace = |namespace: &str| ends().any(|end| end.namespace.as_deref() == Some(namespace));
        let of_pod = |text: &str| {
            ends().any(|end| {
                end.address.contains(text) || end.name.as_ref().is_some_and(|name| name.contains(text))
            })
        };
        let of_principal = |text: &str| {
            ends().any(|end| end.principal.as_ref().is_some_and(|principal| principal.contains(text)))
        };
        self.namespace.as_deref().is_none_or(in_namespace)
            && self.pod.as_deref().is_none_or(of_pod)
            && self.principal.as_deref().is_none_or(of_principal)
            && self.security.is_none_or(|security| connection.security == security)
            && self.transport.is_none_or(|transport| connection.transport == transport)
    }
}

pub(super) async fn run(context: &Context, args: &ConnectionsArgs) -> Result<(), MeshctlError> {
    if !args.follow {
        let connections = list(context, args).await?;
        return context.print(&connections, |screen, connections| print(screen, connections, None));
    }
    let mut before = Rates::default();
    loop {
        let connections = list(context, args).await?;
        match context.output {
            Output::Json => {
                let mut out = io::stdout().lock();
                serde_json::to_writer(&mut out, &connections)?;
                io::Write::write_all(&mut out, b"\n")?;
            }
            Output::Table => {
                let mut screen = Screen::stdout(context.color);
                if screen.is_terminal() {
                    screen.clear()?;
                }
                print(&mut screen, &connections, Some(&before))?;
                screen.blank()?;
                screen.flush()?;
            }
        }
        before = Rates::of(&connections);
        tokio::time::sleep(REFRESH).await;
    }
}

async fn list(context: &Context, args: &ConnectionsArgs) -> Result<Vec<ConnectionInfo>, MeshctlError> {
    let mut connections: Vec<ConnectionInfo> = context.client.get(path::CONNECTIONS).await?;
    connections.retain(|connection| args.selects(connection));
    Ok(connections)
}

/// What each connection had carried when it was last looked at.
#[derive(Debug, Default)]
struct Rates {
    seen: Option<Instant>,
    bytes: HashMap<u64, u64>,
}

impl Rates {
    fn of(connections: &[ConnectionInfo]) -> Self {
        Self {
            seen: Some(Instant::now()),
            bytes: connections.iter().map(|connection| (connection.id, carried(connection))).collect(),
        }
    }

    /// Bytes a second since then, both directions together.
    fn rate(&self, connection: &ConnectionInfo) -> Option<u64> {
        let elapsed = self.seen?.elapsed().as_millis();
        let moved = carried(connection).saturating_sub(*self.bytes.get(&connection.id)?);
        u64::try_from(u128::from(moved) * 1000 / elapsed.max(1)).ok()
    }
}

fn carried(connection: &ConnectionInfo) -> u64 {
    connection.bytes_to_server + connection.bytes_to_client
}

fn print(screen: &mut Screen, connections: &[ConnectionInfo], before: Option<&Rates>) -> io::Result<()> {
    if connections.is_empty() {
        return screen.line(&faint("no connections"));
    }
    let mut table = Table::new(&[
        words(""),
        words("CLIENT").shrinks(),
        words("TO").shrinks().expendable(1),
        words("SERVER").shrinks(),
        numbers("SENT"),
        numbers("RECEIVED"),
        numbers("RATE"),
        numbers("AGE"),
        words("SECURITY"),
        words("PRINCIPALS").shrinks().expendable(3),
        words("WAY").expendable(2),
    ]);
    for connection in connections {
        let rate = before.and_then(|before| before.rate(connection));
        table.row([
            match connection.direction {
                Direction::Outbound => Cell::styled(EMPHASIS, "→"),
                Direction::Inbound => Cell::styled(EMPHASIS, "←"),
            },
            peer(&connection.source).into(),
            requested(connection),
            connection.destination.as_ref().map_or_else(|| "…".into(), |server| peer(server).into()),
            bytes(connection.bytes_to_server).into(),
            bytes(connection.bytes_to_client).into(),
            match rate {
                None => "".into(),
                Some(0) => Cell::styled(FAINT, "idle"),
                Some(rate) => format!("{}/s", bytes(rate)).into(),
            },
            age(Duration::from_millis(connection.age_milliseconds)).into(),
            security(connection.security),
            principals(connection).into(),
            way(connection),
        ]);
    }
    table.print(screen)?;
    screen.blank()?;
    let outbound =
        connections.iter().filter(|connection| connection.direction == Direction::Outbound).count();
    let inbound = connections.len() - outbound;
    screen.line(&faint(&format!(
        "{}: {outbound} → from pods of this node, {inbound} ← to pods of this node",
        plural(connections.len(), "connection")
    )))
}

/// A pod by its name, anything else by its address.
fn peer(peer: &PeerInfo) -> String {
    let port = peer.address.rsplit(':').next().unwrap_or_default();
    match (&peer.namespace, &peer.name) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}:{port}"),
        _ => peer.address.clone(),
    }
}

/// What the client asked for, where that is not simply the server.
fn requested(connection: &ConnectionInfo) -> Cell {
    let port = connection.original_destination.rsplit(':').next().unwrap_or_default();
    match (&connection.service, &connection.destination) {
        (Some(service), _) => format!("{}:{port}", short_service(service)).into(),
        (None, Some(server)) if server.address == connection.original_destination => "".into(),
        (None, _) => connection.original_destination.as_str().into(),
    }
}

fn security(security: ConnectionSecurity) -> Cell {
    match security {
        ConnectionSecurity::None => Cell::styled(DUBIOUS, "none"),
        ConnectionSecurity::SameNode => Cell::styled(GOOD, "same node"),
        ConnectionSecurity::MutualTls => Cell::styled(GOOD, "mutual TLS"),
    }
}

/// Who the two ends have proved to be.
fn principals(connection: &ConnectionInfo) -> String {
    let of = |peer: Option<&PeerInfo>| peer.and_then(|peer| peer.principal.as_deref()).map(short_identity);
    match (of(Some(&connection.source)), of(connection.destination.as_ref())) {
        (None, None) => String::new(),
        (source, destination) => {
            let or_unknown = |principal: Option<String>| principal.unwrap_or_else(|| "?".into());
            format!("{} → {}", or_unknown(source), or_unknown(destination))
        }
    }
}

fn way(connection: &ConnectionInfo) -> Cell {
    match (connection.transport, connection.attempts) {
        (Transport::Kernel, _) => Cell::styled(GOOD, "in the kernel"),
        (Transport::Hbone, 0 | 1) => Cell::styled(GOOD, "tunnelled"),
        (Transport::Hbone, attempts) => Cell::styled(PLAIN, format!("tunnelled, attempt {attempts}")),
        (Transport::Passthrough, _) => Cell::styled(DUBIOUS, "passed through"),
        (Transport::Plain, 0 | 1) => Cell::styled(GOOD, "proxied"),
        (Transport::Plain, attempts) => Cell::styled(PLAIN, format!("proxied, attempt {attempts}")),
    }
}
