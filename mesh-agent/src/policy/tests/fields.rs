use super::wire::Action::{Allow, Deny};
use super::*;

/// A field, and whether it holds for a client with an identity, for one without, and for another client.
type Row = (&'static str, fn(&mut Match), [bool; 3]);

#[rustfmt::skip]
const FIELDS: &[Row] = &[
    ("principals", |m| m.principals = vec![exact("cluster.local/ns/web/sa/shopper")], [true, false, false]),
    ("not_principals", |m| m.not_principals = vec![exact("cluster.local/ns/web/sa/shopper")], [false, true, true]),
    ("principals, one of two", |m| m.principals = vec![exact("x"), exact("cluster.local/ns/web/sa/shopper")], [true, false, false]),
    ("not_principals, one of two", |m| m.not_principals = vec![exact("x"), exact("cluster.local/ns/web/sa/shopper")], [false, true, true]),
    ("principals, prefix", |m| m.principals = vec![prefix("cluster.local/ns/web/")], [true, false, false]),
    ("not_principals, prefix", |m| m.not_principals = vec![prefix("cluster.local/ns/web/")], [false, true, true]),
    ("principals, suffix", |m| m.principals = vec![suffix("/sa/shopper")], [true, false, false]),
    ("not_principals, suffix", |m| m.not_principals = vec![suffix("/sa/shopper")], [false, true, true]),
    ("principals, presence", |m| m.principals = vec![presence()], [true, false, true]),
    ("not_principals, presence", |m| m.not_principals = vec![presence()], [false, true, false]),
    ("principals are without spiffe://", |m| m.principals = vec![prefix("spiffe://")], [false, false, false]),
    ("namespaces", |m| m.namespaces = vec![exact("web")], [true, false, false]),
    ("not_namespaces", |m| m.not_namespaces = vec![exact("web")], [false, true, true]),
    ("namespaces, prefix", |m| m.namespaces = vec![prefix("we")], [true, false, false]),
    ("namespaces, suffix", |m| m.namespaces = vec![suffix("eb")], [true, false, false]),
    ("namespaces, presence", |m| m.namespaces = vec![presence()], [true, false, true]),
    ("namespaces, empty prefix", |m| m.namespaces = vec![prefix("")], [true, false, true]),
    ("not_namespaces, presence", |m| m.not_namespaces = vec![presence()], [false, true, false]),
    ("service_accounts", |m| m.service_accounts = vec![account("web", "shopper")], [true, false, false]),
    ("service_accounts, other namespace", |m| m.service_accounts = vec![account("other", "shopper")], [false, false, false]),
    ("not_service_accounts", |m| m.not_service_accounts = vec![account("web", "shopper")], [false, true, true]),
    ("source_ips", |m| m.source_ips = vec![range("10.1.0.0/16")], [true, true, false]),
    ("source_ips, IPv6", |m| m.source_ips = vec![range("fd00::/8")], [false, false, true]),
    ("not_source_ips", |m| m.not_source_ips = vec![range("10.1.0.0/16")], [false, false, true]),
    ("destination_ips", |m| m.destination_ips = vec![range("10.0.0.1/32")], [true, true, true]),
    ("destination_ips, other", |m| m.destination_ips = vec![range("10.0.0.2/32")], [false, false, false]),
    ("not_destination_ips", |m| m.not_destination_ips = vec![range("10.0.0.1/32")], [false, false, false]),
    ("not_destination_ips, other", |m| m.not_destination_ips = vec![range("10.0.0.2/32")], [true, true, true]),
    ("destination_ports", |m| m.destination_ports = vec![443, 80], [true, true, true]),
    ("destination_ports, other", |m| m.destination_ports = vec![8080], [false, false, false]),
    ("not_destination_ports", |m| m.not_destination_ports = vec![443, 80], [false, false, false]),
    ("not_destination_ports, other", |m| m.not_destination_ports = vec![8080], [true, true, true]),
    ("with and without", |m| {
        m.namespaces = vec![presence()];
        m.not_namespaces = vec![exact("web")];
    }, [false, false, true]),
    ("two fields", |m| {
        m.namespaces = vec![exact("web")];
        m.destination_ports = vec![8080];
    }, [false, false, false]),
    ("no field", |_| {}, [false, false, false]),
];

#[test]
fn every_field_is_compared_as_the_table_says() {
    let (workload, client) = (workload("shop", &[]), client());
    let other = Identity::new("cluster.local", "db", "backup");
    let requests = [
        request(Some(&client), "10.1.2.3", &workload),
        request(None, "::ffff:10.1.2.3", &workload),
        request(Some(&other), "fd00::7", &workload),
    ];
    for (name, set, expected) in FIELDS {
        let mut one = Match::default();
        set(&mut one);
        for (request, expected) in requests.iter().zip(expected) {
            let allow = store(&[authorization("p", Allow, vec![rule(one.clone())])]);
            assert_eq!(allow.policies().authorize(request).is_ok(), *expected, "ALLOW {name}: {request:?}");
            let deny = store(&[authorization("p", Deny, vec![rule(one.clone())])]);
            assert_eq!(deny.policies().authorize(request).is_err(), *expected, "DENY {name}: {request:?}");
        }
    }
}

#[test]
fn what_is_unknown_never_allows_and_always_denies() {
    let (workload, client) = (workload("shop", &[]), client());
    let extension = || Extension { name: "http".into(), config: None };
    let unknown = || StringMatch { match_type: None };
    let cases: [fn(&mut Match, StringMatch, Extension); 4] = [
        |m, _, extension| m.extensions = vec![extension],
        |m, unknown, _| m.principals = vec![unknown],
        |m, unknown, _| m.not_principals = vec![unknown],
        |m, unknown, _| m.not_namespaces = vec![exact("x"), unknown],
    ];
    for (index, set) in cases.into_iter().enumerate() {
        let mut one = Match::default();
        set(&mut one, unknown(), extension());
        for source in [None, Some(&client)] {
            let request = request(source, "10.1.2.3", &workload);
            for action in [Allow, Deny] {
                let store = store(&[authorization("p", action, vec![rule(one.clone())])]);
                assert!(store.policies().authorize(&request).is_err(), "case {index}, {action:?}");
            }
            // What is known still restricts a DENY.
            let elsewhere = Match { destination_ports: vec![8080], ..one.clone() };
            let store = store(&[authorization("p", Deny, vec![rule(elsewhere)])]);
            assert!(store.policies().authorize(&request).is_ok(), "case {index}");
        }
    }
}

#[test]
fn rules_clauses_and_matches_nest_as_the_table_says() {
    let (workload, client) = (workload("shop", &[]), client());
    let request = request(Some(&client), "10.1.2.3", &workload);
    let yes = || Match { destination_ports: vec![80], ..Default::default() };
    let no = || Match { destination_ports: vec![81], ..Default::default() };
    let clause = |matches: Vec<Match>| Clause { matches };
    let cases = [
        (vec![], false),
        (vec![Rule { clauses: vec![] }], true),
        (vec![Rule { clauses: vec![clause(vec![])] }], true),
        (vec![Rule { clauses: vec![clause(vec![Match::default()])] }], false),
        (vec![Rule { clauses: vec![clause(vec![no(), yes()])] }], true),
        (vec![Rule { clauses: vec![clause(vec![yes()]), clause(vec![no()])] }], false),
        (vec![Rule { clauses: vec![clause(vec![yes()]), clause(vec![no(), yes()])] }], true),
        (vec![rule(no()), rule(yes())], true),
        (vec![rule(no()), rule(no())], false),
    ];
    for (index, (rules, expected)) in cases.into_iter().enumerate() {
        let store = store(&[authorization("p", Allow, rules)]);
        assert_eq!(store.policies().authorize(&request).is_ok(), expected, "case {index}");
    }
}

#[test]
fn denials_come_first_and_every_verdict_says_why() {
    let (workload, client) = (workload("shop", &["shop/later"]), client());
    let http = || vec![rule(Match { destination_ports: vec![80], ..Default::default() })];
    let web = request(Some(&client), "10.1.2.3", &workload);
    let mut store = store(&[]);
    let verdict = |store: &PolicyStore, request: &Request<'_>| match store.policies().authorize(request) {
        Ok(allowed) => allowed.to_string(),
        Err(denied) => denied.to_string(),
    };
    let missing = store.policies().authorize(&web).unwrap_err();
    assert!(missing.may_settle());
    assert_eq!(
        missing.to_string(),
        "denied: the policy shop/later, which selects the workload, is not known to the agent \
         (source cluster.local/ns/web/sa/shopper, port 80)"
    );
    let mut later = authorization("later", Allow, vec![]);
    later.scope = wire::Scope::WorkloadSelector.into();
    store.insert(compiled(&later));
    assert_eq!(
        verdict(&store, &web),
        "denied by AuthorizationPolicy shop/later: no rule matches (source cluster.local/ns/web/sa/shopper, port 80)"
    );
    assert!(!store.policies().authorize(&web).unwrap_err().may_settle());
    store.insert(compiled(&authorization("web", Allow, http())));
    assert_eq!(verdict(&store, &web), "allowed by AuthorizationPolicy shop/web rules[0]");

    let mut strict = authorization(
        "strict",
        Deny,
        vec![rule(Match { not_principals: vec![presence()], ..Default::default() })],
    );
    strict.set_origin(&PolicyOrigin {
        kind: "PeerAuthentication".into(),
        namespace: "shop".into(),
        name: "default".into(),
        ..Default::default()
    });
    store.insert(compiled(&strict));
    let plain = request(None, "10.1.2.3", &workload);
    let denied = store.policies().authorize(&plain).unwrap_err();
    assert_eq!(denied.flag(), ResponseFlag::PlaintextRefused);
    assert_eq!(
        denied.to_string(),
        "denied by PeerAuthentication shop/default: plain text where mutual TLS is required \
         (source 10.1.2.3 without identity, port 80)"
    );
    let mut numbered = authorization("deny", Deny, http());
    numbered.set_origin(&PolicyOrigin {
        kind: "AuthorizationPolicy".into(),
        namespace: "shop".into(),
        name: "deny".into(),
        rules: vec![4],
        ..Default::default()
    });
    store.insert(compiled(&numbered));
    let denied = store.policies().authorize(&web).unwrap_err();
    assert_eq!(denied.flag(), ResponseFlag::Denied);
    assert!(denied.to_string().starts_with("denied by AuthorizationPolicy shop/deny rules[4] ("), "{denied}");

    let explanation = store.policies().explain(&web);
    assert_eq!((explanation.allowed, explanation.verdict), (false, denied.to_string()));
    let order: Vec<_> = explanation.policies.iter().map(|p| (&*p.policy.policy, p.matches)).collect();
    let expected = [("shop/deny", true), ("shop/strict", false), ("shop/web", true), ("shop/later", false)];
    assert_eq!(order, expected);
    let strict = &explanation.policies[1].outcomes[0].because[0];
    assert_eq!((strict.field.as_str(), strict.values.as_str(), strict.holds), ("not_principals", "*", false));
    serde_json::to_string(&store.policies().explain(&plain)).unwrap();
}

#[test]
fn a_dry_run_is_reported_and_not_enforced() {
    let (workload, client) = (workload("shop", &[]), client());
    let request = request(Some(&client), "10.1.2.3", &workload);
    for action in [Allow, Deny] {
        let ports = if action == Deny { vec![80] } else { vec![81] };
        let mut policy =
            authorization("p", action, vec![rule(Match { destination_ports: ports, ..Default::default() })]);
        policy.dry_run = true;
        let store = store(&[policy]);
        let allowed = store.policies().authorize(&request).unwrap();
        let would = allowed.would_be_denied().expect("a dry run denies it");
        assert_eq!(&*would.policy().unwrap().name, "shop/p");
        assert_eq!(store.policies().explain(&request).dry_run_verdict, Some(would.to_string()));
        assert!(store.policies().listing(&workload)[0].dry_run);
    }
}
