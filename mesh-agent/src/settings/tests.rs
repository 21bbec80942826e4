use clap::Parser;
use mesh_xds::transport::{TlsConfig, Transport};

use super::*;
use crate::identity::IdentitySettings;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

fn parse(args: &[&str]) -> Result<RunArgs, String> {
    let all = ["mesh-agent", "--node-name", "n1"].iter().chain(args);
    Cli::try_parse_from(all).map(|cli| cli.run).map_err(|error| error.to_string())
}

#[test]
fn the_defaults_are_valid() {
    let settings = parse(&[]).unwrap();
    settings.validate().unwrap();
    assert_eq!(
        &*settings.node_id(),
        "ztunnel~127.0.0.1~mesh-agent.mesh-system~mesh-system.svc.cluster.local"
    );
    assert_eq!(settings.admin_socket(), PathBuf::from("/run/mesh-agent/admin.sock"));
    assert_eq!(settings.idle_timeout, Duration::from_secs(3600));
}

#[test]
fn all_problems_are_told_at_once() {
    let settings = parse(&[
        "--control-server=ftp://x:1,http://control",
        "--capture-mark=0x100",
        "--agent-mark=0x100",
        "--max-connections=10",
        "--max-connections-per-pod=20",
        "--connect-timeout=0s",
        "--control-token-file=/does/not/exist",
        "--trust-domain=Cluster.Local",
        "--trust-domain-alias=old.local,",
        "--ca-server=https://ca",
        "--ca-root-cert=/does/not/exist",
        "--cert-ttl=10ms",
    ])
    .unwrap();
    let told = settings.validate().unwrap_err().to_string();
    for part in [
        "\"ftp://x:1\": must start with http:// or https://",
        "\"http://control\": names no port",
        "--capture-mark 0x100: has bits outside --mark-mask 0x1040",
        "--capture-mark and --agent-mark are both 0x100",
        "--max-connections-per-pod 20 is more than --max-connections 10",
        "--connect-timeout 0s: must be longer",
        "--control-token-file /does/not/exist",
        "--trust-domain \"Cluster.Local\": 1 to 255 lower-case letters",
        "--trust-domain-alias \"\"",
        "--ca-server \"https://ca\": names no port",
        "--ca-root-cert /does/not/exist",
        "--cert-ttl 10ms: must be a second at least",
    ] {
        assert!(told.contains(part), "{part:?} is not in:\n{told}");
    }
}

#[test]
fn certificates_come_from_the_control_servers_unless_told_otherwise() {
    let control = Transport {
        tls: Some(TlsConfig { roots: "control.pem".into(), server_name: None }),
        ..Transport::default()
    };
    let roots = |settings: IdentitySettings| settings.transport.tls.unwrap().roots;
    let servers = ["https://control:15012".to_owned()];

    let default = parse(&[]).unwrap().identity.settings(&servers, &control);
    assert_eq!((default.servers.as_slice(), &*default.trust_domain), (servers.as_slice(), "cluster.local"));
    assert_eq!(roots(default), PathBuf::from("control.pem"));

    let told = parse(&["--ca-server=https://a:1,https://b:1", "--ca-root-cert=ca.pem", "--cert-ttl=1h"]);
    let told = told.unwrap().identity.settings(&servers, &control);
    assert_eq!((told.servers.len(), told.lifetime), (2, Duration::from_secs(3600)));
    assert_eq!(roots(told), PathBuf::from("ca.pem"));
}

#[test]
fn durations_and_numbers_say_what_they_want() {
    assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
    assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
    for wrong in ["", "5", "s", "-1s", "5 s", "99999999999s", "1d"] {
        assert!(duration(wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(number("0x10").unwrap().get(), 16);
    for wrong in ["0", "", "0x", "x", "4294967296"] {
        assert!(number(wrong).is_err(), "{wrong:?}");
    }
    assert!(parse(&["--idle-timeout=never"]).unwrap_err().contains("500ms, 5s, 10m or 1h"));
}
