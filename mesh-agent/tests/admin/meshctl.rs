use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mesh_agent::admin::api::{Check, ConfigStatus};
use mesh_agent::config::Change;
use mesh_agent::policy::{self, Strings};
use mesh_xds::proto::Any;
use mesh_xds::proto::security::{
    Action, Authorization, Clause, Match, Rule, Scope, StringMatch, string_match,
};
use serde_json::{Value, json};

use crate::server::Server;

/// `meshctl` with the server's socket, 100 columns wide, in an environment of its own.
fn command(server: &Server, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.env_clear().env("COLUMNS", "100").arg("--socket").arg(&server.socket).args(arguments);
    command
}

fn run(server: &Server, arguments: &[&str]) -> Output {
    command(server, arguments).output().unwrap()
}

/// What it prints when all goes well.
fn output(server: &Server, arguments: &[&str]) -> String {
    let output = run(server, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn json(server: &Server, arguments: &[&str]) -> Value {
    serde_json::from_str(&output(server, &[arguments, &["-o", "json"]].concat())).unwrap()
}

/// What it says when it fails.
fn complaint(server: &Server, arguments: &[&str]) -> String {
    let output = run(server, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn status_is_one_look() {
    let server = Server::start();
    let text = output(&server, &["status"]);
    assert!(text.starts_with("● node-1 is ready\n"), "{text}");
    assert!(text.contains("  pods           2 enrolled of 4\n"), "{text}");
    assert!(text.contains("  mesh           4 workloads, 4 services (revision 1)\n"), "{text}");
    assert!(text.contains("  configuration  connected to http://control:15010 for 1h 1m\n"), "{text}");
    assert!(!text.contains('\x1b'), "colours only on a terminal");

    let status = json(&server, &["status"]);
    assert_eq!(status["health"], json!({ "ready": true, "missing": [] }));
    assert_eq!(status["pods"], json!({ "known": 4, "enrolled": 2, "without_device": 0 }));
    assert_eq!(status["config"]["origin"], "server");

    server.levers.attached.store(false, Ordering::Relaxed);
    let text = output(&server, &["status"]);
    assert!(text.starts_with("● node-1 is not ready\n  steering: "), "{text}");
}

#[test]
fn pods_are_listed_with_what_is_special_about_them() {
    let server = Server::start();
    server.open_connection(1);
    assert_eq!(
        output(&server, &["pods"]),
        "\
POD            MESH      ADDRESSES           DEVICE      FAILS   OUT  IN  NOTES
bank/client-1  no        10.0.1.4            unknown     open      0   0
shop/client-1  enrolled  10.0.1.1 fd00:1::1  veth1a2b3c  open      1   0  not to ports 5432
shop/late-1    pending   10.0.1.3            unknown     open      0   0  no device yet
shop/web-1     enrolled  10.0.1.2            veth4d5e6f  closed    0   0
"
    );
    let pods = json(&server, &["pods", "--namespace", "shop"]);
    assert_eq!(pods.as_array().unwrap().len(), 3);
    assert_eq!(pods[0]["name"], "client-1");
    assert_eq!(pods[0]["state"], "enrolled");
    assert_eq!(pods[0]["exceptions"], json!(["not to ports 5432"]));
}

#[test]
fn workloads_and_services_are_listed_by_namespace() {
    let server = Server::start();
    assert_eq!(
        output(&server, &["workloads"]),
        "\
WORKLOAD       ADDRESSES           NODE    STATE      VIA    OPEN  SERVICES
shop/client-1  10.0.1.1 fd00:1::1  node-1  ready      hbone     0
shop/web-1     10.0.1.2            node-1  ready      hbone     0  web.shop
shop/web-2     10.0.2.2            node-2  ready      hbone     0  web.shop headless.shop
shop/web-3     10.0.2.3            node-2  not ready  hbone     0  web.shop
"
    );
    assert_eq!(
        output(&server, &["services", "--namespace", "shop"]),
        "\
SERVICE        ADDRESSES             PORTS    ENDPOINTS     CHOOSES
api.shop       10.96.0.3             80→8080  0 ready       least busy
headless.shop  headless              80→8080  1 ready       least busy
web.shop       10.96.0.1 fd00:96::1  80→8080  2 of 3 ready  least busy
"
    );
    assert_eq!(json(&server, &["workloads", "-n", "nowhere"]), json!([]));
    assert_eq!(output(&server, &["workloads", "-n", "nowhere"]), "no workloads\n");
    assert_eq!(json(&server, &["services"])[0]["hostname"], "api.bank.svc.cluster.local");
}

#[test]
fn connections_say_who_where_and_how_much() {
    let server = Server::start();
    assert_eq!(output(&server, &["connections"]), "no connections\n");
    server.open_connection(1);
    let text = output(&server, &["connections"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[0].trim_start(),
        "CLIENT               TO           SERVER              SENT  RECEIVED    AGE  SECURITY  WAY"
    );
    assert_eq!(
        lines[1],
        "→  shop/client-1:40000  web.shop:80  shop/web-2:8080  1.5 KiB  10.0 MiB  2m 5s  none      proxied"
    );
    let connections = json(&server, &["connections", "--pod", "web-2"]);
    assert_eq!(connections[0]["bytes_to_server"], 1536);
    assert_eq!(connections[0]["destination"]["name"], "web-2");
    assert_eq!(connections[0]["service"], "shop/web.shop.svc.cluster.local");
    assert_eq!(json(&server, &["connections", "--namespace", "bank"]), json!([]));
}

#[test]
fn connections_say_who_has_proved_to_be_whom() {
    let server = Server::start();
    server.open_connection(1);
    server.open_tunnelled(2);
    let wide = command(&server, &["connections"]).env("COLUMNS", "140").output().unwrap();
    let text = String::from_utf8(wide.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[1].contains("2m 5s  none    "), "{text}");
    assert!(lines[2].ends_with("2m 5s  mutual TLS  shop/client → shop/web  tunnelled"), "{text}");

    let connections = json(&server, &["connections", "--security", "mutual_tls"]);
    assert_eq!(connections.as_array().unwrap().len(), 1);
    assert_eq!(connections[0]["source"]["principal"], "spiffe://cluster.local/ns/shop/sa/client");
    assert_eq!(connections[0]["destination"]["principal"], "spiffe://cluster.local/ns/shop/sa/web");
    let ids = |arguments: &[&str]| {
        let connections = json(&server, &[&["connections"], arguments].concat());
        connections.as_array().unwrap().iter().map(|known| known["id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&["--transport", "plain"]), [1]);
    assert_eq!(ids(&["--principal", "sa/web"]), [2]);
    assert!(ids(&["--principal", "sa/other"]).is_empty());
    let plain = json(&server, &["connections", "--security", "none"]);
    assert_eq!(plain[0]["source"]["principal"], Value::Null);
    assert_eq!(plain[0]["source"]["identity"], "spiffe://cluster.local/ns/shop/sa/client");
}

#[test]
fn connections_are_followed_until_nobody_reads() {
    let server = Server::start();
    server.open_connection(7);
    let mut child = command(&server, &["connections", "--follow", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(line[0]["id"], 7);
    }
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn identities_say_who_until_when_and_what_is_wrong() {
    let server = Server::start();
    let wide = command(&server, &["identities"]).env("COLUMNS", "200").output().unwrap();
    let text = String::from_utf8(wide.stdout).unwrap();
    let rows: Vec<Vec<_>> = text
        .lines()
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(
        rows[..3],
        [
            vec!["IDENTITY", "STATE", "EXPIRES IN", "RENEWAL IN", "SERIAL", "ISSUER", "PODS", "LAST ERROR"],
            vec![
                "spiffe://cluster.local/ns/shop/sa/client",
                "valid",
                "23h",
                "11h",
                "5e1f",
                "mesh CA",
                "shop/client-1"
            ],
            vec![
                "spiffe://cluster.local/ns/shop/sa/web",
                "pending, 2 failures",
                "asking",
                "shop/web-1",
                "the token expired"
            ],
        ],
        "{text}"
    );
    assert!(
        text.ends_with("\n3 certificates issued, 2 requests failed; 1 trusted root, the first for 365d\n"),
        "{text}"
    );

    let report = json(&server, &["identities", "sa/web"]);
    assert_eq!(report["identities"].as_array().unwrap().len(), 1);
    assert_eq!(report["identities"][0]["last_error"], "the token expired");
    assert_eq!(report["roots"][0]["subject"], "CN=mesh root");
    assert_eq!(output(&server, &["identities", "nobody"]), "no identities\n");
}

/// A policy of namespace `shop` with one rule: clients of the service account of `client-1`, to port 8080.
fn policy(action: Action, name: &str, port: u32, dry_run: bool) -> Change {
    let principal = StringMatch {
        match_type: Some(string_match::MatchType::Exact("cluster.local/ns/shop/sa/default".into())),
    };
    let only = Match { principals: vec![principal], destination_ports: vec![port], ..Match::default() };
    let message = Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: Scope::Namespace.into(),
        action: action.into(),
        rules: vec![Rule { clauses: vec![Clause { matches: vec![only] }] }],
        dry_run,
        ..Authorization::default()
    };
    let read = policy::read(&format!("shop/{name}"), &Any::pack(&message), &mut Strings::default());
    Change::Policy(Arc::new(read.unwrap()))
}

#[test]
fn policies_are_listed_in_order_and_explained_rule_by_rule() {
    let server = Server::start();
    let listed = squeezed(&output(&server, &["policies", "web-1"]));
    assert!(
        listed.contains("shop/web-1 mutual TLS: PERMISSIVE\nno policy: everything is allowed\n"),
        "{listed}"
    );
    assert!(complaint(&server, &["policies", "nobody"]).contains("no enrolled pod of this node is called"));

    server.store.lock().unwrap().apply([
        policy(Action::Allow, "clients", 8080, false),
        policy(Action::Deny, "no-debugging", 9090, false),
        policy(Action::Deny, "tomorrow", 8080, true),
    ]);
    let listed = json(&server, &["policies", "shop/web-1"]);
    let names: Vec<_> =
        listed[0]["policies"].as_array().unwrap().iter().map(|known| &known["policy"]).collect();
    assert_eq!(
        names,
        [
            "AuthorizationPolicy shop/no-debugging",
            "AuthorizationPolicy shop/clients",
            "AuthorizationPolicy shop/tomorrow",
        ]
    );

    // The client is a pod of this node whose device is known; the answer names what decided.
    let text = squeezed(&output(&server, &["explain", "shop/client-1", "10.0.1.2:8080"]));
    assert!(text.contains("policy allowed to shop/web-1 at 10.0.1.2:8080\n"), "{text}");
    assert!(text.contains("the client is spiffe://cluster.local/ns/shop/sa/default\n"), "{text}");
    assert!(text.contains("✔ ALLOW AuthorizationPolicy shop/clients\n"), "{text}");
    assert!(text.contains("– DENY AuthorizationPolicy shop/no-debugging\n"), "{text}");
    assert!(text.contains("with the policies on trial: "), "{text}");
    assert!(text.contains("=> to shop/web-1 at 10.0.1.2:8080"), "{text}");

    let text = squeezed(&output(&server, &["explain", "192.0.2.9", "10.0.1.2:8080"]));
    assert!(text.contains("policy denied to shop/web-1 at 10.0.1.2:8080\n"), "{text}");
    assert!(text.contains("the client is nobody: it comes in plain text\n"), "{text}");
    assert!(text.contains("=> policy denies it: the connection is closed at once"), "{text}");
}

#[test]
fn explain_shows_every_step() {
    let server = Server::start();
    assert_eq!(
        squeezed(&output(&server, &["explain", "shop/client-1", "web.shop:80"])),
        "\
shop/client-1 10.0.1.1 ──▶ web.shop:80 10.96.0.1:80

kernel steered into the agent, for the client's pod (capture_outbound)
10.0.1.1 is pod shop/client-1 of this node, which is enrolled
its outbound traffic is steered, and no rule excludes this destination

agent service web.shop
chooses: least busy

ENDPOINT ADDRESS NODE PATH OPEN SEES NOTES
● shop/web-1 10.0.1.2:8080 node-1 same node 0 10.0.1.1
● shop/web-2 10.0.2.2:8080 node-2 tunnel to its node 0 10.0.1.1 as shop/web
– shop/web-3 not ready

policy allowed to shop/web-1 at 10.0.1.2:8080
the client is spiffe://cluster.local/ns/shop/sa/default
allowed: no ALLOW policy applies

=> to one of 2 endpoints
"
    );
    // The family follows the client; the namespace of the client completes a name.
    let answer = json(&server, &["explain", "fd00:1::1", "web.shop.svc:80"]);
    assert_eq!(answer["destination"]["address"], "[fd00:96::1]:80");
    let answer = json(&server, &["explain", "shop/client-1", "api:80"]);
    assert_eq!(answer["destination"]["address"], "10.96.0.3:80");
    assert_eq!(answer["decision"]["response_flag"], "UH");
}

#[test]
fn explain_names_the_rule_that_decides() {
    let server = Server::start();
    let text = output(&server, &["explain", "shop/client-1", "192.168.0.1:5432"]);
    assert!(text.contains("its rule for port 5432 says: left alone\n"), "{text}");
    assert!(text.contains("192.168.0.1 is an address of the node itself"), "{text}");
    assert!(text.ends_with("=> an ordinary connection, as without a mesh\n"), "{text}");

    let text = output(&server, &["explain", "shop/client-1", "web.shop:81"]);
    assert!(text.contains("refused (NR: service shop/web.shop.svc.cluster.local has no port 81"), "{text}");

    let text = output(&server, &["explain", "192.0.2.9", "10.0.1.2:8080"]);
    assert!(text.contains("for the server's pod (capture_inbound)"), "{text}");
    assert!(text.ends_with("=> to shop/web-1 at 10.0.1.2:8080\n"), "{text}");

    server.levers.attached.store(false, Ordering::Relaxed);
    let text = output(&server, &["explain", "192.0.2.9", "10.0.1.2:8080"]);
    assert!(text.contains("dropped (drop_fail_closed)"), "{text}");
}

#[test]
fn an_unclear_question_is_answered_with_the_choices() {
    let server = Server::start();
    let because = |client: &str, destination: &str| complaint(&server, &["explain", client, destination]);
    assert_eq!(
        because("client-1", "web.shop:80"),
        "error: \"client-1\" could be bank/client-1 or shop/client-1\n"
    );
    assert!(because("nobody", "web.shop:80").contains("it has bank/client-1, shop/client-1, "));
    assert_eq!(
        because("192.0.2.9", "api:80"),
        "error: \"api\" could be api.bank.svc.cluster.local or api.shop.svc.cluster.local\n"
    );
    assert!(
        because("web-1", "headless.shop:80").contains("clients connect to its endpoints, say 10.0.2.2:8080")
    );
    assert!(because("web-1", "nothing.shop:80").contains("no service \"nothing.shop\""));
    assert!(because("web-1", "web.shop").contains("say 10.0.0.1:80, [fd00::1]:80 or web.shop:80"));
    assert!(because("web-1", "fd00::1:80").contains("put the address in brackets"));
}

/// With single spaces: how wide a column is depends on everything else in it.
fn squeezed(text: &str) -> String {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(|line| words(line) + "\n").collect()
}

#[test]
fn check_fails_when_something_is_broken() {
    let server = Server::start();
    let text = squeezed(&output(&server, &["check"]));
    assert!(text.contains("✔ kernel version 6.18.5\n"), "{text}");
    assert!(text.contains("! enrolment shop/late-1: no device yet\n"), "{text}");
    assert!(text.contains("! certificates spiffe://cluster.local/ns/shop/sa/web: none yet"), "{text}");
    assert!(text.contains("! certificate authority 1 of 2 identities wait: the token expired\n"), "{text}");
    assert!(text.contains("✔ roots of trust 1 trusted\n"), "{text}");
    assert!(text.ends_with(" checks: 3 warnings\n"), "{text}");

    *server.levers.config.lock().unwrap() =
        ConfigStatus { servers: vec!["http://control:15010".into()], ..ConfigStatus::default() };
    server.levers.checks.lock().unwrap().push(Check::fail(
        "bpffs",
        "not mounted",
        "mount -t bpf bpf /sys/fs/bpf",
    ));
    let output = run(&server, &["check"]);
    assert_eq!(output.status.code(), Some(1));
    let text = squeezed(&String::from_utf8(output.stdout).unwrap());
    assert!(text.contains("✘ bpffs not mounted\n→ mount -t bpf"), "{text}");
    assert!(text.contains("✘ control server not connected yet\n"), "{text}");

    let output = run(&server, &["check", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["healthy"], &report["agent_running"]), (&json!(false), &json!(true)));
}

#[test]
fn bpf_shows_programs_devices_and_packets() {
    let server = Server::start();
    let text = output(&server, &["bpf"]);
    for line in [
        "  steer          sched_cls  40  8.0 KiB      4321  1000   250 ns",
        "  veth1a2b3c      7  tcx   shop/client-1  attached",
        "  captured  established      3456",
        "pinned at /sys/fs/bpf/mesh-agent-node-1",
        "run times are not measured: meshctl bpf --enable-stats",
    ] {
        assert!(text.lines().any(|known| known == line), "{line:?} is missing:\n{text}");
    }
    assert!(output(&server, &["bpf", "--enable-stats"]).contains("run times are measured"));
    assert_eq!(json(&server, &["bpf", "--disable-stats"])["stats_enabled"], false);
}

#[test]
fn the_log_filter_is_changed_and_a_bad_one_refused() {
    let server = Server::start();
    assert_eq!(output(&server, &["log", "error"]), "the agent logs error\n");
    assert_eq!(json(&server, &["log"]), json!({ "filter": "error" }));
    assert!(complaint(&server, &["log", "mesh_agent=loud"]).contains("mesh_agent=loud"));
    assert_eq!(output(&server, &["log", "warn"]), "the agent logs warn\n");
}

#[test]
fn dump_holds_everything() {
    let server = Server::start();
    server.open_connection(1);
    let everything: Value = serde_json::from_str(&output(&server, &["dump"])).unwrap();
    for part in ["status", "checks", "pods", "workloads", "services", "connections", "identities", "steering"]
    {
        let empty = match &everything[part] {
            Value::Array(items) => items.is_empty(),
            Value::Object(fields) => fields.is_empty(),
            _ => true,
        };
        assert!(!empty, "{part} is missing");
    }
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    let server = Server::start();
    for id in 0..3000 {
        server.open_connection(id);
    }
    let mut child =
        command(&server, &["connections"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("CLIENT"));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn tables_fit_narrow_terminals_and_colours_are_asked_for() {
    let server = Server::start();
    server.open_connection(1);
    for arguments in [
        &["pods"][..],
        &["connections"],
        &["workloads"],
        &["services"],
        &["check"],
        &["bpf"],
        &["identities"],
    ] {
        let output = command(&server, arguments).env("COLUMNS", "80").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{arguments:?}:\n{text}");
    }
    assert!(output(&server, &["status", "--color", "always"]).contains("\x1b[32mready\x1b[0m"));
}

#[test]
fn without_an_agent_it_says_so_and_checks_the_node() {
    let server = Server::start();
    let nowhere = ["--socket", "/nonexistent/admin.sock"];
    let meshctl = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_meshctl"))
            .env_clear()
            .args(nowhere)
            .args(arguments)
            .output()
            .unwrap()
    };
    let output = meshctl(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.starts_with("error: no agent answers on /nonexistent/admin.sock: "), "{complaint}");
    assert!(complaint.contains("systemctl status mesh-agent"), "{complaint}");

    let output = meshctl(&["check", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["agent_running"], false);
    assert_eq!(report["checks"][0]["name"], "agent");
    assert!(report["checks"].as_array().unwrap().len() > 5, "{report}");

    let output = meshctl(&["version"]);
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("agent    not running here\n"));
    assert!(self::output(&server, &["version"]).contains("(kernel maps version "));
}

#[test]
fn completions_are_printed_for_every_shell() {
    let server = Server::start();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(output(&server, &["completions", shell]).contains("explain"), "{shell}");
    }
}
