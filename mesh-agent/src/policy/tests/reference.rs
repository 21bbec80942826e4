//! The semantics once more, as plainly as possible and on the messages themselves: no compilation, no index.

use super::*;

/// The verdict, as far as it names policy and rule.
pub(super) fn verdict(policies: &[Authorization], request: &Request<'_>) -> Result<String, String> {
    let workload = request.workload;
    let name = |policy: &Authorization| format!("{}/{}", policy.namespace, policy.name);
    let covers = |policy: &Authorization| match policy.scope {
        0 => true,
        2 => false,
        // Unknown scopes, too.
        _ => *policy.namespace == *workload.namespace,
    };
    let listed =
        |policy: &Authorization| workload.authorization_policies.iter().any(|n| **n == *name(policy));
    let place = |policy: &Authorization| match policy.scope {
        0 => 0,
        _ if covers(policy) => 1,
        _ => 2,
    };
    let mut applying: Vec<&Authorization> =
        policies.iter().filter(|policy| covers(policy) || listed(policy)).collect();
    applying.sort_by_key(|policy| (place(policy), name(policy)));
    let unusable = |policy: &Authorization| policy.action > 1 || policy.scope > 2;
    let denies = |policy: &Authorization| policy.action != 0 || unusable(policy);
    let enforced = applying.iter().filter(|policy| !policy.dry_run);

    for policy in enforced.clone().filter(|policy| denies(policy)) {
        if unusable(policy) {
            return Err(format!("denied by AuthorizationPolicy {}, which cannot be used", name(policy)));
        }
        if let Some(rule) = first_rule(policy, request, true) {
            return Err(format!("denied by AuthorizationPolicy {} rules[{rule}]", name(policy)));
        }
    }
    let held = |wanted: &Arc<str>| policies.iter().any(|policy| **wanted == *name(policy));
    if let Some(missing) = workload.authorization_policies.iter().filter(|name| !held(name)).min() {
        return Err(format!("denied: the policy {missing}"));
    }
    let allows: Vec<_> = enforced.filter(|policy| !denies(policy)).collect();
    if allows.is_empty() {
        return Ok("allowed: no ALLOW policy applies".to_owned());
    }
    for policy in &allows {
        if let Some(rule) = first_rule(policy, request, false) {
            return Ok(format!("allowed by AuthorizationPolicy {} rules[{rule}]", name(policy)));
        }
    }
    Err(format!("denied by AuthorizationPolicy {}", name(allows[0])))
}

fn first_rule(policy: &Authorization, request: &Request<'_>, deny: bool) -> Option<usize> {
    policy.rules.iter().position(|rule| {
        rule.clauses.iter().all(|clause| {
            clause.matches.is_empty() || clause.matches.iter().any(|one| holds(one, request, deny))
        })
    })
}

fn holds(m: &Match, request: &Request<'_>, deny: bool) -> bool {
    if *m == Match::default() {
        return false;
    }
    let principal = request.source.map(Identity::principal);
    let namespace = request.source.map(|source| source.namespace().to_string());
    // Unknown kinds count as matching where that makes the field hold in a DENY, or not hold in an ALLOW.
    let text = |one: &StringMatch, value: &Option<String>, unknown: bool| match (&one.match_type, value) {
        (None, _) => unknown,
        (_, None) => false,
        (Some(MatchType::Exact(text)), Some(value)) => text == value,
        (Some(MatchType::Prefix(text)), Some(value)) => value.starts_with(text),
        (Some(MatchType::Suffix(text)), Some(value)) => value.ends_with(text),
        (Some(MatchType::Presence(())), Some(_)) => true,
    };
    let texts = |yes: &[StringMatch], no: &[StringMatch], value: &Option<String>| {
        (yes.is_empty() || yes.iter().any(|one| text(one, value, deny)))
            && !no.iter().any(|one| text(one, value, !deny))
    };
    let address = |one: &wire::Address, ip: IpAddr| {
        let bits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:08b}")).collect::<String>();
        let own = match ip {
            IpAddr::V4(ip) => bits(&ip.octets()),
            IpAddr::V6(ip) => bits(&ip.octets()),
        };
        let (range, length) = (bits(&one.address), one.length as usize);
        own.len() == range.len() && own[..length] == range[..length]
    };
    let addresses = |yes: &[wire::Address], no: &[wire::Address], ip: IpAddr| {
        (yes.is_empty() || yes.iter().any(|one| address(one, ip))) && !no.iter().any(|one| address(one, ip))
    };
    let account = |one: &ServiceAccountMatch| {
        request.source.is_some_and(|source| {
            *one.namespace == **source.namespace() && *one.service_account == **source.service_account()
        })
    };
    let port = u32::from(request.destination.port());
    texts(&m.principals, &m.not_principals, &principal)
        && texts(&m.namespaces, &m.not_namespaces, &namespace)
        && (m.service_accounts.is_empty() || m.service_accounts.iter().any(account))
        && !m.not_service_accounts.iter().any(account)
        && addresses(&m.source_ips, &m.not_source_ips, request.source_ip)
        && addresses(&m.destination_ips, &m.not_destination_ips, request.destination.ip())
        && (m.destination_ports.is_empty() || m.destination_ports.contains(&port))
        && !m.not_destination_ports.contains(&port)
        && (m.extensions.is_empty() || deny)
}
