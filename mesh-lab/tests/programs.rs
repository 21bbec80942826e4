//! Programs run where they should, see the machine's /sys, and die when they should.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::time::Duration;

use mesh_lab::{Lab, ProcessError, Topology};

const SOON: Duration = Duration::from_secs(10);

fn lab() -> Lab {
    let text = "{name: programs, nodes: [{name: node1, pods: [{name: pod}]}]}";
    Lab::up(Topology::parse("programs", text).unwrap().unique()).unwrap()
}

#[test]
fn a_program_is_in_its_pods_namespace_and_cgroup_and_nowhere_else() {
    let lab = lab();
    let pod = lab.pod("pod").unwrap();
    let script = "readlink /proc/self/ns/net /proc/self/ns/mnt; cat /proc/self/cgroup";
    let output = pod.program("sh").unwrap().args(["-c", script]).output().unwrap();
    let mut lines = output.stdout.lines();
    let own = |namespace: &str| std::fs::read_link(format!("/proc/thread-self/ns/{namespace}")).unwrap();
    let inside = pod.namespace().run(|| own("net")).unwrap();
    assert_eq!(lines.next().unwrap(), inside.to_string_lossy());
    assert_ne!(inside, own("net"), "this thread has stayed where it was");
    // The same mounts: bpffs and cgroup2 are there as outside.
    assert_eq!(lines.next().unwrap(), own("mnt").to_string_lossy());
    if let Some(cgroup) = pod.cgroup() {
        assert!(cgroup.ends_with(format!("mesh-lab/{}/node1/poddefault_pod", lab.name())));
        let unified = lines.find_map(|line| line.strip_prefix("0::")).unwrap();
        assert!(cgroup.ends_with(unified.trim_start_matches('/')), "{unified}");
    }
}

#[test]
fn output_status_and_environment_are_those_of_the_program() {
    let lab = lab();
    let program = lab.node("node1").unwrap().program("sh").unwrap();
    let script = "echo $WORD; pwd; echo bad >&2; exit 3";
    let output = program.args(["-c", script]).env("WORD", "good").current_dir("/usr").output().unwrap();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("good\n/usr\n", "bad\n"));
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_program_that_takes_too_long_is_killed() {
    let lab = lab();
    let program = lab.pod("pod").unwrap().program("sh").unwrap();
    let output = program.args(["-c", "echo begun; sleep 1000"]).timeout(Duration::from_millis(200)).output();
    let Err(ProcessError::Timeout { said, pid, .. }) = output else { panic!("{output:?}") };
    assert_eq!(said, "begun\n");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_program_that_cannot_start_says_why() {
    let lab = lab();
    let error = lab.pod("pod").unwrap().program("no-such-program").unwrap().spawn().unwrap_err().to_string();
    assert!(error.contains("pod: cannot start no-such-program"), "{error}");
    let mut shell =
        lab.pod("pod").unwrap().program("sh").unwrap().args(["-c", "echo broken; exit 1"]).spawn().unwrap();
    let error = shell.wait_for_log("ready", SOON).unwrap_err();
    assert!(matches!(&error, ProcessError::Ended { said, .. } if said == "broken\n"), "{error}");
}

#[test]
fn stopping_is_asking_first() {
    let lab = lab();
    let script = "trap 'echo asked; exit 7' TERM; echo ready; while :; do sleep 0.01; done";
    let mut polite = lab.pod("pod").unwrap().program("sh").unwrap().args(["-c", script]).spawn().unwrap();
    polite.wait_for_log("ready", SOON).unwrap();
    assert_eq!(polite.stop(SOON).unwrap().code(), Some(7));
    let mut deaf = lab
        .pod("pod")
        .unwrap()
        .program("sh")
        .unwrap()
        .args(["-c", "trap '' TERM; echo ready; sleep 1000; sleep 1000"])
        .spawn()
        .unwrap();
    deaf.wait_for_log("ready", SOON).unwrap();
    assert!(matches!(deaf.stop(Duration::from_millis(100)), Err(ProcessError::Timeout { .. })));
}

#[test]
fn async_work_runs_inside() {
    let lab = lab();
    let pod = lab.pod("pod").unwrap();
    let address = (pod.ipv6().unwrap(), 8080).into();
    let _echo = pod.echo(8080).unwrap();
    // A socket born in the namespace, used from a runtime outside of it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let peer = runtime.block_on(async {
        lab.node("node1").unwrap().namespace().connect(address).await.unwrap().peer_addr().unwrap()
    });
    assert_eq!(peer, address);
    // A whole runtime in the namespace.
    let connected =
        pod.namespace().block_on(async || tokio::net::TcpStream::connect(address).await.is_ok()).unwrap();
    assert!(connected);
}

#[test]
fn pods_come_and_go() {
    let mut lab = lab();
    let inside = |lab: &Lab| {
        let list = lab.node("node1").unwrap().program("ls").unwrap().arg("/proc/sys/net/ipv4/conf").output();
        list.unwrap().stdout.contains("p-late")
    };
    assert!(!inside(&lab));
    let late = lab.add_pod("node1", "late").unwrap();
    let address = late.address().unwrap();
    let echo = late.echo(80).unwrap();
    assert!(inside(&lab));
    let load = mesh_lab::traffic::Load::http(&format!("http://{address}/")).unwrap().requests(1);
    let report = lab.pod("pod").unwrap().traffic(load).unwrap().finish();
    assert_eq!(report.pods["late"], 1, "{report}");
    assert!(lab.add_pod("node1", "late").is_err() && lab.add_pod("node9", "other").is_err());
    let mut program = lab.pod("late").unwrap().program("sleep").unwrap().arg("1000").spawn().unwrap();
    drop(echo);
    lab.remove_pod("late").unwrap();
    assert!(lab.pod("late").is_err() && !inside(&lab));
    if lab.pod("pod").unwrap().cgroup().is_some() {
        assert!(!program.wait(SOON).unwrap().success(), "killed with its pod");
    }
    // The address is free again.
    assert_eq!(lab.add_pod("node1", "later").unwrap().address(), Some(address));
    lab.down().unwrap();
}
