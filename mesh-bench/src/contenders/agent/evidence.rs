//! What the agents have counted, and whether it is what connections of one way lead to.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_lab::{Machine, Mesh};

/// Where the lab's agents have their metrics.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);
const TIMEOUT: Duration = Duration::from_secs(5);
/// What the kernel has counted comes into the metrics a moment later.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
/// The first connections between two pods go through the agent, which learns from them that the kernel can pass the others. One
/// in a hundred may do so later, when a verdict is asked for again.
const FIRST: u64 = 200;

/// The way that connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through a tunnel with mutual TLS between two agents.
    Tunnel,
    /// Authorized by both agents, then passed and counted in the kernel, in plain text between nodes.
    Plain,
    /// Through both agents, in plain text between them.
    PlainRelay,
    /// Through the agent of both.
    Relay,
    /// Authorized by the agent, then passed and counted in the kernel.
    Kernel,
    /// Past the agents: neither end is in the mesh.
    Past,
}

/// Counters of both agents, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    client: Counters,
    server: Counters,
}

/// Counters of an agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counters {
    /// Connections of its pods that went out, or came in, through a tunnel with mutual TLS.
    tunnelled: [u64; 2],
    /// In plain text from or to another node.
    plain: [u64; 2],
    /// From one pod of the node to another.
    same_node: [u64; 2],
    /// SYNs that were given to the agent.
    captured: u64,
    /// SYNs that the kernel passed, as policy allows them.
    passed: u64,
}

impl Evidence {
    /// What the agents say now.
    pub(crate) fn of(mesh: &Mesh) -> Result<Self> {
        let counters = |node| -> Result<Counters> { Counters::read(mesh.lab().node(node)?) };
        Ok(Self { client: counters("node1")?, server: counters("node2")? })
    }

    fn since(&self, before: &Self) -> Self {
        Self { client: self.client.since(&before.client), server: self.server.since(&before.server) }
    }
}

impl Way {
    /// Makes sure that at least so many connections went this way since `before`, and none another.
    pub(crate) fn prove(self, mesh: &Mesh, before: &Evidence, connections: u64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = Evidence::of(mesh)?.since(before);
            if self.is_proven(&seen, connections) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{connections} connections should have gone the way {self:?}, but the agents count {seen:?}"
            );
            std::thread::sleep(POLL);
        }
    }

    fn is_proven(self, seen: &Evidence, connections: u64) -> bool {
        let Evidence { client, server } = seen;
        match self {
            Self::Tunnel => {
                client.tunnelled[OUT] >= connections
                    && server.tunnelled[IN] >= connections
                    && client.plain[OUT] == 0
                    && server.plain[IN] == 0
            }
            Self::Plain => {
                is_plain(seen, connections)
                    && [client, server].iter().all(|side| side.passes_in_kernel(connections))
            }
            Self::PlainRelay => {
                is_plain(seen, connections) && [client, server].iter().all(|side| side.passed == 0)
            }
            Self::Relay => {
                client.same_node[IN] >= connections && client.captured >= connections && client.passed == 0
            }
            Self::Kernel => client.same_node[IN] >= connections && client.passes_in_kernel(connections),
            Self::Past => *seen == Evidence::default(),
        }
    }
}

const OUT: usize = 0;
const IN: usize = 1;

/// Whether so many connections went from one node to the other in plain text, and none otherwise.
fn is_plain(Evidence { client, server }: &Evidence, connections: u64) -> bool {
    client.plain[OUT] >= connections && server.plain[IN] >= connections && client.tunnelled[OUT] == 0
}

impl Counters {
    /// Whether the kernel has passed so many, but for the first.
    fn passes_in_kernel(&self, connections: u64) -> bool {
        self.passed.saturating_add(FIRST) >= connections && self.captured <= FIRST + connections / 100
    }

