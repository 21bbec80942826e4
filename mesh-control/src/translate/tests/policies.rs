//! Policies as agents get them, and the workloads that name them.

use mesh_xds::proto::mesh::{MutualTls, PolicyOrigin, mutual_tls};
use mesh_xds::proto::security::string_match::MatchType;
use mesh_xds::proto::security::{
    Action, Address, Authorization, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
};

use super::*;

impl Translated {
    fn policy(&self, name: &str) -> &Authorization {
        match &self.0[name].message {
            Message::Authorization(policy) => policy,
            other => panic!("{other:?}"),
        }
    }

    fn named_by(&self, workload: &str) -> &[String] {
        &self.workload(workload).authorization_policies
    }

    fn mutual_tls(&self, workload: &str) -> Option<MutualTls> {
        self.workload(workload).mutual_tls().unwrap()
    }
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n---\n"
    )
}

fn peer(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n---\n"
    )
}

fn matches(matches: impl Into<Vec<Match>>) -> Clause {
    Clause { matches: matches.into() }
}

fn text(match_type: MatchType) -> StringMatch {
    StringMatch { match_type: Some(match_type) }
}

fn presence() -> StringMatch {
    text(MatchType::Presence(()))
}

#[test]
fn scopes_are_those_of_istio() {
    let web = "selector: {matchLabels: {app: web}}";
    let output = translate(
        &[
            POD.to_owned(),
            policy("istio-system", "mesh", ""),
            policy("istio-system", "picked", web),
            policy("shop", "all", "selector: {}"),
            policy("shop", "web", web),
            policy("shop", "other", "selector: {matchLabels: {app: web, version: v1}}"),
            policy("elsewhere", "web", web),
        ]
        .concat(),
    );
    let scope = |name: &str| output.policy(name).scope();
    assert_eq!(scope("istio-system/mesh"), Scope::Global);
    assert_eq!(scope("istio-system/picked"), Scope::WorkloadSelector);
    assert_eq!(scope("shop/all"), Scope::Namespace);
    assert_eq!(scope("shop/web"), Scope::WorkloadSelector);
    assert_eq!(output.named_by(UID), ["istio-system/picked", "shop/web"]);
    // Without rules nothing is allowed.
    assert_eq!(
        (output.policy("shop/all").action(), output.policy("shop/all").rules.len()),
        (Action::Allow, 0)
    );
}

