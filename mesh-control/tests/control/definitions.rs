//! The definitions of Istio's kinds in the chart: what is written for Istio loses nothing under them, and neither does what
//! the mesh reads.

mod fields;

use std::collections::BTreeMap;

use mesh_control::model::{
    AuthorizationPolicyObject, Kind, PeerAuthenticationObject, ServiceEntryObject, WorkloadEntryObject,
};
use serde_json::Value;

use super::fixture::repository;

/// What users of Istio have, with every field of its API somewhere.
const ISTIO: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everything, namespace: foo}
spec:
  selector: {matchLabels: {app: httpbin}}
  action: CUSTOM
  provider: {name: opa}
  rules:
    - from:
        - source:
            principals: ["cluster.local/ns/default/sa/curl"]
            notPrincipals: ["*"]
            requestPrincipals: ["https://accounts.google.com/*"]
            notRequestPrincipals: ["*"]
            namespaces: [dev]
            notNamespaces: [prod]
            serviceAccounts: [foo/curl]
            notServiceAccounts: [bar]
            ipBlocks: [203.0.113.4, "2001:db8::/32"]
            notIpBlocks: [10.0.0.0/8]
            remoteIpBlocks: [192.0.2.0/24]
            notRemoteIpBlocks: [192.0.2.1]
      to:
        - operation:
            hosts: ["*.example.com"]
            notHosts: [internal.example.com]
            ports: ["8080"]
            notPorts: ["9090"]
            methods: [GET]
            notMethods: [DELETE]
            paths: ["/info*", "/data/{*}"]
            notPaths: [/private]
      when:
        - key: request.auth.claims[iss]
          values: ["https://accounts.google.com"]
          notValues: [x]
status:
  conditions:
    - {type: ZtunnelAccepted, status: "True", reason: Accepted, message: attached to ztunnel, observedGeneration: "1",
       lastTransitionTime: "2025-12-25T16:58:22.799449284Z"}
  observedGeneration: "1"
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: waypoint, namespace: foo}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: waypoint}, {group: "", kind: Service, name: web, namespace: foo}]
  action: DENY
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: foo}
spec:
  selector: {matchLabels: {app: finance}}
  mtls: {mode: STRICT}
  portLevelMtls: {8080: {mode: DISABLE}, "9090": {mode: UNSET}}
---
apiVersion: networking.istio.io/v1alpha3
kind: ServiceEntry
metadata: {name: external-svc-mongocluster}
spec:
  hosts: [mymongodb.somedomain]
  addresses: [192.192.192.192/24]
  ports: [{number: 27018, name: mongodb, protocol: MONGO, targetPort: 27017}]
  location: MESH_INTERNAL
  resolution: STATIC
  exportTo: ["."]
  subjectAltNames: ["spiffe://cluster.local/ns/default/sa/mongo"]
  endpoints:
    - {address: 2.2.2.2, ports: {mongodb: 27019}, labels: {app: mongo}, network: east, locality: us-west/zone1, weight: 3, serviceAccount: mongo}
---
apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata: {name: details-svc}
spec:
  hosts: [details.bookinfo.com]
  location: MESH_EXTERNAL
  resolution: DNS_ROUND_ROBIN
  workloadSelector: {labels: {app: details-legacy}}
status:
  addresses: [{value: 240.240.0.1, host: details.bookinfo.com}]
  conditions: [{type: istio.io/WaypointBound, status: "False", observedGeneration: 4}]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: details-svc}
spec: {serviceAccount: details-legacy, address: 2.2.2.2, labels: {app: details-legacy, instance-id: vm1}}
status:
  validationMessages: [{type: {name: Deprecated, code: IST0135}, level: WARNING, documentationUrl: "https://istio.io"}]
"#;

/// The schemas, by group, kind and version.
fn schemas() -> BTreeMap<(String, String, String), Value> {
    let text = std::fs::read_to_string(repository("deploy/crds.yaml")).unwrap();
    let definitions: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    definitions
        .iter()
        .map(|definition| &definition["spec"])
        .flat_map(|spec| {
            spec["versions"].as_array().unwrap().iter().map(move |version| {
                let key = (text(&spec["group"]), text(&spec["names"]["kind"]), text(&version["name"]));
                (key, version["schema"]["openAPIV3Schema"].clone())
            })
        })
        .collect()
}

