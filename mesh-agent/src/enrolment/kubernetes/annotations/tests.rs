use super::*;

fn settings(pairs: &[(&str, &str)], last: Option<&LocalPod>) -> TrafficSettings {
    let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    read(&annotations, FailureMode::Open, last)
}

#[test]
fn a_pod_that_says_nothing_is_steered_whole() {
    let expected = TrafficSettings {
        redirection: Redirection::default(),
        failure_mode: FailureMode::Open,
        problems: vec![],
    };
    assert_eq!(settings(&[], None), expected);
    assert_eq!(settings(&[(INCLUDE_INBOUND_PORTS, "*"), (INCLUDE_OUTBOUND_RANGES, " * ")], None), expected);
}

#[test]
fn every_annotation_is_read() {
    let found = settings(
        &[
            (INCLUDE_INBOUND_PORTS, "80, 443"),
            (EXCLUDE_INBOUND_PORTS, "443"),
            (INCLUDE_OUTBOUND_PORTS, "8443"),
            (EXCLUDE_OUTBOUND_PORTS, "22,"),
            (INCLUDE_OUTBOUND_RANGES, ""),
            (EXCLUDE_OUTBOUND_RANGES, "10.1.2.3/8,fd00::1"),
            (FAILURE_MODE, "closed"),
        ],
        None,
    );
    assert_eq!(found.problems, Vec::<String>::new());
    assert_eq!(found.failure_mode, FailureMode::Closed);
    assert_eq!(
        found.redirection,
        Redirection {
            include_inbound_ports: PortSelection::Only([80, 443].into()),
            exclude_inbound_ports: [443].into(),
            include_outbound_ports: [8443].into(),
            exclude_outbound_ports: [22].into(),
            include_outbound_cidrs: CidrSelection::Only([].into()),
            exclude_outbound_cidrs: ["10.0.0.0/8".parse().unwrap(), "fd00::1/128".parse().unwrap()].into(),
        }
    );
    let bypassing = settings(&[(BYPASS_INBOUND, "true")], None).redirection;
    assert!(!bypassing.inbound(80).captured && bypassing.outbound([10, 0, 0, 1].into(), 80).captured);
}

#[test]
fn a_mistake_is_named_and_leaves_the_last_good_value() {
    let mistakes =
        [(EXCLUDE_OUTBOUND_PORTS, "80x"), (EXCLUDE_OUTBOUND_RANGES, "ten"), (FAILURE_MODE, "maybe")];
    let found = settings(&mistakes, None);
    assert_eq!(
        found.problems,
        [
            "annotation traffic.sidecar.istio.io/excludeOutboundPorts: expected a port between 1 and 65535, found \"80x\"",
            "annotation traffic.sidecar.istio.io/excludeOutboundIPRanges: expected a range such as 10.0.0.0/8, found \"ten\"",
            "annotation mesh-agent/failure-mode: expected open or closed, found \"maybe\"",
        ]
    );
    assert_eq!((found.redirection, found.failure_mode), (Redirection::default(), FailureMode::Closed));

    let good = settings(&[(EXCLUDE_OUTBOUND_PORTS, "22"), (FAILURE_MODE, "open")], None);
    let last = LocalPod {
        uid: "a".into(),
        name: "a".into(),
        namespace: "ns".into(),
        kubernetes_uid: None,
        service_account: "default".into(),
        addresses: vec![],
        device: None,
        enrolled: true,
        redirection: good.redirection.clone(),
        failure_mode: good.failure_mode,
    };
    let found = settings(&mistakes, Some(&last));
    assert_eq!((found.redirection, found.failure_mode), (good.redirection, FailureMode::Open));
}
