use super::*;
use crate::pods::{FailureMode, Redirection};
use crate::steering::host::testing::{Namespace, in_namespace_async, shell};

fn pod(name: &str, address: &str) -> LocalPod {
    LocalPod {
        uid: name.into(),
        name: name.into(),
        namespace: "ns".into(),
        kubernetes_uid: None,
        service_account: "default".into(),
        addresses: vec![address.parse().unwrap()],
        device: None,
        enrolled: true,
        redirection: Redirection::default(),
        failure_mode: FailureMode::Open,
    }
}

/// A pod with the addresses 10.7.0.`number` and fd07::`number` behind the device `pod<number>`.
fn attach(number: u32) -> Namespace {
    let namespace = Namespace::new();
    shell(&format!("ip link add pod{number} type veth peer name eth0 && ip link set pod{number} up"));
    namespace.take_device("eth0");
    namespace.run(|| {
        shell(&format!(
            "ip link set eth0 up && ip address add 10.7.0.{number}/24 dev eth0 \
             && ip address add fd07::{number}/64 dev eth0 nodad"
        ))
    });
    namespace
}

/// Looks until the device is known, as the reconciler does.
async fn locate(devices: &mut NetlinkDevices, address: &str) -> Option<String> {
    let pods = [Arc::new(pod("a", address))];
    for _ in 0..50 {
        if let Some(device) = devices.locate(&pods).await.remove("a") {
            return Some(device.name);
        }
        sleep(Duration::from_millis(20)).await;
    }
    None
}

#[test]
fn a_routed_pod_is_behind_the_device_of_its_route() {
    in_namespace_async(async || {
        let _pods = [attach(3), attach(4)];
        for number in [3, 4] {
            shell(&format!(
                "ip route add 10.7.0.{number}/32 dev pod{number} && ip route add fd07::{number}/128 dev pod{number}"
            ));
        }
        let mut devices = NetlinkDevices::open().unwrap();
        for (address, device) in
            [("10.7.0.3", "pod3"), ("10.7.0.4", "pod4"), ("fd07::3", "pod3"), ("fd07::4", "pod4")]
        {
            assert_eq!(locate(&mut devices, address).await.as_deref(), Some(device), "{address}");
        }
    });
}

const BRIDGE: &str = "ip link add br0 type bridge && ip link set br0 up \
     && ip address add 10.7.0.1/24 dev br0 && ip address add fd07::1/64 dev br0 nodad";

#[test]
fn a_bridged_pod_is_found_before_it_has_sent_anything() {
    in_namespace_async(async || {
        shell(BRIDGE);
        let _pods = [attach(3), attach(4)];
        shell("ip link set pod3 master br0 && ip link set pod4 master br0");
        let mut devices = NetlinkDevices::open().unwrap();
        for (address, device) in
            [("10.7.0.3", "pod3"), ("10.7.0.4", "pod4"), ("fd07::3", "pod3"), ("fd07::4", "pod4")]
        {
            // At the first look: nobody has been asked, and nobody had to answer.
            let found = devices.locate(&[Arc::new(pod("a", address))]).await;
            assert_eq!(found["a"].name, device, "{address}");
        }
        assert_eq!(shell("ip neigh show dev br0"), "");

        // The tables have forgotten: what was found stays, as long as there is such a device.
        let last = PodDevice { index: 1, name: "lo".into() };
        let known = [Arc::new(LocalPod { device: Some(last.clone()), ..pod("a", "10.7.0.9") })];
        assert_eq!(devices.locate(&known).await.remove("a"), Some(last));
        let stale = PodDevice { index: 1, name: "gone".into() };
        let known = [Arc::new(LocalPod { device: Some(stale), ..pod("a", "10.7.0.9") })];
        assert_eq!(devices.locate(&known).await.remove("a"), None);
    });
}

