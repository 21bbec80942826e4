//! What Kubernetes means by pods, services and slices, beyond who selects whom.

use mesh_xds::proto::mesh::SessionAffinity;

use super::*;

const ENDED: &str = "metadata: {name: ended, namespace: shop, deletionTimestamp: '2026-01-01T00:00:09Z'}
status: {podIP: 10.0.0.1, startTime: '2026-01-01T00:00:00Z', conditions: [{type: Ready, status: 'True'}]}";
const NEW: &str = "metadata: {name: new, namespace: shop}
status: {podIP: 10.0.0.1, startTime: '2026-01-01T00:00:05Z', phase: Running}";

fn pod(fields: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nspec: {{nodeName: n1, containers: []}}\n{fields}\n---\n")
}

fn change(fields: &str) -> Change {
    Change::Upsert(resources(&pod(fields)).0.pop().unwrap())
}

#[test]
fn an_address_is_the_pods_that_was_given_it_last() {
    let uid = |name: &str| format!("Kubernetes//Pod/shop/{name}");
    for order in [[ENDED, NEW], [NEW, ENDED]] {
        let output = translate(&order.map(pod).concat());
        assert_eq!(output.names(), [uid("new")], "{order:?}");
    }
    // One that runs has it before one that ended, whenever they were started.
    let later = ENDED.replace("00:00:00Z", "00:00:07Z");
    assert_eq!(translate(&(pod(&later) + &pod(NEW))).names(), [uid("new")]);
    // Both families are told apart.
    let dual = ENDED.replace("podIP: 10.0.0.1", "podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]");
    let output = translate(&(pod(&dual) + &pod(NEW)));
    assert_eq!(output.workload(&uid("ended")).addresses.len(), 1);
}

#[test]
fn an_address_goes_from_pod_to_pod() {
    let mut translator = Translator::new(Mesh::default());
    let names = |delta: Delta| {
        let upserts = delta.upserts.iter().map(|output| format!("+{}", output.name.name));
        let all = upserts.chain(delta.removals.iter().map(|name| format!("-{}", name.name)));
        let mut all: Vec<String> = all.map(|name| name.replace("Kubernetes//Pod/shop/", "")).collect();
        all.sort();
        all
    };
    assert_eq!(names(translator.apply([change(ENDED)])), ["+ended"]);
    assert_eq!(names(translator.apply([change(NEW)])), ["+new", "-ended"]);
    let gone =
        Change::Remove(crate::model::ResourceKey { kind: Kind::Pod, name: ObjectName::new("shop", "ended") });
    assert_eq!(names(translator.apply([gone])), [] as [&str; 0]);
    // Had the record of the first stayed and the second gone, it would be the first's again.
    assert_eq!(names(translator.apply([change(ENDED)])), [] as [&str; 0]);
    let gone =
        Change::Remove(crate::model::ResourceKey { kind: Kind::Pod, name: ObjectName::new("shop", "new") });
    assert_eq!(names(translator.apply([gone])), ["+ended", "-new"]);
}

#[test]
fn pods_that_share_their_nodes_address_all_have_it() {
    let host = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n\
                 spec: {{nodeName: n1, hostNetwork: true, containers: []}}\nstatus: {{podIP: 10.0.0.1}}\n---\n"
        )
    };
    assert_eq!(translate(&(host("a") + &host("b") + &pod(NEW))).names().len(), 3);
}

#[test]
fn what_is_being_ended_is_unhealthy_but_still_answers() {
    let output = translate(&pod(ENDED));
    let workload = output.workload("Kubernetes//Pod/shop/ended");
    assert!(workload.status() == WorkloadStatus::Unhealthy && workload.is_terminating());
    let silent = ENDED.replace("status: 'True'", "status: 'False'");
    assert!(!translate(&pod(&silent)).workload("Kubernetes//Pod/shop/ended").is_terminating());

    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
                 metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
                 ports: [{name: http, port: 80}]\nendpoints:\n\
                 - {addresses: [10.9.0.1], conditions: {ready: false, serving: true, terminating: true}}\n\
                 - {addresses: [10.9.0.2], conditions: {ready: false, serving: false, terminating: true}}\n";
    let output = translate(&format!("{SERVICE}{slice}"));
    let listed =
        |address| output.workload(&format!("Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/{address}"));
    assert!(listed("10.9.0.1").is_terminating() && !listed("10.9.0.2").is_terminating());
    assert_eq!(listed("10.9.0.1").status(), WorkloadStatus::Unhealthy);
}

#[test]
fn clients_stay_with_their_endpoint_where_the_service_says_so() {
    let sticky = SERVICE.replace("spec:\n", "spec:\n  sessionAffinity: ClientIP\n");
    let affinity = translate(&sticky).service(HOST).session_affinity().unwrap();
    assert_eq!(affinity, Some(SessionAffinity { timeout_seconds: 10_800 }));
    assert_eq!(translate(SERVICE).service(HOST).session_affinity(), Ok(None));
}

#[test]
fn a_named_port_is_each_pods_own() {
    let other = POD.replace("web-1", "web-2").replace("10.244.1.11", "10.244.1.12").replace("::11", "::12");
    let output = translate(&format!("{POD}{}{SERVICE}", other.replace("8080", "9090")));
    assert_eq!(output.members(UID), [format!("{HOST} 80>8080")]);
    assert_eq!(output.members("Kubernetes//Pod/shop/web-2"), [format!("{HOST} 80>9090")]);
}