    fn read(node: &Machine) -> Result<Self> {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&METRICS, TIMEOUT)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let text = node.namespace().run(ask)?;
        Ok(Self::parse(&text.with_context(|| format!("the metrics of {}'s agent", node.name()))?))
    }

    fn parse(metrics: &str) -> Self {
        let sum = |name: &str, labels: &[&str]| -> u64 {
            let lines = metrics.lines().filter(|line| {
                line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
                    && labels.iter().all(|label| line.contains(label))
            });
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        let opened = |security: &str| {
            ["source", "destination"].map(|reporter| {
                let labels = [
                    format!("reporter=\"{reporter}\""),
                    format!("connection_security_policy=\"{security}\""),
                ];
                sum("istio_tcp_connections_opened_total", &labels.each_ref().map(String::as_str))
            })
        };
        let packets =
            |outcome: &str| sum("mesh_agent_steering_packets_total", &[&format!("outcome=\"{outcome}\"")]);
        let [unknown, none] = ["unknown", "none"].map(opened);
        Self {
            tunnelled: opened("mutual_tls"),
            // The client's side cannot tell, says Istio.
            plain: [unknown[OUT], none[IN]],
            same_node: opened("same_node"),
            captured: packets("capture_outbound") + packets("capture_inbound"),
            passed: packets("pass_verdict"),
        }
    }

    fn since(&self, before: &Self) -> Self {
        let pair = |now: [u64; 2], then: [u64; 2]| {
            [now[OUT].saturating_sub(then[OUT]), now[IN].saturating_sub(then[IN])]
        };
        Self {
            tunnelled: pair(self.tunnelled, before.tunnelled),
            plain: pair(self.plain, before.plain),
            same_node: pair(self.same_node, before.same_node),
            captured: self.captured.saturating_sub(before.captured),
            passed: self.passed.saturating_sub(before.passed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"
# TYPE istio_tcp_connections_opened counter
istio_tcp_connections_opened_total{reporter="source",source_workload="a",connection_security_policy="mutual_tls",response_flags="-"} 3
istio_tcp_connections_opened_total{reporter="source",source_workload="b",connection_security_policy="mutual_tls",response_flags="-"} 4
istio_tcp_connections_opened_total{reporter="source",connection_security_policy="unknown",response_flags="-"} 1
istio_tcp_connections_opened_total{reporter="destination",connection_security_policy="same_node",response_flags="-"} 9
mesh_agent_steering_packets_total{outcome="capture_outbound"} 20
mesh_agent_steering_packets_total{outcome="capture_inbound"} 2
mesh_agent_steering_packets_total{outcome="pass_verdict"} 5
"#;

    #[test]
    fn metrics_are_read() {
        let expected =
            Counters { tunnelled: [7, 0], plain: [1, 0], same_node: [0, 9], captured: 22, passed: 5 };
        assert_eq!(Counters::parse(METRICS), expected);
    }

    #[test]
    fn another_way_is_no_proof() {
        let tunnelled = Evidence {
            client: Counters { tunnelled: [10, 0], captured: 10, ..Counters::default() },
            server: Counters { tunnelled: [0, 10], ..Counters::default() },
        };
        assert!(Way::Tunnel.is_proven(&tunnelled, 10));
        assert!(!Way::Tunnel.is_proven(&tunnelled, 11));
        for other in [Way::Plain, Way::PlainRelay, Way::Relay, Way::Kernel, Way::Past] {
            assert!(!other.is_proven(&tunnelled, 10), "{other:?}");
        }
        let plain = |captured, passed| Evidence {
            client: Counters { plain: [900, 0], captured, passed, ..Counters::default() },
            server: Counters { plain: [0, 900], captured, passed, ..Counters::default() },
        };
        assert!(Way::Plain.is_proven(&plain(2, 898), 900) && !Way::Plain.is_proven(&plain(900, 0), 900));
        assert!(Way::PlainRelay.is_proven(&plain(900, 0), 900));
        assert!(!Way::PlainRelay.is_proven(&plain(2, 898), 900));
        let relayed = Evidence {
            client: Counters { same_node: [500, 500], captured: 500, ..Counters::default() },
            ..Evidence::default()
        };
        assert!(Way::Relay.is_proven(&relayed, 500) && !Way::Kernel.is_proven(&relayed, 500));
    }
}
