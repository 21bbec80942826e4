use super::*;

const DUAL: &str = "
name: shop
cni: routed
nodes:
  - name: node1
    pods:
      - name: client
      - name: server
        namespace: shop
        addresses: [10.77.1.2]
  - name: node2
    cni: bridge
    bridgeNetfilter: true
    pods:
      - name: a-pod-with-a-very-long-name
hosts:
  - name: control
";

#[test]
fn fills_in_every_address() {
    let topology = Topology::parse("shop.yaml", DUAL).unwrap();
    let [node1, node2] = topology.nodes.as_slice() else { panic!("two nodes") };
    assert_eq!(node1.uplink.to_string(), "10.77.0.1 fd4d:4553:4800::1");
    assert_eq!(node2.uplink.to_string(), "10.77.0.2 fd4d:4553:4800::2");
    assert_eq!(topology.hosts[0].addresses.to_string(), "10.77.0.200 fd4d:4553:4800::c8");
    // The second pod's address is named in the file, so the first pod gets the next one.
    assert_eq!(node1.pods[0].addresses.to_string(), "10.77.1.3 fd4d:4553:4800:1::2");
    assert_eq!(node1.pods[1].addresses.to_string(), "10.77.1.2 fd4d:4553:4800:1::3");
    assert_eq!(node2.pod_cidrs.gateways().to_string(), "10.77.2.1 fd4d:4553:4800:2::1");
    assert_eq!((node1.cni, node2.cni), (Cni::Routed, Cni::Bridge));
    assert_eq!((node1.bridge_netfilter, node2.bridge_netfilter), (None, Some(true)));
    assert_eq!(node1.pods[1].device, "p-server");
    assert_eq!(node2.pods[0].device, "p0-a-pod-with-a");
    assert_eq!((node1.pods[0].namespace.as_str(), node1.pods[1].namespace.as_str()), ("default", "shop"));
}

#[test]
fn a_family_that_is_not_used_has_no_addresses() {
    let topology =
        Topology::parse("v6.yaml", "{name: six, families: v6, nodes: [{name: n, pods: [{name: p}]}]}")
            .unwrap();
    let node = &topology.nodes[0];
    assert_eq!((node.uplink.v4, node.pod_cidrs.v4, node.pods[0].addresses.v4), (None, None, None));
    assert!(node.uplink.v6.is_some() && node.pods[0].addresses.v6.is_some());
}

#[test]
fn reports_every_problem_with_its_line() {
    let text = "
name: Bad_Name
families: v5
nodes:
  - name: node1
    cni: mesh
    pods:
      - name: client
        addresses: [10.99.0.1, nonsense]
      - name: client
  - name: switch
    podCidrs: [10.77.1.0/25]
";
    let error = Topology::parse("bad.yaml", text).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    let expected = [
        ("bad.yaml:2:", "lower-case"),
        ("bad.yaml:3:", "use v4, v6 or dual"),
        ("bad.yaml:6:", "use routed or bridge"),
        ("bad.yaml:9:", "outside of 10.77.1.0/24"),
        ("bad.yaml:9:", "not an IP address"),
        ("bad.yaml:10:", "first on line 8"),
        ("bad.yaml:11:", "switch"),
        ("bad.yaml:12:", "overlaps"),
    ];
    assert_eq!(lines.len(), expected.len(), "{error}");
    for (line, (place, reason)) in lines.iter().zip(expected) {
        assert!(line.starts_with(place) && line.contains(reason), "{line} should say {place} {reason}");
    }
}

#[test]
fn a_broken_document_names_its_line() {
    for (text, line, reason) in [
        ("name: a\nnodes:\n  - name: n\n    podz: []\n", 4, "podz"),
        ("name: a\nnodes: [\n", 2, ""),
        ("name: a\nnodes: 5\n", 2, ""),
    ] {
        let TopologyError::Invalid(problems) = Topology::parse("f", text).unwrap_err() else {
            panic!("invalid")
        };
        assert_eq!(problems.problems[0].line, line, "{problems}");
        assert!(problems.problems[0].reason.contains(reason), "{problems}");
    }
}

#[test]
fn a_full_range_is_reported() {
    let pods: String = (0..3).map(|n| format!("{{name: p{n}}},")).collect();
    let text = format!(
        "{{name: full, families: v4, nodes: [{{name: n, podCidrs: [10.9.0.0/30], pods: [{pods}]}}]}}"
    );
    let error = Topology::parse("full", &text).unwrap_err().to_string();
    assert!(error.contains("no free address is left in 10.9.0.0/30"), "{error}");
}

#[test]
fn unique_names_differ() {
    let topology = Topology::parse("shop.yaml", DUAL).unwrap();
    assert_ne!(topology.clone().unique().name, topology.clone().unique().name);
    assert!(topology.named("../etc").is_err());
}
