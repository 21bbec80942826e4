//! What users see of the webhook and of statuses: with kubectl, at a real API server.

use clap::Parser;
use kube::{Client, Config};
use mesh_control::authority::Environment;
use mesh_control::control::Control;
use mesh_control::settings::Cli;
use rcgen::SanType;
use serde_json::{Value, json};

use super::api_server::ApiServer;

const BAD: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bad, namespace: shop}
spec:
  action: DENY
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/web, ""], notPrincipal: [x]}}]
      to: [{operation: {ports: [http]}}]
"#;
const GOOD: &str = r#"
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: good, namespace: shop}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]}
"#;
const HTTP: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: http, namespace: shop}
spec: {rules: [{to: [{operation: {methods: [GET]}}]}, {to: [{operation: {ports: ["80"]}}]}]}
"#;
const ENTRY: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: shop}
spec: {hosts: ["*.example.com"], resolution: DNS, ports: [{number: 443, name: tls}]}
"#;

/// The objects of the chart.
fn chart() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/mesh.yaml");
    serde_saphyr::from_multiple(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// mesh-control as the chart runs it, but for where it listens and what it is called.
async fn control(server: &ApiServer) -> Control {
    let deployment = chart().into_iter().find(|object| object["kind"] == "Deployment").unwrap();
    let arguments =
        deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array().unwrap().clone();
    let arguments = arguments.iter().map(|argument| argument.as_str().unwrap());
    let mut arguments = Cli::parse_from(std::iter::once("mesh-control").chain(arguments)).serve;
    let any = "127.0.0.1:0".parse().unwrap();
    arguments.admission.webhook_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
    let mut settings = arguments.check().unwrap();
    settings.grpc_address = any;
    settings.http_address = any;
    settings.tls.as_mut().unwrap().address = any;
    settings.admission.as_mut().unwrap().address = any;
    let environment = Environment { kubernetes: Some(server.client()), ..Environment::default() };
    Control::start_in(settings, environment).await.unwrap()
}

/// The chart's rights, and its webhook as this machine reaches it.
async fn install(server: &ApiServer) {
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds.yaml");
    server.run(&["apply", "--server-side", "-f", crds], "").await;
    server.run(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"], "").await;
    let structural = r"jsonpath={.items[*].status.conditions[?(@.type=='NonStructuralSchema')].message}";
    assert_eq!(server.run(&["get", "crd", "-o", structural], "").await, "");
    for namespace in ["mesh-system", "shop"] {
        server.run(&["create", "namespace", namespace], "").await;
    }
    let rights = ["ServiceAccount", "Lease", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"];
    for object in chart().iter().filter(|object| rights.contains(&object["kind"].as_str().unwrap())) {
        server.run(&["apply", "-f", "-"], &object.to_string()).await;
    }
}

/// Registers the webhook where `control` serves it, as the chart would through its service.
async fn register(server: &ApiServer, control: &Control) {
    let mut configuration =
        chart().into_iter().find(|object| object["kind"] == "ValidatingWebhookConfiguration").unwrap();
    let url = format!("https://{}/validate", control.webhook_address.unwrap());
    configuration["webhooks"][0]["clientConfig"] = json!({"url": url});
    server.run(&["apply", "-f", "-"], &configuration.to_string()).await;
}

async fn get(control: &Control, path: &str) -> String {
    let config = Config::new(format!("http://{}", control.http_address).parse().unwrap());
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    Client::try_from(config).unwrap().request_text(request).await.unwrap()
}

/// What kubectl says of a policy, once the API server can ask the webhook: it learns of a configuration a little later.
async fn judged(server: &ApiServer, policy: &str) -> String {
    let failing = "failed calling webhook";
    let said = server
        .eventually("judged", &["apply", "-f", "-"], policy, |said| {
            !said.succeeded && !said.text.contains(failing)
        })
        .await;
    said.text
}

#[tokio::test]
async fn policies_are_refused_taken_and_reported_on() {
    let Some(server) = ApiServer::start().await else { return };
    install(&server).await;
    let first = control(&server).await;
    register(&server, &first).await;

    let refused = judged(&server, BAD).await;
    for part in [
        r#"admission webhook "validation.mesh-control.mesh-system.svc" denied the request: 3 mistakes:"#,
        "- spec.rules[0].from[0].source.principals[1]: must not be empty",
        "- spec.rules[0].from[0].source.notPrincipal: is not a field of this kind",
        "- spec.rules[0].to[0].operation.ports[0]: expected a port between 1 and 65535, found \"http\"",
    ] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    let entry = judged(&server, ENTRY).await;
    assert!(entry.contains("spec.hosts[0]: a wildcard cannot be resolved"), "{entry}");

    server.run(&["apply", "-f", "-"], GOOD).await;
    let warned = server.run(&["apply", "-f", "-"], HTTP).await;
    assert!(warned.contains("Warning: spec.rules[0].to[0].operation.methods: "), "{warned}");
    let accepted = "--for=condition=ZtunnelAccepted";
    for policy in ["good", "http"] {
        server
            .run(&["-n", "shop", "wait", accepted, "authorizationpolicy", policy, "--timeout=60s"], "")
            .await;
    }
    let reason = "jsonpath={.status.conditions[?(@.type=='ZtunnelAccepted')].reason}";
    assert_eq!(server.run(&["-n", "shop", "get", "ap", "good", "-o", reason], "").await, "Accepted");
    assert_eq!(server.run(&["-n", "shop", "get", "ap", "http", "-o", reason], "").await, "UnsupportedValue");

    // Somebody spoils what the webhook is verified by.
    let spoil = r#"[{"op":"replace","path":"/webhooks/0/clientConfig/caBundle","value":null}]"#;
    let name = ["validatingwebhookconfiguration", "mesh-control-mesh-system"];
    server.run(&["patch", name[0], name[1], "--type=json", "-p", spoil], "").await;
    assert!(judged(&server, BAD).await.contains("3 mistakes"));

    // Nobody answers: closed, then open.
    first.stop().await;
    let closed = server
        .eventually("closed", &["apply", "-f", "-"], BAD, |said| said.text.contains("failed calling webhook"))
        .await;
    assert!(!closed.succeeded);
    let open = r#"[{"op":"replace","path":"/webhooks/0/failurePolicy","value":"Ignore"}]"#;
    server.run(&["patch", name[0], name[1], "--type=json", "-p", open], "").await;
    server.eventually("open", &["apply", "-f", "-"], BAD, |said| said.succeeded).await;

    // What got past is told in its status, and can be labelled and removed, but not changed while it stays bad.
    let second = control(&server).await;
    register(&server, &second).await;
    let message = "jsonpath={.status.conditions[?(@.type=='ZtunnelAccepted')].message}";
    let told = server
        .eventually("told", &["-n", "shop", "get", "ap", "bad", "-o", message], "", |said| {
            !said.text.is_empty()
        })
        .await;
    assert!(told.text.starts_with("until it is mended, everything it is for is denied: "), "{told:?}");
    // It is served as one that denies.
    let status: Value = serde_json::from_str(&get(&second, "/status").await).unwrap();
    let served = |problem: &&Value| problem["resource"] == "AuthorizationPolicy shop/bad";
    let problem = status["problems"].as_array().unwrap().iter().find(served).unwrap();
    assert_eq!(problem["served_instead"], "until it is mended, everything it is for is denied", "{status:#}");
    assert_eq!(status["leader"]["leading"], true, "{status:#}");
    let table = server.run(&["-n", "shop", "get", "authorizationpolicies"], "").await;
    let line = table.lines().find(|line| line.starts_with("bad")).unwrap();
    assert!(line.contains("DENY") && line.ends_with("False"), "{table}");
    assert!(judged(&server, &BAD.replace("[http]", "[https]")).await.contains("3 mistakes"));
    let labelled = server.run(&["-n", "shop", "label", "ap", "bad", "a=b"], "").await;
    assert!(labelled.contains("Warning: this AuthorizationPolicy cannot be used as it stands"), "{labelled}");
    server.run(&["-n", "shop", "delete", "ap", "bad"], "").await;
    second.stop().await;
}
