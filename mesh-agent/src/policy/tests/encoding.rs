use proptest::prelude::*;
use prost::Message as _;

use super::wire::Action::{Allow, Deny};
use super::*;

fn read_bytes(bytes: Vec<u8>) -> Result<Policy, InvalidPolicy> {
    let type_url = <Authorization as mesh_xds::proto::Name>::type_url();
    read("shop/p", &Any { type_url, value: bytes.into() }, &mut Strings::default())
}

/// Adds field 99 to the message that `path` leads to: the numbers of repeated messages, of which the first is taken.
fn with_unknown(bytes: &[u8], path: &[u32]) -> Vec<u8> {
    let varint = |value: usize, out: &mut Vec<u8>| prost::encode_length_delimiter(value, out).unwrap();
    let mut out = Vec::new();
    let Some((field, rest)) = path.split_first() else {
        out.extend_from_slice(bytes);
        varint(99 << 3, &mut out);
        varint(1, &mut out);
        return out;
    };
    let field = *field as usize;
    let mut done = false;
    for (tag, content) in super::super::wire::Message::parse(bytes).unwrap().fields() {
        // All other fields of these messages are texts or messages, too.
        let inner = if tag == field && !done { with_unknown(content, rest) } else { content.to_vec() };
        done |= tag == field;
        varint(tag << 3 | 2, &mut out);
        varint(inner.len(), &mut out);
        out.extend(inner);
    }
    assert!(done, "nothing at {path:?}");
    out
}

#[test]
fn fields_of_a_later_protocol_never_allow_and_always_deny() {
    let (workload, client) = (workload("shop", &[]), client());
    let request = request(Some(&client), "10.1.2.3", &workload);
    for path in [&[][..], &[5], &[5, 1], &[5, 1, 2], &[5, 1, 2, 1]] {
        for action in [Allow, Deny] {
            // An ALLOW that matches, and a DENY that does not unless something else decides.
            let namespace = if action == Allow { "web" } else { "none" };
            let one = Match { namespaces: vec![exact(namespace)], ..Default::default() };
            let mut message = authorization("p", Allow, vec![rule(one)]);
            message.scope = 0;
            let mut bytes = with_unknown(&message.encode_to_vec(), path);
            // Scope and action are no messages, and may stand anywhere.
            let tail = Authorization {
                scope: wire::Scope::Namespace.into(),
                action: action.into(),
                ..Default::default()
            };
            bytes.extend(tail.encode_to_vec());
            let mut store = PolicyStore::default();
            store.insert(Arc::new(read_bytes(bytes).unwrap()));
            let denied = store.policies().authorize(&request).is_err();
            // Beside a condition that is known and does not hold, an unknown one changes nothing.
            let restricted = action == Deny && matches!(path, [5] | [5, 1, 2]);
            assert_eq!(denied, !restricted, "{action:?} with an unknown field at {path:?}");
        }
    }
}

#[test]
fn a_policy_that_is_not_understood_denies_its_scope_and_says_so() {
    let client = client();
    let allow_all = || authorization("p", Allow, vec![Rule { clauses: vec![] }]);
    type Edit = fn(&mut Authorization);
    let cases: [(Edit, &str); 4] = [
        (|m| m.action = 7, "action 7 is unknown to this agent"),
        (|m| m.scope = 9, "scope 9 is unknown to this agent"),
        (
            |m| m.extensions = vec![Extension { name: "new".into(), config: None }],
            "extension \"new\" is unknown to this agent",
        ),
        (
            |m| {
                m.set_origin(&PolicyOrigin {
                    kind: "AuthorizationPolicy".into(),
                    namespace: "shop".into(),
                    name: "p".into(),
                    unusable: "the selector is damaged".into(),
                    ..Default::default()
                });
            },
            "the selector is damaged",
        ),
    ];
    for (edit, reason) in cases {
        let mut message = allow_all();
        edit(&mut message);
        let store = store(&[message]);
        let (here, elsewhere) = (workload("shop", &[]), workload("other", &[]));
        let denied = store.policies().authorize(&request(Some(&client), "10.1.2.3", &here)).unwrap_err();
        let expected = format!("denied by AuthorizationPolicy shop/p, which cannot be used: {reason} (");
        assert!(denied.to_string().starts_with(&expected), "{denied}");
        assert!(store.policies().authorize(&request(Some(&client), "10.1.2.3", &elsewhere)).is_ok());
        assert_eq!(store.policies().listing(&here)[0].unusable.as_deref(), Some(reason));
    }
}

