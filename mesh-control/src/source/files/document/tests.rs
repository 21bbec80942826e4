use super::*;

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

fn parse(text: &str) -> (Manifest, Vec<String>) {
    let manifest = Manifest::parse(Path::new("shop.yaml"), text);
    let problems = manifest.problems.iter().map(ToString::to_string).collect();
    (manifest, problems)
}

fn keys(manifest: &Manifest) -> Vec<String> {
    manifest.resources.keys().map(ToString::to_string).collect()
}

#[test]
fn streams_are_split_at_their_marks() {
    let text = "%YAML 1.2\n---\n# shop\na: 1\n--- # next\n\nb: |\n  --- no mark\n...\n# end\n--- {c: 3}\n";
    let found: Vec<_> = documents(text).into_iter().map(|document| (document.line, document.text)).collect();
    assert_eq!(found, [(4, "a: 1\n"), (7, "b: |\n  --- no mark\n"), (11, "--- {c: 3}\n")]);
    assert!(documents("---\n---\n# nothing\n").is_empty());
}

#[test]
fn a_bad_document_hides_no_other() {
    let text = format!("{SERVICE}---\nkind: [\n---\n{}", SERVICE.replace("web", "api"));
    let (manifest, problems) = parse(&text);
    assert_eq!(keys(&manifest), ["Service shop/api", "Service shop/web"]);
    assert!(manifest.unidentified);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let (begins, line) = manifest.problems[0].lines();
    assert!(begins == 6 && line >= 6, "{problems:?}");
}

#[test]
fn problems_name_file_line_resource_field_and_reason() {
    let text = format!(
        "# comment\n---\n{}",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  selectr:\n    app: web\n  ports:\n    - port: 0\n"
    );
    let (manifest, problems) = parse(&text);
    assert_eq!(
        problems,
        [
            "shop.yaml:8: Service default/web: spec.selectr: is not a field of this kind and has no effect: is it misspelt? (warning)",
            "shop.yaml:11: Service default/web: spec.ports[0].port: expected a port between 1 and 65535, found 0",
        ]
    );
    assert!(manifest.resources.is_empty() && !manifest.unidentified);
    assert_eq!(manifest.refused.len(), 1);
}

#[test]
fn types_are_checked_as_kubernetes_does() {
    let (_, problems) = parse("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    version: 2\n");
    assert_eq!(
        problems,
        ["shop.yaml:6: Pod default/a: metadata.labels.version: invalid type: integer `2`, expected a string"]
    );
    let (manifest, problems) = parse("apiVersion: v1\nkind: Pod\nmetadata:\n  name: 5\n");
    assert!(manifest.unidentified, "{problems:?}");
}

#[test]
fn lists_are_their_items() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: B}\n";
    let (manifest, problems) = parse(text);
    assert_eq!(keys(&manifest), ["Namespace a"]);
    assert_eq!(manifest.problems[0].lines(), (7, 9), "{problems:?}");
}

#[test]
fn other_kinds_are_left_alone_and_other_versions_refused() {
    let (manifest, problems) = parse(
        "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: serving.knative.dev/v1\nkind: Service\n",
    );
    assert!(problems.is_empty());
    assert_eq!(manifest.ignored.len(), 2);
    let (_, problems) = parse(&SERVICE.replace("apiVersion: v1", "apiVersion: v2"));
    assert_eq!(
        problems,
        ["shop.yaml:1: Service shop/web: apiVersion: version \"v2\" of Service is not known; known are v1"]
    );
}

#[test]
fn a_resource_is_in_a_file_once() {
    let (manifest, problems) = parse(&format!("{SERVICE}---\n{SERVICE}"));
    assert_eq!(keys(&manifest), ["Service shop/web"]);
    assert_eq!(
        problems,
        ["shop.yaml:6: Service shop/web: is in this file already, at line 1: this one is not used"]
    );
}

#[test]
fn what_is_no_object_is_refused() {
    for text in
        ["just text\n", "- 1\n", "kind: Pod\n", "apiVersion: v1\nkind: 3\n", "apiVersion: v1\nkind: Pod\n"]
    {
        let (manifest, problems) = parse(text);
        assert!(manifest.unidentified && problems.len() == 1, "{text:?}: {problems:?}");
    }
}
