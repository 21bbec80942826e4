#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::path::Path;

use super::Plugin;
use super::document::SCENARIOS;

const GOOD: &str = r#"
name: example
programs:
  near:
    on: client
    command: example-proxy
    args: [--config, "{dir}/proxy.conf"]
    files:
      proxy.conf: |
        forward {server_pod_ip}:{port} { keep {} }
    ready: "{node_ip}:15001"
scenarios:
  same-node-l4: {dial: "{client_node_ip}:15001", programs: [near]}
"#;

fn refused(text: &str) -> String {
    Plugin::parse("example.yaml", text).unwrap_err().to_string()
}

#[test]
fn those_that_come_along_are_good() {
    let plugins = Plugin::built_in().unwrap();
    let names: Vec<_> = plugins.iter().map(Plugin::name).collect();
    assert_eq!(names, ["envoy", "envoy-tls", "haproxy"]);
    for plugin in plugins.iter().filter(|plugin| !plugin.is_variant()) {
        assert!(SCENARIOS.iter().all(|scenario| plugin.takes_part(scenario)), "{}", plugin.name());
    }
}

#[test]
fn a_good_one_is_read() {
    let plugin = Plugin::parse("example.yaml", GOOD).unwrap();
    assert_eq!(plugin.name(), "example");
    assert!(plugin.takes_part("same-node-l4") && !plugin.takes_part("two-nodes-mtls"));
}

#[test]
fn every_problem_is_told_with_its_line_and_a_remedy() {
    for (good, bad, line, expected) in [
        ("name: example", "name: An Example", 2, "use 1 to 32 lower-case letters"),
        ("on: client", "on: gateway", 5, "client"),
        ("command: example-proxy", "command: ''", 6, "name a program or its path"),
        ("{dir}", "{directory}", 7, "nothing is called {directory}: there are {node_ip}"),
        ("proxy.conf: |", "../proxy.conf: |", 10, "use a plain name"),
        ("{server_pod_ip}:", "{server_pod}:", 10, "nothing is called {server_pod}"),
        ("\"{node_ip}:15001\"", "ready", 11, "\"{client_node_ip}:15001\""),
        ("\"{node_ip}:15001\"", "\"{node_ip}:0\"", 11, "is no address"),
        ("same-node-l4", "one-node", 13, "use one of same-node-l4, two-nodes-plain, two-nodes-mtls"),
        ("[near]", "[near, far]", 13, "there is no program \"far\": there are near"),
        ("[near]", "[]", 13, "list those that connections go through"),
        ("[near]", "[]", 6, "no scenario has the program \"near\""),
        ("    on: client\n", "    on: client\n    user: nobody\n", 6, "user"),
    ] {
        assert!(GOOD.contains(good), "{good}");
        let said = refused(&GOOD.replacen(good, bad, 1));
        assert!(said.starts_with("the contender in example.yaml cannot be used:"), "{said}");
        let found =
            said.lines().any(|told| told.contains(&format!("line {line}: ")) && told.contains(expected));
        assert!(found, "{bad}: line {line}, {expected:?}, but: {said}");
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let said = refused(&GOOD.replace("name: example", "name: ''").replace("{port}", "{prot}"));
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Plugin::load(Path::new("/nowhere/example.yaml")).unwrap_err();
    assert_eq!(error.to_string(), "--contender: cannot read /nowhere/example.yaml");
}
