use super::*;
use crate::steering::host::testing::{AGENT, CAPTURE, in_namespace_async, shell};

#[test]
fn this_machine_is_fit_and_conflicts_are_named() {
    in_namespace_async(async || {
        let settings = HostSettings::new(CAPTURE, AGENT, "/nonexistent");
        shell("ip rule add pref 9 fwmark 0x1000/0xf000 lookup main");
        let checks = check(&settings, Path::new("/proc")).await;
        let status = |name: &str| checks.iter().find(|check| check.name == name).unwrap().status;

        for name in
            ["capabilities", "bpf sched_cls", "bpf sk_lookup", "transparent sockets", "sysctls", "ipv6"]
        {
            assert_eq!(status(name), Status::Ok, "{name}: {checks:#?}");
        }
        assert_eq!(status("mark"), Status::Warn);
        assert_eq!(status("bpffs"), Status::Fail);
        let error = require(&checks).unwrap_err().to_string();
        assert!(
            error.contains("/proc is not on a BPF file system") && error.contains("mount -t bpf"),
            "{error}"
        );
        assert!(!error.contains("sched_cls"), "{error}");
    });
}

#[test]
fn versions_are_read_from_any_release_string() {
    assert_eq!(parse_version("6.18.44-fc-v657"), Some((6, 18)));
    assert_eq!(parse_version("6.1.0-40-cloud-amd64"), Some((6, 1)));
    assert_eq!(parse_version("5.15+"), Some((5, 15)));
    assert_eq!(parse_version("linux"), None);
}
