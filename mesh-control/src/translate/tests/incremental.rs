//! Whatever the order in which resources come and go, the result is that of translating what there is in one go,
//! and what was handed out on the way adds up to it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::model::ResourceKey;

/// Few names and labels, so that resources meet.
fn resource() -> impl Strategy<Value = Option<Resource>> {
    let namespace = prop_oneof![Just("a"), Just("b")];
    let number = 0..4u8;
    let label = prop_oneof![Just("x"), Just("y")];
    (0..11u8, namespace, number, label, 0..5u8, any::<bool>()).prop_map(|(kind, namespace, number, label, other, flag)| {
        let metadata = |labels: &str| {
            format!("metadata: {{name: r{number}, namespace: {namespace}, labels: {{{labels}}}}}\n")
        };
        let manifest = match kind {
            0 => format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{istio.io/dataplane-mode: {}}}}}\n",
                if flag { "ambient" } else { "none" }
            ),
            1 => format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: n{other}, labels: {{topology.kubernetes.io/zone: z{number}}}}}\n"
            ),
            2 => format!(
                "apiVersion: v1\nkind: Pod\n{}spec: {{nodeName: n{other}, hostNetwork: {flag}, containers: [{{name: c, ports: [{{name: p, containerPort: 8{number}}}]}}]}}\n\
                 status: {{phase: Running, podIP: 10.0.0.{other}}}\n",
                metadata(&format!("app: {label}, n: n{other}"))
            ),
            3 => format!(
                "apiVersion: v1\nkind: Service\n{}spec: {{type: {}, selector: {{app: {label}}}, clusterIP: 10.96.0.{number}, ports: [{{name: p, port: 80, targetPort: {}}}]}}\n",
                metadata(""),
                if other == 0 { "ExternalName" } else { "ClusterIP" },
                if flag { "p" } else { "99" }
            ),
            4 => format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n{}addressType: IPv4\nports: [{{name: p, port: 7}}]\n\
                 endpoints: [{{addresses: [10.0.0.{other}]{}, conditions: {{ready: {flag}}}}}, {{addresses: [10.0.0.9]}}]\n",
                metadata(&format!("kubernetes.io/service-name: r{}", other % 4)),
                if number % 2 == 0 { format!(", targetRef: {{kind: Pod, name: r{other}}}") } else { String::new() }
            ),
            5 => format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n{}spec: {{hosts: [h{other}.example.com, r1.a.svc.cluster.local], resolution: STATIC, ports: [{{number: 1, name: p}}], {}}}\n",
                metadata(""),
                if flag {
                    format!("workloadSelector: {{labels: {{app: {label}}}}}")
                } else {
                    format!("endpoints: [{{address: 192.0.2.1, labels: {{app: {label}}}}}]")
                }
            ),
            6 => format!(
                "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n{}spec: {{address: 192.0.2.{other}}}\n",
                metadata(&format!("app: {label}"))
            ),
            // `b` is the root namespace.
            7 | 8 => format!(
                "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n{}spec: {{action: {}, {}rules: [{{to: [{{operation: {{ports: ['8{other}']}}}}]}}]}}\n",
                metadata(""),
                if number % 2 == 0 { "DENY" } else { "ALLOW" },
                if flag { format!("selector: {{matchLabels: {{app: {label}}}}}, ") } else { String::new() },
            ),
            _ => format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n{}spec: {{mtls: {{mode: {}}}{}}}\n",
                metadata(""),
                ["UNSET", "STRICT", "PERMISSIVE", "DISABLE", "STRICT"][usize::from(other)],
                if flag {
                    format!(
                        ", selector: {{matchLabels: {{app: {label}}}}}, portLevelMtls: {{8{number}: {{mode: {}}}}}",
                        if other == 2 { "STRICT" } else { "DISABLE" }
                    )
                } else {
                    String::new()
                }
            ),
        };
        resources(&manifest).0.pop()
    })
}

#[derive(Debug, Clone)]
enum Step {
    Upsert(Resource),
    /// Removes one of those there are, by position.
    Remove(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = prop_oneof![
        3 => resource().prop_filter_map("not refused", |resource| resource.map(Step::Upsert)),
        1 => any::<prop::sample::Index>().prop_map(Step::Remove),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..6), 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_way_does_not_matter(batches in steps()) {
        let mut translator = Translator::new(Mesh { root_namespace: "b".to_owned(), ..Mesh::default() });
        let mut present: BTreeMap<ResourceKey, Resource> = BTreeMap::new();
        let mut client: BTreeMap<OutputName, Arc<Output>> = BTreeMap::new();
        for batch in batches {
            let mut changes = Vec::new();
            for step in batch {
                match step {
                    Step::Upsert(resource) => {
                        present.insert(resource.key(), resource.clone());
                        changes.push(Change::Upsert(resource));
                    }
                    Step::Remove(index) if !present.is_empty() => {
                        let key = present.keys().nth(index.index(present.len())).unwrap().clone();
                        present.remove(&key);
                        changes.push(Change::Remove(key));
                    }
                    Step::Remove(_) => {}
                }
            }
            let delta = translator.apply(changes);
            for resource in delta.upserts {
                let before = client.insert(resource.name.clone(), Arc::clone(&resource));
                prop_assert!(before.as_ref() != Some(&resource), "sent again: {:?}", resource.name);
            }
            for name in delta.removals {
                prop_assert!(client.remove(&name).is_some(), "never sent: {name:?}");
            }

            let mut afresh = Translator::new(Mesh { root_namespace: "b".to_owned(), ..Mesh::default() });
            let whole = afresh.apply(present.values().cloned().map(Change::Upsert));
            let whole: BTreeMap<_, _> =
                whole.upserts.into_iter().map(|resource| (resource.name.clone(), resource)).collect();
            prop_assert_eq!(&client, &whole);
            prop_assert_eq!(translator.served(), afresh.served());
            let served = translator.served();
            prop_assert_eq!(served.workloads + served.services + served.authorizations, client.len());
        }
    }
}
