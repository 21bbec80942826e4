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

#[test]
fn a_bridged_pod_is_behind_the_port_that_learnt_its_address() {
    in_namespace_async(async || {
        shell(
            "ip link add br0 type bridge && ip link set br0 up \
             && ip address add 10.7.0.1/24 dev br0 && ip address add fd07::1/64 dev br0 nodad",
        );
        let _pods = [attach(3), attach(4)];
        shell("ip link set pod3 master br0 && ip link set pod4 master br0");
        let mut devices = NetlinkDevices::open().unwrap();
        for (address, device) in
            [("10.7.0.3", "pod3"), ("10.7.0.4", "pod4"), ("fd07::3", "pod3"), ("fd07::4", "pod4")]
        {
            assert_eq!(locate(&mut devices, address).await.as_deref(), Some(device), "{address}");
        }

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
