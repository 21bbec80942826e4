use super::*;
use crate::steering::host::testing::{AROUND, CAPTURE, in_namespace_async, shell};

const ROUTING: PolicyRouting = PolicyRouting { mark: CAPTURE, around: AROUND, table: 15_109, preference: 99 };

/// Everything that the module could leave behind, as iproute2 shows it.
fn state() -> String {
    ["ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"]
        .map(shell)
        .join("---\n")
}

#[test]
fn installs_twice_as_once_and_removes_every_trace() {
    in_namespace_async(async || {
        let before = state();
        assert_eq!(ROUTING.install().await.unwrap(), Installed { ipv6: true });
        let installed = state();
        for family in ["", "-6"] {
            let rules = shell(&format!("ip {family} rule"));
            assert!(
                rules.contains("99:\tfrom all fwmark 0x1000/0x1040 iif lo goto 101 proto 109"),
                "{rules}"
            );
            assert!(rules.contains("100:\tfrom all fwmark 0x1000/0x1040 lookup 15109 proto 109"), "{rules}");
            assert!(rules.contains("102:\tfrom all fwmark 0x1040/0x1040 lookup 15109 proto 109"), "{rules}");
            assert!(rules.contains("101:\tfrom all fwmark 0x1000/0x1040 nop proto 109"), "{rules}");
            let routes = shell(&format!("ip {family} route show table 15109"));
            assert!(routes.contains("local default dev lo proto 109"), "{routes}");
        }
        ROUTING.install().await.unwrap();
        assert_eq!(state(), installed);
        assert_eq!(remove().await.unwrap(), 10);
        assert_eq!(state(), before);
        assert_eq!(remove().await.unwrap(), 0);
    });
}

#[test]
fn wrong_rules_in_our_place_are_replaced_and_others_kept() {
    in_namespace_async(async || {
        ROUTING.install().await.unwrap();
        let expected = state();
        // What an agent with other settings left, and what somebody put in the way.
        remove().await.unwrap();
        PolicyRouting { mark: Mark { value: 0x40, mask: 0x1040 }, ..ROUTING }.install().await.unwrap();
        shell("ip rule add pref 100 fwmark 0x1000/0x1040 lookup main");
        ROUTING.install().await.unwrap();
        assert_eq!(state(), expected);

        shell("ip rule add pref 100 fwmark 0x4000/0x4000 lookup main");
        shell("ip -6 rule add pref 7 fwmark 0x3000/0xf000 lookup main");
        let with_others = state();
        ROUTING.install().await.unwrap();
        assert_eq!(state(), with_others);
        assert_eq!(foreign_marks(ROUTING.mark).await.unwrap(), ["pref 7 fwmark 0x3000/0xf000"]);
    });
}

#[test]
fn a_table_of_somebody_else_is_refused() {
    in_namespace_async(async || {
        shell("ip route add 192.0.2.0/24 dev lo table 15109");
        let error = ROUTING.install().await.unwrap_err().to_string();
        assert!(error.contains("15109") && error.contains("192.0.2.0/24"), "{error}");
    });
}

#[test]
fn a_node_without_ipv6_is_served() {
    in_namespace_async(async || {
        std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap();
        let before = state();
        assert_eq!(ROUTING.install().await.unwrap(), Installed { ipv6: false });
        remove().await.unwrap();
        assert_eq!(state(), before);
    });
}

#[test]
fn marked_packets_of_the_node_itself_are_routed_as_usual() {
    in_namespace_async(async || {
        shell(
            "ip link add up0 type veth peer name up1 && ip link set up1 up && ip address add 192.0.2.1/24 dev up0 && ip link set up0 up",
        );
        ROUTING.install().await.unwrap();
        assert!(shell("ip route get 192.0.2.9 mark 0x1000").contains("dev up0"));
        // Nowhere to go stays nowhere to go, and is not delivered to the agent.
        let unroutable = std::process::Command::new("ip")
            .args(["route", "get", "198.51.100.1", "mark", "0x1000"])
            .output()
            .unwrap();
        assert!(!unroutable.status.success());
        // From elsewhere it is steered.
        assert!(shell("ip route get 198.51.100.1 from 192.0.2.9 iif up0 mark 0x1000").contains("local"));
    });
}
