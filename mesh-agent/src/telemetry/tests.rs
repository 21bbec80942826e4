use std::time::Instant;

use prometheus_client::encoding::text::encode;

use super::testing::{record, tunnelled, workload};
use super::*;

fn telemetry() -> Arc<Telemetry> {
    Telemetry::new(2, &TelemetryOptions::default()).unwrap()
}

fn scrape(telemetry: &Arc<Telemetry>) -> String {
    let mut registry = MetricsRegistry::default();
    telemetry.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

/// The values of all lines of a metric whose labels contain every one of `labels`.
fn values(text: &str, metric: &str, labels: &[&str]) -> Vec<f64> {
    text.lines()
        .filter(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn a_connection_has_istios_labels() {
    let telemetry = telemetry();
    telemetry.opened(&Arc::new(tunnelled(1)));
    let text = scrape(&telemetry);
    let line = text.lines().find(|line| line.starts_with("istio_tcp_connections_opened_total")).unwrap();
    let labels = [
        r#"reporter="source""#,
        r#"source_workload="client""#,
        r#"source_canonical_service="client""#,
        r#"source_canonical_revision="v1""#,
        r#"source_workload_namespace="shop""#,
        r#"source_principal="spiffe://cluster.local/ns/shop/sa/client""#,
        r#"source_app="client""#,
        r#"source_version="v1""#,
        r#"source_cluster="c1""#,
        r#"destination_workload="web""#,
        r#"destination_canonical_service="web""#,
        r#"destination_canonical_revision="v1""#,
        r#"destination_workload_namespace="shop""#,
        r#"destination_principal="spiffe://cluster.local/ns/shop/sa/web""#,
        r#"destination_app="web""#,
        r#"destination_version="v1""#,
        r#"destination_cluster="c1""#,
        r#"destination_service="web.shop.svc.cluster.local""#,
        r#"destination_service_name="web""#,
        r#"destination_service_namespace="shop""#,
        r#"request_protocol="tcp""#,
        r#"connection_security_policy="mutual_tls""#,
        r#"response_flags="-""#,
    ];
    assert_eq!(line, format!("istio_tcp_connections_opened_total{{{}}} 1", labels.join(",")));
}

#[test]
fn an_address_is_no_principal() {
    let telemetry = telemetry();
    let mut plain = record(1);
    telemetry.opened(&Arc::new(plain));
    plain = record(2);
    plain.direction = Direction::Inbound;
    telemetry.opened(&Arc::new(plain));
    // A peer that the mesh does not know by its address, behind a gateway say, may still prove who it is.
    let mut behind_a_gateway = tunnelled(3);
    behind_a_gateway.source.workload = None;
    telemetry.opened(&Arc::new(behind_a_gateway));

    let text = scrape(&telemetry);
    let opened = |labels: &[&str]| values(&text, "istio_tcp_connections_opened_total", labels);
    let unproven = ["source_workload=\"client\"", "source_principal=\"unknown\""];
    let unproven = [unproven.as_slice(), &["destination_principal=\"unknown\""]].concat();
    assert_eq!(opened(&unproven).len(), 2);
    let policy = |reporter, policy| opened(&[reporter, policy, "source_workload=\"client\""]);
    assert_eq!(policy("reporter=\"source\"", "connection_security_policy=\"unknown\""), [1.0]);
    assert_eq!(policy("reporter=\"destination\"", "connection_security_policy=\"none\""), [1.0]);
    let proven =
        ["source_workload=\"unknown\"", "source_principal=\"spiffe://cluster.local/ns/shop/sa/client\""];
    assert_eq!(opened(&proven), [1.0]);
}

#[test]
fn bytes_are_counted_once_while_the_connection_lives_and_when_it_ends() {
    let telemetry = telemetry();
    let record = Arc::new(record(1));
    telemetry.opened(&record);
    let bytes = |telemetry| {
        let text = scrape(telemetry);
        let of = |metric| values(&text, metric, &["reporter=\"source\""]);
        (of("istio_tcp_received_bytes_total"), of("istio_tcp_sent_bytes_total"))
    };

    record.traffic.add_sent(100);
    record.traffic.add_received(1000);
    assert_eq!(bytes(&telemetry), (vec![100.0], vec![1000.0]));
    assert_eq!(bytes(&telemetry), (vec![100.0], vec![1000.0]));

    record.traffic.add_sent(1);
    telemetry.closed(&record, &ConnectionEnd::default());
    assert_eq!(bytes(&telemetry), (vec![101.0], vec![1000.0]));
    let text = scrape(&telemetry);
    assert_eq!(values(&text, "istio_tcp_connections_closed_total", &["response_flags=\"-\""]), [1.0]);
}

#[test]
fn open_connections_are_listed_oldest_first_and_counted() {
    let telemetry = telemetry();
    let now = Instant::now();
    let mut records = Vec::new();
    for id in 0..100 {
        let mut record = record(id);
        record.worker = usize::try_from(id % 3).unwrap();
        record.opened = now + Duration::from_secs(100 - id);
        if id < 10 {
            record.direction = Direction::Inbound;
        }
        records.push(Arc::new(record));
        telemetry.opened(records.last().unwrap());
    }
    let ids: Vec<_> = telemetry.connections().iter().map(|record| record.id).collect();
    assert_eq!(ids, (0..100).rev().collect::<Vec<_>>());
    assert_eq!((telemetry.open(Direction::Inbound), telemetry.open(Direction::Outbound)), (10, 90));
    let text = scrape(&telemetry);
    assert_eq!(values(&text, "mesh_agent_connections_open", &["direction=\"inbound\""]), [10.0]);

    for record in &records {
        telemetry.closed(record, &ConnectionEnd::default());
    }
    assert!(telemetry.connections().is_empty());
}

#[test]
fn a_refused_connection_is_counted_opened_closed_and_failed() {
    let telemetry = telemetry();
    let mut refused = record(1);
    refused.destination = None;
    let end = ConnectionEnd { flag: ResponseFlag::NoHealthyUpstream, detail: None };
    telemetry.closed(&Arc::new(refused), &end);
    telemetry.incident(Incident::ConnectFailure(ConnectFailure::TimedOut));
    telemetry.incident(Incident::AcceptFailure);

    let text = scrape(&telemetry);
    let unknown = ["destination_workload=\"unknown\"", "destination_service_name=\"web\""];
    assert_eq!(values(&text, "istio_tcp_connections_opened_total", &unknown), [1.0]);
    assert_eq!(values(&text, "istio_tcp_connections_closed_total", &["response_flags=\"UH\""]), [1.0]);
    assert_eq!(values(&text, "istio_tcp_connections_failed_total", &unknown), [1.0]);
    assert_eq!(values(&text, "istio_tcp_connections_failed_total", &["response_flags=\"UH\""]), [1.0]);
    assert_eq!(values(&text, "mesh_agent_connect_failures_total", &["reason=\"timed_out\""]), [1.0]);
    assert_eq!(values(&text, "mesh_agent_accept_failures_total", &[]), [1.0]);
    assert_eq!(values(&text, "mesh_agent_connections_open", &[]), [0.0, 0.0]);
}

#[test]
fn what_leaves_the_mesh_is_named_as_istio_names_it() {
    let telemetry = telemetry();
    for (id, transport) in [(1, Transport::Passthrough), (2, Transport::Kernel)] {
        let mut outside = record(id);
        outside.transport = transport;
        outside.service = None;
        outside.destination.as_mut().unwrap().workload = None;
        telemetry.opened(&Arc::new(outside));
    }
    let labels = [
        "destination_service_name=\"PassthroughCluster\"",
        "destination_service=\"unknown\"",
        "destination_principal=\"unknown\"",
    ];
    assert_eq!(values(&scrape(&telemetry), "istio_tcp_connections_opened_total", &labels), [2.0]);
}

#[test]
fn no_label_set_is_written_twice() {
    let telemetry = telemetry();
    for (id, transport) in [(1, Transport::Plain), (2, Transport::Kernel)] {
        let mut same_node = record(id);
        same_node.transport = transport;
        same_node.security = ConnectionSecurity::SameNode;
        telemetry.opened(&Arc::new(same_node));
    }
    assert_eq!(values(&scrape(&telemetry), "istio_tcp_connections_opened_total", &[]), [2.0]);
}

#[test]
fn names_of_workloads_cannot_forge_lines() {
    let telemetry = telemetry();
    let mut forged = record(1);
    let mut name = (*workload("client", "10.0.1.1")).clone();
    Arc::make_mut(&mut name.template).workload_name = "x\"} 1\nforged_total 1\n".into();
    forged.source.workload = Some(Arc::new(name));
    telemetry.opened(&Arc::new(forged));
    let text = scrape(&telemetry);
    assert!(!text.lines().any(|line| line.starts_with("forged")), "{text}");
}

#[test]
fn the_process_is_measured() {
    let text = scrape(&telemetry());
    for metric in [
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "process_threads",
    ] {
        assert!(values(&text, metric, &[]).first().is_some_and(|value| *value > 0.0), "{metric}:\n{text}");
    }
    assert!(text.contains("process_cpu_seconds_total "));
    assert!(text.ends_with("# EOF\n"));
}