#[test]
fn what_cannot_be_read_is_refused_with_its_place() {
    let refused = |edit: fn(&mut Match)| {
        let mut one = Match::default();
        edit(&mut one);
        let message = authorization("p", Allow, vec![rule(Match::default()), rule(one)]);
        read("shop/p", &Any::pack(&message), &mut Strings::default()).unwrap_err().to_string()
    };
    assert_eq!(
        refused(|m| m.source_ips = vec![wire::Address { address: Bytes::from_static(b"xyz"), length: 8 }]),
        "rules[1]: source_ips: an address of 3 bytes with a prefix of 8 bits is no range"
    );
    assert_eq!(
        refused(|m| {
            m.not_destination_ips = vec![wire::Address { length: 33, ..range("10.0.0.0/8") }];
        }),
        "rules[1]: not_destination_ips: an address of 4 bytes with a prefix of 33 bits is no range"
    );
    assert_eq!(
        refused(|m| m.destination_ports = vec![65536]),
        "rules[1]: destination_ports: 65536 is not a port"
    );
    let message = authorization("p", Allow, vec![]);
    assert_eq!(
        read("shop/q", &Any::pack(&message), &mut Strings::default()).unwrap_err().to_string(),
        "the resource is named \"shop/q\" but holds \"shop/p\""
    );
}

#[test]
fn what_cannot_be_read_denies_as_much_as_can_be() {
    let mut message = authorization("p", Deny, vec![]);
    let mut scope_of = |name: &str, scope: wire::Scope, body: bool| {
        message.scope = scope.into();
        let body = body.then(|| Any::pack(&message));
        let policy = unusable(name, body.as_ref(), "damaged", &mut Strings::default());
        assert_eq!((policy.action, policy.unusable.as_deref()), (Action::Deny, Some("damaged")));
        policy.scope
    };
    assert_eq!(scope_of("shop/p", wire::Scope::WorkloadSelector, true), Scope::Workload);
    assert_eq!(scope_of("shop/p", wire::Scope::Global, true), Scope::Global);
    assert_eq!(scope_of("shop/p", wire::Scope::WorkloadSelector, false), Scope::Namespace);
    assert_eq!(scope_of("nonsense", wire::Scope::WorkloadSelector, false), Scope::Global);
}

#[test]
fn istiods_names_for_peer_authentications_are_known() {
    for (name, kind, short) in [
        ("istio_converted_static_strict", "PeerAuthentication", "istio_converted_static_strict"),
        ("converted_peer_authentication_db", "PeerAuthentication", "db"),
        ("db", "AuthorizationPolicy", "db"),
    ] {
        let origin = &compiled(&authorization(name, Deny, vec![])).origin;
        assert_eq!((&*origin.kind, &*origin.name), (kind, short));
    }
}

proptest! {
    /// Whatever bytes arrive, reading them ends in a policy or an error.
    #[test]
    fn no_bytes_crash_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_bytes(bytes);
    }

    /// A valid policy with some bytes changed; what can still be read can also be asked.
    #[test]
    fn no_mutation_crashes_the_reader(edits in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8)) {
        let one = Match {
            principals: vec![exact("a"), prefix("b")],
            not_namespaces: vec![suffix("c"), presence()],
            source_ips: vec![range("10.0.0.0/8"), range("fd00::/8")],
            destination_ports: vec![80, 443],
            service_accounts: vec![account("a", "b")],
            ..Default::default()
        };
        let mut bytes = authorization("p", Deny, vec![rule(one)]).encode_to_vec();
        for (at, value) in edits {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        if let Ok(policy) = read_bytes(bytes) {
            let mut store = PolicyStore::default();
            store.insert(Arc::new(policy));
            let (workload, client) = (workload("shop", &[]), client());
            let _ = store.policies().explain(&request(Some(&client), "10.1.2.3", &workload));
            store.remove("shop/p");
            prop_assert!(store.policies().is_empty());
        }
    }
}
