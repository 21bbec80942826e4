use super::*;
use crate::steering::host::HostState;
use crate::steering::host::namespace::{AgentNamespace, NamespaceThread};
use crate::steering::host::testing::{AGENT, CAPTURE, in_namespace_async, shell};

fn state() -> String {
    let listings = [
        "ip rule",
        "ip -6 rule",
        "ip route show table all",
        "ip -6 route show table all",
        "ip -o link",
        "cat /proc/sys/net/ipv4/tcp_* /proc/sys/net/ipv4/ip_* 2>/dev/null || true",
    ];
    format!("{}\nnftables: {}", listings.map(shell).join("---\n"), untrack::installed().unwrap())
}

#[test]
fn a_crashed_agent_leaves_nothing_after_detach() {
    in_namespace_async(async || {
        let parent = tempfile::tempdir().unwrap();
        let run_dir = parent.path().join("run");
        let settings = HostSettings::new(CAPTURE, AGENT, &run_dir);
        let before = state();
        let lock = InstanceLock::acquire(&run_dir).unwrap();
        let installed = HostState::install(&settings).unwrap();
        assert!(installed.untracking());
        assert_ne!(state(), before);

        let refused = detach(&settings, false, || Ok::<_, HostError>(vec![])).await.unwrap_err();
        assert!(matches!(refused, HostError::AlreadyRunning { .. }), "{refused}");

        // The crash: locks go with the process, everything else stays.
        drop(lock);
        drop(installed);
        let traces = detach(&settings, false, || Ok::<_, HostError>(vec!["/pin".into()])).await.unwrap();
        assert_eq!(state(), before);
        assert!(!run_dir.exists());
        assert!(traces.contains(&Trace::Untracking), "{traces:?}");
        assert_eq!(traces.first(), Some(&Trace::Pin("/pin".into())));

        let nothing = detach(&settings, false, || Ok::<_, HostError>(vec![])).await.unwrap();
        assert_eq!(nothing, []);
        assert!(!run_dir.exists());
    });
}

#[test]
fn a_clean_exit_leaves_nothing_either() {
    in_namespace_async(async || {
        let directory = tempfile::tempdir().unwrap();
        let settings = HostSettings::new(CAPTURE, AGENT, directory.path());
        let before = state();
        HostState::install(&settings).unwrap().remove().await.unwrap();
        assert_eq!(state(), before);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    });
}

#[test]
fn force_detaches_under_a_living_agent_and_a_damaged_journal_stops_nothing() {
    in_namespace_async(async || {
        let directory = tempfile::tempdir().unwrap();
        let settings = HostSettings::new(CAPTURE, AGENT, directory.path());
        let _agent = InstanceLock::acquire(directory.path()).unwrap();
        HostState::install(&settings).unwrap();
        let thread = NamespaceThread::start().unwrap();
        let _namespace = AgentNamespace::connect(thread, &settings).await.unwrap();
        fs::write(directory.path().join("journal"), "damage").unwrap();

        let traces = detach(&settings, true, || Ok::<_, HostError>(vec![])).await.unwrap();
        assert!(traces.contains(&Trace::Devices(2)), "{traces:?}");
        assert!(!untrack::installed().unwrap());
        assert_eq!(fs::read_to_string(directory.path().join("journal")).unwrap(), "damage");
    });
}
