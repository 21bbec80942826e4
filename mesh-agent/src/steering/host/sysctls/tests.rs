use super::*;
use crate::steering::host::testing::in_namespace;

fn set(name: &str, value: &str) {
    Sysctls::new("/proc/sys").write(name, value).unwrap();
}

fn values() -> [String; 3] {
    [REUSE_TIME_WAIT, PORT_RANGE, RESERVED_PORTS].map(|name| Sysctls::new("/proc/sys").read(name).unwrap())
}

#[test]
fn values_are_set_and_put_back_also_after_a_crash() {
    in_namespace(|| {
        set(RESERVED_PORTS, "32768,40000-40002");
        let before = values();
        let directory = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::new("/proc/sys");

        // The second round is a restart after a crash: nothing was put back, nothing must be forgotten.
        for _ in 0..2 {
            let mut journal = Journal::open(directory.path()).unwrap();
            sysctls.apply(&sysctls.wanted(Some(PortRange::WIDE)).unwrap(), &mut journal).unwrap();
            assert_eq!(values(), ["1", "16384 65535", "30000-32768,40000-40002"]);
        }

        let mut journal = Journal::open(directory.path()).unwrap();
        sysctls.restore(&mut journal).unwrap();
        assert_eq!(values(), before);
    });
}

#[test]
fn what_somebody_else_changed_is_left_alone() {
    in_namespace(|| {
        let directory = tempfile::tempdir().unwrap();
        let sysctls = Sysctls::new("/proc/sys");
        let mut journal = Journal::open(directory.path()).unwrap();
        sysctls.apply(&sysctls.wanted(Some(PortRange::WIDE)).unwrap(), &mut journal).unwrap();
        set(PORT_RANGE, "20000 65000");

        let restored = sysctls.restore(&mut journal).unwrap();
        assert!(!restored.contains(&PORT_RANGE.to_owned()) && restored.contains(&REUSE_TIME_WAIT.to_owned()));
        assert_eq!(sysctls.read(PORT_RANGE).unwrap(), "20000 65000");
        assert_eq!(sysctls.read(RESERVED_PORTS).unwrap(), "");
    });
}

#[test]
fn ranges_only_grow_and_chosen_node_ports_are_respected() {
    in_namespace(|| {
        let sysctls = Sysctls::new("/proc/sys");
        set(PORT_RANGE, "1025 60999");
        let wanted = sysctls.wanted(Some(PortRange::WIDE)).unwrap();
        assert!(wanted.contains(&(PORT_RANGE, "1025 65535".into())));
        assert!(!wanted.iter().any(|(name, _)| *name == RESERVED_PORTS));
        assert!(!sysctls.wanted(None).unwrap().iter().any(|(name, _)| *name == PORT_RANGE));
    });
}

#[test]
fn ranges_are_merged_as_the_kernel_shows_them() {
    let range = |first, last| PortRange { first, last };
    assert_eq!(merge(vec![range(9, 9), range(1, 3), range(4, 5), range(2, 2)]), "1-5,9");
    assert_eq!(merge(vec![range(65_535, 65_535), range(7, 65_535)]), "7-65535");
    assert_eq!(merge(vec![]), "");
}
