use super::*;
use crate::config::{BalanceMode, RoutingScope, Service};
use crate::proxy::fixtures::{at, ip, pod, pods, service, snapshot, workload};

/// `web` with an endpoint `a` here and `b` elsewhere, both of weight 1, and the plan for it.
fn plan_of(change: impl FnOnce(&mut Service)) -> Plan {
    let mut web = service("web", &["10.96.0.1", "fd00:96::1"]);
    change(&mut web);
    let here = workload("a", &["10.1.0.1", "fd00:1::1"], "n1", &["web"]);
    let there = workload("b", &["10.2.0.1"], "n2", &["web"]);
    let local = pods([pod(&here, true)]);
    plan(&snapshot([web], [here, there]), &local, Instant::now())
}

#[test]
fn endpoints_here_have_their_share_of_all() {
    let plan = plan_of(|_| {});
    let client = pod(&workload("c", &["10.1.0.3"], "n1", &[]), true);
    for (service, endpoint) in [("10.96.0.1:80", "10.1.0.1:8080"), ("[fd00:96::1]:80", "[fd00:1::1]:8080")] {
        assert_eq!(plan[&at(service)].admitted(&client), [at(endpoint)]);
    }
    let kernel = plan::for_kernel(&plan);
    let shares: Vec<_> =
        kernel.values().map(|value| (value.total, value.count, value.endpoints[0].until)).collect();
    assert_eq!(shares, [(2, 1, 1); 2]);
}

#[test]
fn an_endpoint_is_not_left_to_a_kernel_that_refuses_it() {
    let plan = plan_of(|_| {});
    let shares = &plan[&at("10.96.0.1:80")];
    let itself = pod(&workload("a", &["10.1.0.1"], "n1", &["web"]), true);
    assert!(shares.admitted(&itself).is_empty());
    let mut client = pod(&workload("c", &["10.1.0.3"], "n1", &[]), true);
    client.redirection.exclude_outbound_cidrs = [ip("10.1.0.1").into()].into();
    assert!(shares.admitted(&client).is_empty());
}

#[test]
fn a_service_with_a_waypoint_or_without_balancing_is_the_agents() {
    let waypoint = |web: &mut Service| {
        web.waypoint = Some(crate::config::Gateway {
            address: crate::config::GatewayAddress::Service(web.id.clone()),
            hbone_port: 15008,
        });
    };
    assert!(plan_of(waypoint).is_empty());
    assert!(plan_of(|web| web.load_balancing.mode = BalanceMode::Passthrough).is_empty());
    let sticky = |web: &mut Service| web.load_balancing.session_affinity = Some(Duration::from_secs(60));
    assert!(plan_of(sticky).is_empty());
    assert!(plan_of(|web| web.addresses.clear()).is_empty());
}

#[test]
fn a_preferred_node_has_all_there_is() {
    let plan = plan_of(|web| {
        web.load_balancing.mode = BalanceMode::Failover;
        web.load_balancing.preference = vec![RoutingScope::Node];
    });
    let kernel = plan::for_kernel(&plan);
    assert!(kernel.values().all(|value| value.total == 1 && value.draw(u32::MAX).is_some()));
}

#[test]
fn what_is_not_enrolled_unready_or_ejected_is_not_chosen() {
    let web = || service("web", &["10.96.0.1"]);
    let here = || workload("a", &["10.1.0.1"], "n1", &["web"]);
    let now = Instant::now();
    let known = pods([pod(&here(), false)]);
    assert!(plan(&snapshot([web()], [here()]), &known, now).is_empty());

    let local = pods([pod(&here(), true)]);
    let mut unready = here();
    unready.healthy = false;
    assert!(plan(&snapshot([web()], [unready]), &local, now).is_empty());

    let mesh = snapshot([web()], [here(), workload("b", &["10.2.0.1"], "n2", &["web"])]);
    assert_eq!(plan(&mesh, &local, now).len(), 1);
    let load = mesh.load(&here().uid).unwrap();
    load.failed();
    let period = load.eject(now);
    assert!(plan(&mesh, &local, now).is_empty());
    assert_eq!(plan(&mesh, &local, now + period * 2).len(), 1);
}

#[test]
fn cgroups_are_found_by_the_names_that_kubelets_and_labs_give() {
    const UID: &str = "0d8a1f0e-8ad4-4a8e-b6f0-0c1d2e3f4a5b";
    let root = tempfile::tempdir().unwrap();
    let name = workload("web-1", &["10.1.0.1"], "n1", &[]);
    let of_kubelet = Arc::new(LocalPod { kubernetes_uid: Some(UID.into()), ..pod(&name, true) });
    let of_lab = Arc::new(pod(&name, true));
    let systemd = UID.replace('-', "_");
    for (path, owner) in [
        (format!("kubepods/burstable/pod{UID}"), &of_kubelet),
        (format!("kubepods/pod{UID}"), &of_kubelet),
        (
            format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{systemd}.slice"),
            &of_kubelet,
        ),
        (format!("kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{systemd}.slice"), &of_kubelet),
        ("podshop_web-1".to_owned(), &of_lab),
    ] {
        let directory = root.path().join(&path);
        std::fs::create_dir_all(directory.join("container")).unwrap();
        let found = cgroups::find(root.path(), std::slice::from_ref(owner));
        assert_eq!(
            found.values().map(|cgroup| cgroup.path.clone()).collect::<Vec<_>>(),
            std::slice::from_ref(&directory)
        );
        let other = Arc::new(LocalPod { kubernetes_uid: Some("other".into()), ..LocalPod::clone(owner) });
        assert!(cgroups::find(root.path(), &[other]).is_empty());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
