//! What Helm makes of the chart on a cluster that has definitions of its own, and what it leaves.

use std::path::{Path, PathBuf};

use super::api_server::{ApiServer, Said};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/chart");
/// As Istio's own chart has it, but for most of its fields.
const ISTIOS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: serviceentries.networking.istio.io
  labels: {app: istio-pilot, app.kubernetes.io/managed-by: Helm}
  annotations: {meta.helm.sh/release-name: istio-base, meta.helm.sh/release-namespace: istio-system}
spec:
  group: networking.istio.io
  scope: Namespaced
  names: {kind: ServiceEntry, listKind: ServiceEntryList, plural: serviceentries, singular: serviceentry}
  versions:
    - name: v1
      served: true
      storage: true
      subresources: {status: {}}
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;

struct Helm<'a> {
    server: &'a ApiServer,
    program: PathBuf,
}

impl Helm<'_> {
    async fn say(&self, arguments: &[&str]) -> Said {
        let of_release = ["--namespace", "mesh-system"];
        self.server.program(&self.program, &[arguments, &of_release].concat(), "").await
    }

    async fn run(&self, arguments: &[&str]) {
        let said = self.say(arguments).await;
        assert!(said.succeeded, "{arguments:?}: {}", said.text);
    }

    async fn install(&self, values: &[&str]) -> Said {
        let values: Vec<_> = values.iter().flat_map(|value| ["--set", value]).collect();
        self.say(
            &[&["upgrade", "--install", "mesh", CHART, "--create-namespace"], values.as_slice()].concat(),
        )
        .await
    }
}

/// The definitions that there are, and who has made them.
async fn definitions(server: &ApiServer) -> Vec<String> {
    let columns = r"-o=custom-columns=N:.metadata.name,R:.metadata.annotations.meta\.helm\.sh/release-name";
    let said = server.run(&["get", "crd", "--no-headers", columns], "").await;
    let mut lines: Vec<_> = said
        .lines()
        .filter(|line| line.contains("istio.io"))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn definitions_of_others_are_left_alone_and_its_own_go_with_it() {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin/helm");
    let Some(program) = [bundled, "/usr/local/bin/helm".into(), "/usr/bin/helm".into()]
        .into_iter()
        .find(|path| path.is_file())
    else {
        println!("Helm is not at hand: nothing to test");
        return;
    };
    let Some(server) = ApiServer::start().await else { return };
    let helm = Helm { server: &server, program };
    server.run(&["apply", "-f", "-"], ISTIOS).await;
    let istios = "serviceentries.networking.istio.io istio-base";
    let all = [
        "authorizationpolicies.security.istio.io mesh",
        "peerauthentications.security.istio.io mesh",
        istios,
        "workloadentries.networking.istio.io mesh",
    ];

    // Installed, and upgraded with what it finds of its own.
    for _ in 0..2 {
        let installed = helm.install(&[]).await;
        assert!(installed.succeeded, "{}", installed.text);
        assert_eq!(definitions(&server).await, all);
    }
    helm.run(&["uninstall", "mesh", "--wait"]).await;
    assert_eq!(definitions(&server).await, [istios]);
    let kinds = "validatingwebhookconfigurations,clusterroles,clusterrolebindings,roles,rolebindings,leases";
    let of_mesh = ["-l", "app.kubernetes.io/part-of=mesh", "--all-namespaces", "-o", "name"];
    let left = server.run(&[&["get", kinds], &of_mesh[..]].concat(), "").await;
    assert_eq!(left, "");

    // Kept by value, and found again.
    for _ in 0..2 {
        let installed = helm.install(&["crds.keep=true"]).await;
        assert!(installed.succeeded, "{}", installed.text);
        helm.run(&["uninstall", "mesh", "--wait"]).await;
        assert_eq!(definitions(&server).await, all);
    }

    let always = helm.install(&["crds.install=always"]).await;
    assert!(
        !always.succeeded && always.text.contains("serviceentries.networking.istio.io"),
        "{}",
        always.text
    );
}