#[test]
fn who_had_the_address_of_a_new_pod_before_is_forgotten() {
    in_namespace_async(async || {
        shell(BRIDGE);
        let _pod = attach(3);
        shell("ip link set pod3 master br0");
        for (address, state) in [("10.7.0.3", "reachable"), ("fd07::3", "stale"), ("10.7.0.4", "reachable")] {
            shell(&format!("ip neigh replace {address} lladdr 02:00:00:00:00:99 dev br0 nud {state}"));
        }
        let both = ["10.7.0.3".parse().unwrap(), "fd07::3".parse().unwrap()];
        let new = LocalPod { addresses: both.to_vec(), ..pod("a", "10.7.0.3") };
        let mut devices = NetlinkDevices::open().unwrap();
        let device = devices.locate(&[Arc::new(new.clone())]).await.remove("a");
        assert_eq!(device.as_ref().unwrap().name, "pod3");
        let known = || shell("ip neigh show dev br0 | grep lladdr | cut -d' ' -f1");
        assert_eq!(known().trim(), "10.7.0.4");

        // Of a pod that was there before, and what somebody has set.
        shell("ip neigh replace 10.7.0.3 lladdr 02:00:00:00:00:99 dev br0 nud reachable");
        devices.locate(&[Arc::new(LocalPod { device, ..new.clone() })]).await;
        assert!(known().contains("10.7.0.3"));
        shell("ip neigh replace 10.7.0.3 lladdr 02:00:00:00:00:99 dev br0 nud permanent");
        devices.locate(&[Arc::new(new)]).await;
        assert!(known().contains("10.7.0.3"));
    });
}

/// Cilium's way: all routes lead to a device that is no pod's.
#[test]
fn a_pod_behind_a_common_device_is_found_at_the_other_end_of_its_own() {
    in_namespace_async(async || {
        let _pods = [attach(3), attach(4)];
        shell(
            "ip link add host type veth peer name net && ip link set host up && ip link set net up \
             && ip address add 10.7.0.1/24 dev host && ip address add fd07::1/64 dev host nodad",
        );
        let mut devices = NetlinkDevices::open().unwrap();
        for (address, device) in [("10.7.0.3", "pod3"), ("fd07::4", "pod4")] {
            let found = devices.locate(&[Arc::new(pod("a", address))]).await;
            assert_eq!(found["a"].name, device, "{address}");
        }
    });
}

#[test]
fn an_address_that_a_pod_gives_itself_is_not_taken_from_another() {
    in_namespace_async(async || {
        shell(BRIDGE);
        let pods = [attach(3), attach(4)];
        shell("ip link set pod3 master br0 && ip link set pod4 master br0");
        let mut devices = NetlinkDevices::open().unwrap();
        let victim = Arc::new(pod("a", "10.7.0.3"));
        let mine = devices.locate(&[Arc::clone(&victim)]).await.remove("a").unwrap();
        pods[1].run(|| shell("ip address add 10.7.0.3/24 dev eth0"));

        let known = Arc::new(LocalPod { device: Some(mine.clone()), ..LocalPod::clone(&victim) });
        assert_eq!(devices.locate(&[known]).await.remove("a"), Some(mine));
        assert_eq!(
            devices.locate(&[victim]).await.remove("a"),
            None,
            "which of the two it was nobody can tell"
        );
        // By the node's own route it can.
        shell("ip route add 10.7.0.3/32 dev pod3");
        assert_eq!(locate(&mut devices, "10.7.0.3").await.as_deref(), Some("pod3"));
    });
}

/// A virtual machine that has its pod's address: the pod bridges to it and has none itself.
#[test]
fn a_bridged_pod_that_handed_its_address_on_is_behind_the_port_that_learnt_it() {
    in_namespace_async(async || {
        shell(BRIDGE);
        let pod = attach(3);
        shell("ip link set pod3 master br0");
        let machine = Namespace::new();
        pod.run(|| {
            shell(
                "ip address flush dev eth0 && ip link add br1 type bridge && ip link set br1 up \
                 && ip link set eth0 master br1 && ip link add tap type veth peer name vm0 && ip link set tap master br1 up",
            );
            machine.take_device("vm0");
        });
        machine.run(|| shell("ip link set vm0 up && ip address add 10.7.0.3/24 dev vm0"));
        let mut devices = NetlinkDevices::open().unwrap();
        assert_eq!(locate(&mut devices, "10.7.0.3").await.as_deref(), Some("pod3"));
    });
}

#[test]
fn an_address_behind_a_gateway_or_of_the_node_is_of_no_device() {
    in_namespace_async(async || {
        let _router = attach(3);
        shell("ip address add 10.7.0.1/24 dev pod3 && ip route add 10.8.0.0/16 via 10.7.0.3");
        let mut devices = NetlinkDevices::open().unwrap();
        let pods = [pod("remote", "10.8.0.5"), pod("node", "10.7.0.1"), pod("nowhere", "192.0.2.1")];
        assert_eq!(devices.locate(&pods.map(Arc::new)).await, HashMap::new());
    });
}

#[test]
fn a_new_device_is_a_reason_to_look_again() {
    in_namespace_async(async || {
        let mut devices = NetlinkDevices::open().unwrap();
        shell("ip link add new0 type veth peer name new1");
        tokio::time::timeout(Duration::from_secs(5), devices.changed()).await.unwrap();
    });
}
