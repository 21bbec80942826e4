//! Policies on their way from a file to an agent.

use mesh_control::control::Control;
use mesh_control::settings::SourceSettings;
use mesh_xds::proto::security::{Action, Authorization};
use mesh_xds::proto::workload::address::Type;

use super::agent::{Agent, Told};
use super::fixture::{Fixture, pod, repository, settings, settings_of};

const STRICT: &str = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                      metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

fn policy(spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: web\n  namespace: shop\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  {spec}\n"
    )
}

fn named(told: &Told) -> Vec<String> {
    match told.resources.get("Kubernetes//Pod/shop/web").and_then(|address| address.r#type.as_ref()) {
        Some(Type::Workload(workload)) => workload.authorization_policies.clone(),
        _ => Vec::new(),
    }
}

fn unusable(policy: &Authorization) -> String {
    policy.origin().unwrap().unwrap().unusable
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_come_before_they_are_named_and_go_after() {
    let fixture = Fixture::start(&[("pods.yaml", &pod("web", "10.0.0.1", true))]).await;
    let agent = Agent::connect(&fixture.uri());
    agent.has(1).await;
    agent.news();

    let uid = "Kubernetes//Pod/shop/web";
    let converted = "shop/converted_peer_authentication_default";
    fixture.write("policies.yaml", &(policy("rules: [{}]") + STRICT));
    agent.has_policies(&[converted, "shop/web"]).await;
    agent.eventually("the workload names both", |told| (named(told).len() == 2).then_some(())).await;
    let mut order = agent.in_order();
    assert_eq!(order.pop().as_deref(), Some(uid), "after {order:?}");
    assert_eq!(fixture.metric("mesh_control_served_resources{kind=\"Authorization\"}").await, 2.0);

    std::fs::remove_file(fixture.path("policies.yaml")).unwrap();
    agent.has_policies(&[]).await;
    assert_eq!(agent.in_order(), [uid.to_owned(), format!("-{converted}"), "-shop/web".to_owned()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistake_never_opens_what_was_closed() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("all.yaml");
    let write = |spec: &str| std::fs::write(&file, pod("web", "10.0.0.1", true) + &policy(spec)).unwrap();
    write("rules: [{to: [{operation: {ports: ['80']}}]}]");
    let start = async || {
        let control = Control::start(settings(root.path().to_owned())).await.unwrap();
        let agent = Agent::connect(&format!("http://{}", control.grpc_address));
        (control, agent)
    };
    let (control, agent) = start().await;
    agent.has_policies(&["shop/web"]).await;

    // Edited into something that cannot be used: the last good version stays. The other change shows that it was read.
    let bad = "action: CUSTOM";
    std::fs::write(&file, pod("web", "10.0.0.2", true) + &policy(bad) + STRICT).unwrap();
    agent.has_policies(&["shop/converted_peer_authentication_default", "shop/web"]).await;
    agent
        .eventually("the good version", |told| {
            let policy = &told.policies["shop/web"];
            (policy.action() == Action::Allow && unusable(policy).is_empty()).then_some(())
        })
        .await;
    control.stop().await;

    // Nobody remembers it after a restart: everything it is for is denied, and the reason is told.
    let (control, agent) = start().await;
    let reason = agent
        .eventually("a denial", |told| {
            let policy = told.policies.get("shop/web").filter(|policy| policy.action() == Action::Deny)?;
            (named(told).len() == 2).then(|| unusable(policy))
        })
        .await;
    assert!(reason.starts_with("spec.action: CUSTOM asks an external authorizer"), "{reason}");
    let status = super::fixture::get(control.http_address, "/status").await.1;
    assert!(status.contains("until it is mended, everything it is for is denied"), "{status}");

    // Mended.
    write("rules: [{}]");
    agent
        .eventually("the policy", |told| {
            (told.policies.len() == 1 && unusable(&told.policies["shop/web"]).is_empty()).then_some(())
        })
        .await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_examples_close_the_shop_but_for_the_client() {
    let examples = ["examples/manifests", "examples/policies"].map(repository);
    let settings = settings_of(SourceSettings::Manifests(examples.into()));
    let control = Control::start(settings).await.unwrap();
    let agent = Agent::connect(&format!("http://{}", control.grpc_address));
    agent
        .has_policies(&[
            "shop/client-to-web",
            "shop/converted_peer_authentication_default",
            "shop/deny-by-default",
        ])
        .await;
    agent
        .eventually("web-1", |told| {
            let Type::Workload(web) = told.resources.get("Kubernetes//Pod/shop/web-1")?.r#type.as_ref()?
            else {
                return None;
            };
            let named = ["shop/client-to-web", "shop/converted_peer_authentication_default"];
            (web.authorization_policies == named).then_some(())
        })
        .await;
    control.stop().await;
}

#[test]
fn validation_says_where_what_and_how_to_mend() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("p.yaml");
    std::fs::write(
        &file,
        policy(
            "rules:\n  - to: [{operation: {paths: [/]}}]\n  - from: [{source: {ipBlocks: [10.0.0.0/40]}}]",
        ),
    )
    .unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mesh-control"))
        .arg("validate")
        .arg(root.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap().replace(&format!("{}/", root.path().display()), "");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "p.yaml:10: AuthorizationPolicy shop/web: spec.rules[0].to[0].operation.paths: paths cannot be told without \
             reading HTTP: the rule can never match and is left out (warning)",
            "p.yaml:11: AuthorizationPolicy shop/web: spec.rules[1].from[0].source.ipBlocks[0]: expected an address or \
             a range such as 10.0.0.0/8 or fd00::/8, found \"10.0.0.0/40\" (until it is mended, everything it is for \
             is denied)",
        ]
    );
}
