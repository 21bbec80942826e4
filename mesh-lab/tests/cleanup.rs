//! Whatever happens, nothing of a lab is left; and nothing that is not of the lab is touched.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "test code"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use mesh_lab::{Lab, LabError, Namespace, Topology, state};

const BINARY: &str = env!("CARGO_BIN_EXE_mesh-lab");
const SOON: Duration = Duration::from_secs(10);
const TEXT: &str = "
name: cleanup
nodes:
  - {name: node1, pods: [{name: client}]}
  - {name: node2, cni: bridge, pods: [{name: server}]}
hosts: [{name: outside}]
";

fn topology() -> Topology {
    Topology::parse("cleanup", TEXT).unwrap().unique()
}

/// Everything on this machine whose name tells that it belongs to the lab.
fn traces(lab: &str) -> Vec<String> {
    let mut places = vec![PathBuf::from("/run/netns"), PathBuf::from("/run/mesh-lab")];
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    places.extend(
        mounts
            .lines()
            .filter(|line| line.contains(" cgroup2 "))
            .map(|line| Path::new(line.split(' ').nth(1).unwrap()).join("mesh-lab")),
    );
    let mut traces: Vec<String> =
        mounts.lines().filter(|line| line.contains(lab)).map(str::to_owned).collect();
    for entry in places.iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with(lab) {
            traces.push(path.display().to_string());
        }
    }
    traces
}

/// The devices of the machine's own namespace, which labs never touch.
fn devices() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A lab of a process of its own, killed at the latest with this handle.
struct Owner {
    child: Child,
    /// Open as long as the process writes to it.
    _stdout: BufReader<ChildStdout>,
}

impl Owner {
    fn start(name: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("lab.yaml");
        std::fs::write(&file, TEXT).unwrap();
        let mut command = Command::new(BINARY);
        command.arg("up").arg(&file).args(["--name", name, "--foreground"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        assert!(line.starts_with("MACHINE"), "{line}");
        Self { child, _stdout: stdout }
    }

    /// SIGKILL: it cannot clean up.
    fn crash(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_end_of_the_handle_is_the_end_of_everything() {
    let before = devices();
    let lab = Lab::up(topology()).unwrap();
    let name = lab.name().to_owned();
    assert_eq!(
        traces(&name).iter().filter(|trace| trace.starts_with("/run/netns/")).count(),
        6,
        "{:?}",
        traces(&name)
    );
    assert_eq!(devices(), before);
    // The shell's child leaves the process group, and the shell; the cgroup, or the group, still has it.
    let script = "sleep 1000 & echo child $!; wait";
    let mut shell = lab.pod("client").unwrap().program("sh").unwrap().args(["-c", script]).spawn().unwrap();
    shell.wait_for_log("child ", SOON).unwrap();
    let log = shell.log();
    let child: u32 = log.trim().strip_prefix("child ").unwrap().parse().unwrap();
    assert!(alive(shell.pid()) && alive(child));
    let pid = shell.pid();
    drop(lab);
    assert_eq!(traces(&name), Vec::<String>::new());
    eventually("the programs are dead", || !alive(child) && !alive(pid));
    drop(shell);
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_crashed_owner_leaves_nothing_behind_for_long() {
    let name = topology().name;
    let owner = Owner::start(&name);
    let exec = ["exec", name.as_str(), "client", "--", "sleep", "1000"];
    let mut sleeper = Command::new(BINARY).args(exec).spawn().unwrap();
    eventually("the program runs in the lab", || {
        std::fs::read_link(format!("/proc/{}/exe", sleeper.id()))
            .is_ok_and(|exe| exe.file_name().unwrap() != "mesh-lab")
    });
    assert!(matches!(Lab::up(topology().named(&name).unwrap()), Err(LabError::Exists { .. })));
    assert!(!state::load(&name).unwrap().stale());
    owner.crash();
    assert!(
        Command::new(BINARY).args(["down", "--all-stale"]).stdout(Stdio::null()).status().unwrap().success()
    );
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(!sleeper.wait().unwrap().success(), "killed with its lab");
}

#[test]
fn the_next_lab_cleans_up_after_a_crash() {
    let name = topology().name;
    Owner::start(&name).crash();
    let lab = Lab::up(topology().named(&name).unwrap()).unwrap();
    assert!(lab.pod("client").is_ok() && lab.pod("node1").is_err());
    lab.down().unwrap();
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_signal_ends_a_lab_in_the_foreground() {
    let name = topology().name;
    let mut owner = Owner::start(&name);
    let pid = nix::unistd::Pid::from_raw(owner.child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(owner.child.wait().unwrap().success());
    assert_eq!(traces(&name), Vec::<String>::new());
}

#[test]
fn a_kept_lab_stays_until_it_is_removed() {
    let lab = Lab::up(topology()).unwrap();
    let name = lab.name().to_owned();
    let server = lab.pod("server").unwrap().program("sleep").unwrap().arg("1000").detached().spawn().unwrap();
    let pid = server.pid();
    drop(server);
    lab.keep().unwrap();
    assert!(!state::remove_stale().unwrap().contains(&name));
    assert!(alive(pid));
    let lab = Lab::open(&name).unwrap();
    let output = lab.pod("client").unwrap().program("cat").unwrap().arg("/proc/net/dev").output().unwrap();
    assert!(output.stdout.contains("eth0"), "{}", output.stdout);
    drop(lab);
    assert!(Command::new(BINARY).args(["down", &name]).status().unwrap().success());
    eventually("the detached program is dead", || !alive(pid));
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(matches!(state::remove(&name), Err(LabError::Unknown { .. })));
}

#[test]
fn what_others_made_is_not_touched() {
    let topology = topology();
    let (name, taken) = (topology.name.clone(), format!("{}-client", topology.name));
    Namespace::create(&taken).unwrap();
    let error = Lab::up(topology).unwrap_err();
    let left = traces(&name);
    Namespace::remove(&taken).unwrap();
    assert!(matches!(error, LabError::NamespaceTaken { .. }), "{error}");
    assert!(left.iter().all(|trace| trace.contains(&taken)) && !left.is_empty(), "{left:?}");
}

#[test]
fn labs_do_not_see_each_other() {
    let (one, other) = (Lab::up(topology()).unwrap(), Lab::up(topology()).unwrap());
    // The same addresses in both, and a server in only one of them.
    let server = one.pod("server").unwrap();
    assert_eq!(server.addresses(), other.pod("server").unwrap().addresses());
    let _listener = server.namespace().tcp_listener((server.ipv4().unwrap(), 80).into()).unwrap();
    let target = (server.ipv4().unwrap(), 80).into();
    let connect = |lab: &Lab| {
        let client = lab.pod("client").unwrap().namespace();
        client.run(|| std::net::TcpStream::connect_timeout(&target, SOON).is_ok()).unwrap()
    };
    assert!(connect(&one));
    assert!(!connect(&other));
    one.down().unwrap();
    assert!(traces(other.name()).len() > 5, "the other lab is whole");
}
