use super::wire::Action::{Allow, Deny};
use super::*;

#[test]
fn the_revision_changes_only_with_what_decides_here() {
    let mut store = PolicyStore::default();
    let here = workload("shop", &["shop/named"]);
    store.insert_workload(None, &here);
    let mut last = store.policies().revision();
    let mut bumped = |store: &PolicyStore| std::mem::replace(&mut last, store.policies().revision()) != last;

    let elsewhere =
        |name: &str| Authorization { namespace: "other".into(), ..authorization(name, Deny, vec![]) };
    store.insert(compiled(&elsewhere("p")));
    assert!(!bumped(&store), "another namespace");
    let selector = |name: &str| Authorization {
        scope: wire::Scope::WorkloadSelector.into(),
        ..authorization(name, Deny, vec![])
    };
    store.insert(compiled(&selector("unnamed")));
    assert!(!bumped(&store), "a policy that nobody names");
    store.insert(compiled(&selector("named")));
    assert!(bumped(&store), "a policy that a workload names");
    store.insert(compiled(&selector("named")));
    assert!(!bumped(&store), "the same again");
    store.insert(compiled(&authorization("namespace", Deny, vec![])));
    assert!(bumped(&store), "a policy of the namespace");
    store.insert(compiled(&Authorization { scope: 0, ..elsewhere("global") }));
    assert!(bumped(&store), "a global policy");
    for name in ["shop/named", "shop/namespace", "other/global"] {
        store.remove(name);
        assert!(bumped(&store), "{name} is gone");
    }
    for name in ["shop/unnamed", "other/p", "unknown"] {
        store.remove(name);
        assert!(!bumped(&store), "{name} is gone");
    }
    store.insert_workload(Some(&here), &Workload { healthy: false, ..here.clone() });
    assert!(!bumped(&store), "readiness");
    let renamed = here.clone().with(|shared| shared.service_account = "other".into());
    store.insert_workload(Some(&here), &renamed);
    assert!(bumped(&store), "another identity");
    store.insert_workload(Some(&renamed), &workload("shop", &[]));
    assert!(bumped(&store), "another list");
}

#[test]
fn a_thousand_changes_leave_snapshots_in_use_alone() {
    let (client, own) = (client(), workload("shop", &[]));
    let port = |port: u32| vec![rule(Match { destination_ports: vec![port], ..Default::default() })];
    let mut store = PolicyStore::default();
    store.insert_workload(None, &own);
    store.insert(compiled(&authorization("web", Allow, port(80))));
    let before = store.policies().clone();
    for number in 0..1000_u32 {
        store.insert(compiled(&authorization(&format!("p{}", number % 100), Allow, port(1000 + number))));
    }
    store.insert(compiled(&authorization("web", Deny, port(80))));
    let request = request(Some(&client), "10.1.2.3", &own);
    assert!(before.authorize(&request).is_ok());
    assert!(store.policies().authorize(&request).is_err());
    assert_eq!((before.len(), store.policies().len()), (1, 101));
}