/// What Kubernetes would drop or refuse, in as much of OpenAPI as the schemas are written in.
fn objections(schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let is_right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64(),
        Some(other) => panic!("{place}: type {other}"),
        None => schema["x-kubernetes-int-or-string"] == true && (value.is_i64() || value.is_string()),
    };
    if !is_right {
        return vec![format!("{place} is not of the type {}", schema["type"])];
    }
    match value {
        // The API server knows these itself.
        Value::Object(_) if place == "metadata" => Vec::new(),
        Value::Object(fields) => {
            let required = schema["required"].as_array().into_iter().flatten();
            let missing = required.filter(|name| !fields.contains_key(name.as_str().unwrap()));
            let mut objections: Vec<_> = missing.map(|name| format!("{place} has no {name}")).collect();
            for (name, value) in fields {
                let place = format!("{place}.{name}").trim_start_matches('.').to_owned();
                match schema["properties"].get(name).or_else(|| schema.get("additionalProperties")) {
                    Some(schema) => objections.extend(self::objections(schema, value, &place)),
                    None => objections.push(format!("{place} is unknown")),
                }
            }
            objections
        }
        Value::Array(items) => {
            items.iter().flat_map(|item| objections(&schema["items"], item, &format!("{place}[]"))).collect()
        }
        scalar => {
            let allowed = schema["enum"].as_array().is_none_or(|allowed| allowed.contains(scalar));
            if allowed { Vec::new() } else { vec![format!("{place} cannot be {scalar}")] }
        }
    }
}

#[test]
fn istios_documents_and_the_examples_lose_nothing() {
    let schemas = schemas();
    let mut texts = vec![ISTIO.to_owned()];
    for folder in ["examples/manifests", "examples/policies", "examples/more"] {
        for file in std::fs::read_dir(repository(folder)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                texts.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut checked = BTreeMap::new();
    for document in texts.iter().flat_map(|text| serde_saphyr::from_multiple::<Value>(text).unwrap()) {
        let api_version = document["apiVersion"].as_str().unwrap();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let kind = document["kind"].as_str().unwrap();
        if !group.ends_with("istio.io") {
            continue;
        }
        let schema = &schemas[&(group.to_owned(), kind.to_owned(), version.to_owned())];
        assert_eq!(objections(schema, &document, ""), Vec::<String>::new(), "{document:#}");
        *checked.entry(kind.to_owned()).or_insert(0) += 1;
    }
    assert!(checked.values().all(|count| *count >= 2) || checked.len() == 4, "{checked:?}");
}

#[test]
fn every_version_that_is_understood_is_served() {
    let served = schemas();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.group().ends_with("istio.io")) {
        for version in kind.versions() {
            let key = (kind.group().to_owned(), kind.name().to_owned(), (*version).to_owned());
            assert!(served.contains_key(&key), "{key:?}");
        }
    }
}

#[test]
fn every_field_that_is_read_is_in_the_schema() {
    let read = [
        (Kind::AuthorizationPolicy, fields::of::<AuthorizationPolicyObject>()),
        (Kind::PeerAuthentication, fields::of::<PeerAuthenticationObject>()),
        (Kind::ServiceEntry, fields::of::<ServiceEntryObject>()),
        (Kind::WorkloadEntry, fields::of::<WorkloadEntryObject>()),
    ];
    let schemas = schemas();
    for (kind, paths) in read {
        let schema = &schemas[&(kind.group().to_owned(), kind.name().to_owned(), "v1".to_owned())];
        let in_spec: Vec<_> =
            paths.iter().filter(|path| path.first().is_some_and(|first| first == "spec")).collect();
        assert!(in_spec.len() >= 4, "{kind}: {in_spec:?}");
        for path in in_spec {
            let mut here = schema;
            for step in path {
                here = match step.as_str() {
                    fields::ITEM => &here["items"],
                    fields::ENTRY => &here["additionalProperties"],
                    name => &here["properties"][name],
                };
                assert!(!here.is_null(), "{kind}: {} of {path:?} is not in the schema", step);
            }
        }
    }
}

#[test]
fn a_policy_keeps_fields_that_nobody_knows() {
    fn objects(schema: &Value) -> Vec<&Value> {
        let parts = schema["properties"].as_object().into_iter().flat_map(|parts| parts.values());
        let nested = parts.chain(schema.get("items")).chain(schema.get("additionalProperties"));
        let fields = schema["properties"].is_object().then_some(schema);
        fields.into_iter().chain(nested.flat_map(objects)).collect()
    }
    for ((_, kind, _), schema) in schemas() {
        if kind != "AuthorizationPolicy" && kind != "PeerAuthentication" {
            continue;
        }
        for object in objects(&schema["properties"]["spec"]) {
            assert_eq!(object["x-kubernetes-preserve-unknown-fields"], true, "{kind}: {object:#}");
        }
    }
}