#[test]
fn every_field_that_needs_no_http_is_carried() {
    let output = translate(&policy(
        "shop",
        "all-fields",
        "action: DENY, rules: [{
           from: [
             {source: {principals: [cluster.local/ns/a/sa/b, '*'], notPrincipals: ['*/sa/c'], namespaces: [n-*], notNamespaces: ['*-x'],
                       ipBlocks: [10.1.2.3/8], notIpBlocks: ['fd00::1']}},
             {source: {serviceAccounts: [b, a/b], notServiceAccounts: [c]}}],
           to: [{operation: {ports: ['80', '81'], notPorts: ['82']}}],
           when: [
             {key: source.ip, values: [10.0.0.1]}, {key: source.namespace, notValues: [ns]},
             {key: source.principal, values: [p/*], notValues: [q]}, {key: source.serviceAccount, values: [s]},
             {key: destination.ip, values: ['::/0'], notValues: [192.0.2.0/24]}, {key: destination.port, notValues: ['9']}]
         }]",
    ));
    let account = |namespace: &str, name: &str| ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
    };
    let range = |text: &str| {
        let range: ipnet::IpNet = text.parse().unwrap();
        Address { address: octets(range.addr()), length: range.prefix_len().into() }
    };
    let exact = |value: &str| text(MatchType::Exact(value.to_owned()));
    let none = Match::default;
    let rule = Rule {
        clauses: vec![
            matches([
                Match {
                    principals: vec![exact("cluster.local/ns/a/sa/b"), presence()],
                    not_principals: vec![text(MatchType::Suffix("/sa/c".to_owned()))],
                    namespaces: vec![text(MatchType::Prefix("n-".to_owned()))],
                    not_namespaces: vec![text(MatchType::Suffix("-x".to_owned()))],
                    source_ips: vec![range("10.0.0.0/8")],
                    not_source_ips: vec![range("fd00::1/128")],
                    ..none()
                },
                Match {
                    service_accounts: vec![account("shop", "b"), account("a", "b")],
                    not_service_accounts: vec![account("shop", "c")],
                    ..none()
                },
            ]),
            matches([Match { destination_ports: vec![80, 81], not_destination_ports: vec![82], ..none() }]),
            matches([Match { source_ips: vec![range("10.0.0.1/32")], ..none() }]),
            matches([Match { not_namespaces: vec![exact("ns")], ..none() }]),
            matches([Match {
                principals: vec![text(MatchType::Prefix("p/".to_owned()))],
                not_principals: vec![exact("q")],
                ..none()
            }]),
            matches([Match { service_accounts: vec![account("shop", "s")], ..none() }]),
            matches([Match {
                destination_ips: vec![range("::/0")],
                not_destination_ips: vec![range("192.0.2.0/24")],
                ..none()
            }]),
            matches([Match { not_destination_ports: vec![9], ..none() }]),
        ],
    };
    let policy = output.policy("shop/all-fields");
    assert_eq!(policy.rules, [rule]);
    let origin = PolicyOrigin {
        kind: "AuthorizationPolicy".to_owned(),
        namespace: "shop".to_owned(),
        name: "all-fields".to_owned(),
        ..PolicyOrigin::default()
    };
    assert_eq!(policy.origin(), Ok(Some(origin)));
}

/// Translates a policy that comes with warnings.
fn translate_with_warnings(spec: &str) -> Authorization {
    let (resources, problems) = resources(&policy("shop", "p", spec));
    assert!(!problems.is_empty());
    let mut translator = Translator::new(Mesh::default());
    let mut upserts = translator.apply(resources.into_iter().map(Change::Upsert)).upserts;
    assert_eq!(upserts.len(), 1, "{problems:?}");
    match &upserts.pop().unwrap().message {
        Message::Authorization(policy) => policy.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_needs_http_never_allows_and_always_denies() {
    let rules = "rules: [
        {to: [{operation: {paths: [/admin], ports: ['80']}}]},
        {from: [{source: {namespaces: [a]}}]},
        {from: [{source: {namespaces: [b]}}], when: [{key: 'request.headers[x]', values: [v]}]},
        {from: [{source: {requestPrincipals: ['*']}}, {source: {namespaces: [c]}}], to: [{operation: {ports: ['81']}}]},
        {}]";
    let allow = translate_with_warnings(rules);
    let positions = |policy: &Authorization| policy.origin().unwrap().unwrap().rules;
    assert_eq!((allow.rules.len(), positions(&allow)), (2, vec![1, 4]));

    let deny = translate_with_warnings(&format!("action: DENY, {rules}"));
    assert_eq!(positions(&deny), [0u32; 0], "they are those that were written");
    let port = |port| matches([Match { destination_ports: vec![port], ..Match::default() }]);
    let namespace = |name: &str| {
        let exact = text(MatchType::Exact(name.to_owned()));
        matches([Match { namespaces: vec![exact], ..Match::default() }])
    };
    let clauses: Vec<_> = deny.rules.into_iter().map(|rule| rule.clauses).collect();
    assert_eq!(clauses, [vec![port(80)], vec![namespace("a")], vec![namespace("b")], vec![port(81)], vec![]]);

    // Nothing is left to allow: the policy is there all the same, and denies.
    let nothing = translate_with_warnings("rules: [{to: [{operation: {methods: [GET]}}]}]");
    assert_eq!((nothing.action(), nothing.rules.len()), (Action::Allow, 0));
}

#[test]
fn a_dry_run_stays_one() {
    let text = policy("shop", "p", "")
        .replace("metadata: {", "metadata: {annotations: {istio.io/dry-run: 'true'}, ");
    assert!(translate(&text).policy("shop/p").dry_run);
}

/// What a workload is told: its settings, and the condition under which it refuses, by policy.
fn strictness(policies: &[String]) -> (Option<MutualTls>, Vec<(String, Match)>) {
    let output = translate(&format!("{POD}{}", policies.concat()));
    let refusals = output.named_by(UID).iter().map(|name| {
        let policy = output.policy(name);
        assert_eq!((policy.action(), policy.scope()), (Action::Deny, Scope::WorkloadSelector));
        assert_eq!(format!("{}/{}", policy.namespace, policy.name), *name);
        let origin = policy.origin().unwrap().unwrap();
        assert_eq!(origin.kind, "PeerAuthentication");
        (format!("{}/{}", origin.namespace, origin.name), policy.rules[0].clauses[0].matches[0].clone())
    });
    (output.mutual_tls(UID), refusals.collect())
}

fn settings(mode: mutual_tls::Mode, ports: &[(u32, mutual_tls::Mode)], policy: &str) -> Option<MutualTls> {
    let ports =
        ports.iter().map(|(port, mode)| mutual_tls::PortMode { port: *port, mode: (*mode).into() }).collect();
    Some(MutualTls { mode: mode.into(), ports, policy: policy.to_owned() })
}

#[test]
fn the_narrowest_peer_authentication_that_says_something_counts() {
    use mutual_tls::Mode::{Disable, Permissive, Strict};
    let strict = |namespace: &str| peer(namespace, "default", "mtls: {mode: STRICT}");
    let nobody = || Match { not_principals: vec![presence()], ..Match::default() };
    let refusal = |by: &str, part: Match| vec![(by.to_owned(), part)];
    let web = "selector: {matchLabels: {app: web}}";

    assert_eq!(strictness(&[]), (None, vec![]));
    let mesh = "istio-system/default";
    assert_eq!(strictness(&[strict("istio-system")]), (settings(Strict, &[], mesh), refusal(mesh, nobody())));
    // Unset is as the wider one has it, anything else overrides it.
    assert_eq!(
        strictness(&[
            strict("istio-system"),
            peer("shop", "default", "mtls: {mode: UNSET}"),
            peer("shop", "w", web)
        ]),
        (settings(Strict, &[], mesh), refusal(mesh, nobody()))
    );
    assert_eq!(
        strictness(&[strict("istio-system"), peer("shop", "default", "mtls: {mode: PERMISSIVE}")]),
        (None, vec![])
    );
    assert_eq!(
        strictness(&[strict("shop"), peer("shop", "w", &format!("{web}, mtls: {{mode: DISABLE}}"))]),
        (settings(Disable, &[], "shop/w"), vec![])
    );
    // Another's, another namespace's, and one of the root namespace with a selector.
    let elsewhere = [
        peer("shop", "o", "selector: {matchLabels: {app: o}}, mtls: {mode: STRICT}"),
        strict("elsewhere"),
        peer("istio-system", "w", &format!("{web}, mtls: {{mode: STRICT}}")),
    ];
    assert_eq!(strictness(&elsewhere), (None, vec![]));

    // Ports: exceptions from STRICT, and the only ones that are.
    let ports =
        |mode: &str, ports: &str| peer("shop", "w", &format!("{web}, {mode}portLevelMtls: {{{ports}}}"));
    let open = Match { not_destination_ports: vec![80, 81], ..nobody() };
    assert_eq!(
        strictness(&[
            strict("shop"),
            ports("", "80: {mode: PERMISSIVE}, 81: {mode: DISABLE}, 82: {mode: STRICT}, 83: {mode: UNSET}")
        ]),
        (settings(Strict, &[(80, Permissive), (81, Disable)], "shop/w"), refusal("shop/w", open))
    );
    let closed = Match { destination_ports: vec![82], ..nobody() };
    assert_eq!(
        strictness(&[
            strict("istio-system"),
            ports("mtls: {mode: PERMISSIVE}, ", "80: {mode: PERMISSIVE}, 82: {mode: STRICT}")
        ]),
        (settings(Permissive, &[(82, Strict)], "shop/w"), refusal("shop/w", closed))
    );
    assert_eq!(
        strictness(&[ports("", "81: {mode: DISABLE}")]),
        (settings(Permissive, &[(81, Disable)], "shop/w"), vec![])
    );
}

#[test]
fn the_oldest_of_several_counts() {
    let made = |text: String, when: &str| {
        text.replace("metadata: {", &format!("metadata: {{creationTimestamp: '{when}', "))
    };
    let permissive = peer("shop", "a", "mtls: {mode: PERMISSIVE}");
    let strict = peer("shop", "b", "mtls: {mode: STRICT}");
    assert_eq!(strictness(&[permissive.clone(), strict.clone()]).1.len(), 0, "by name, without dates");
    let (older, newer) = ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z");
    assert_eq!(strictness(&[made(permissive, newer), made(strict, older)]).1.len(), 1);
}

#[test]
fn a_policy_that_cannot_be_used_denies_what_it_is_for() {
    let read = |policy: &str| {
        let (resources, problems) = resources(&format!("{POD}{policy}"));
        let mut translator = Translator::new(Mesh::default());
        let delta = translator.apply(resources.into_iter().map(Change::Upsert));
        let outputs = delta.upserts.into_iter().map(|output| (output.name.name.to_string(), output));
        (Translated(outputs.collect()), problems)
    };
    let refused = |spec: &str| read(&policy("shop", "p", spec));
    for spec in [
        "action: CUSTOM, provider: {name: x}, rules: [{}]",
        "action: DENY",
        "rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]",
        "rules: [{from: [{source: {principle: [x]}}]}]",
        "action: PERMIT",
        "rules: 7",
    ] {
        let (output, problems) = refused(&format!("{spec}, selector: {{matchLabels: {{app: web}}}}"));
        let policy = output.policy("shop/p");
        assert_eq!((policy.action(), policy.rules.as_slice()), (Action::Deny, &[Rule::default()][..]));
        assert_eq!(policy.scope(), Scope::WorkloadSelector, "{spec}");
        let origin = policy.origin().unwrap().unwrap();
        assert!(origin.unusable.starts_with(problems[0].field.as_deref().unwrap()), "{origin:?}");
        assert_eq!(output.named_by(UID), ["shop/p"]);
        let shown = problems[0].to_string();
        assert!(shown.ends_with("(until it is mended, everything it is for is denied)"), "{shown}");
    }
    let (output, _) = refused("selector: {matchLabels: 3}, action: CUSTOM");
    assert_eq!(output.policy("shop/p").scope(), Scope::Namespace, "it may be for any of them");

    let (output, _) = read(&policy("shop", "p", "").replace("istio.io/v1", "istio.io/v3"));
    assert!(
        output.policy("shop/p").origin().unwrap().unwrap().unusable.starts_with("apiVersion: version \"v3\"")
    );

    // These would deny nothing.
    for spec in [
        "action: AUDIT, rules: [{}]",
        "targetRefs: [{kind: Service, name: web, group: ''}], action: DENY, rules: [{}]",
    ] {
        let (output, problems) = refused(spec);
        assert_eq!(output.names(), [UID], "{spec}");
        assert_eq!(problems.len(), 1);
    }
}

#[test]
fn a_peer_authentication_that_cannot_be_used_counts_as_strict() {
    let text = peer("shop", "default", "mtls: {mode: STRCT}");
    let (resources, problems) = resources(&format!("{POD}{text}"));
    assert!(
        problems[0].to_string().ends_with("(until it is mended, it counts as STRICT)"),
        "{}",
        problems[0]
    );
    let mut translator = Translator::new(Mesh::default());
    let delta = translator.apply(resources.into_iter().map(Change::Upsert));
    let outputs = delta.upserts.into_iter().map(|output| (output.name.name.to_string(), output));
    let output = Translated(outputs.collect());
    assert_eq!(output.mutual_tls(UID), settings(mutual_tls::Mode::Strict, &[], "shop/default"));
    assert_eq!(output.named_by(UID), ["shop/converted_peer_authentication_default"]);
}

#[test]
fn a_change_touches_those_it_is_for_and_nobody_else() {
    let pod = |namespace: &str, name: &str, app: &str| {
        POD.replace("web-1", name).replace("shop", namespace).replace("app: web", &format!("app: {app}"))
    };
    let mut translator = Translator::new(Mesh::default());
    let mut apply = |text: &str| {
        let mut dirty = BTreeSet::new();
        for resource in resources(text).0 {
            translator.inputs.apply(Change::Upsert(resource), &mut dirty);
        }
        dirty
    };
    apply(
        &[
            pod("shop", "a", "web"),
            pod("shop", "b", "cart"),
            pod("legacy", "c", "web"),
            pod("legacy", "d", "x"),
        ]
        .concat(),
    );
    let item = |namespace: &str, name: &str| Item::Pod(ObjectName::new(namespace, name));
    let own = |namespace: &str| Item::AuthorizationPolicy(ObjectName::new(namespace, "p"));
    let select =
        |app: &str, rules: &str| format!("selector: {{matchLabels: {{app: {app}}}}}, rules: {rules}");

    assert_eq!(apply(&policy("shop", "p", "")), [own("shop")].into());
    assert_eq!(apply(&policy("shop", "p", &select("web", "[]"))), [item("shop", "a"), own("shop")].into());
    // Other rules for the same workloads are no news to these.
    assert_eq!(apply(&policy("shop", "p", &select("web", "[{}]"))), [own("shop")].into());
    assert_eq!(
        apply(&policy("shop", "p", &select("cart", "[{}]"))),
        [item("shop", "a"), item("shop", "b"), own("shop")].into()
    );
    let everywhere = [item("shop", "a"), item("legacy", "c"), own("istio-system")];
    assert_eq!(apply(&policy("istio-system", "p", &select("web", "[]"))), everywhere.into());

    let peer_item = |namespace: &str, name: &str| Item::PeerAuthentication(ObjectName::new(namespace, name));
    let web = peer("shop", "w", "selector: {matchLabels: {app: web}}, portLevelMtls: {80: {mode: DISABLE}}");
    assert_eq!(apply(&web), [item("shop", "a"), peer_item("shop", "w")].into());
    // What is for all of a namespace also changes what narrower policies come to.
    let namespace = [item("shop", "a"), item("shop", "b"), peer_item("shop", "all"), peer_item("shop", "w")];
    assert_eq!(apply(&peer("shop", "all", "mtls: {mode: STRICT}")), namespace.into());
}
