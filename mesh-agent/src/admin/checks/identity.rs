//! Certificates: those of the pods, who signs them, and what peers are verified with.

use crate::admin::api::{Check, IdentityReport, IdentityState, IdentityStatus};

/// A root that ends sooner is worth a word: every node needs the next one before.
const ROOT_ENDS_SOON_SECONDS: u64 = 14 * 24 * 3600;

/// Looks at all of it; `now` in seconds since 1970.
pub(super) fn checks(report: &IdentityReport, now: u64) -> [Check; 3] {
    [certificates(report, now), authority(report), roots(report, now)]
}

fn certificates(report: &IdentityReport, now: u64) -> Check {
    let name = "certificates";
    let described = |identity: &IdentityStatus| {
        let state = match identity.state {
            IdentityState::Pending => "none yet",
            IdentityState::Valid => "valid",
            IdentityState::Expired => "expired",
        };
        match &identity.last_error {
            Some(error) => format!("{}: {state} ({error})", identity.identity),
            None => format!("{}: {state}", identity.identity),
        }
    };
    let unusable = |state| {
        let found = report.identities.iter().filter(move |identity| identity.state == state);
        found.map(described).collect::<Vec<_>>()
    };
    let (pending, expired) = (unusable(IdentityState::Pending), unusable(IdentityState::Expired));
    let mend = "pods with this identity can neither open nor take encrypted connections; see `meshctl identities` and \
                the check of the certificate authority";
    if !expired.is_empty() {
        return Check::fail(name, [expired, pending].concat().join("; "), mend);
    }
    if !pending.is_empty() {
        return Check::warn(name, pending.join("; "), mend);
    }
    match report.identities.iter().filter_map(|identity| identity.expires).min() {
        None => Check::ok(name, "none needed: no pod of this node has an identity"),
        Some(end) => {
            let count = report.identities.len();
            Check::ok(name, format!("{count} valid, the first expires in {} s", end.saturating_sub(now)))
        }
    }
}

fn authority(report: &IdentityReport) -> Check {
    let name = "certificate authority";
    let failing: Vec<_> = report.identities.iter().filter(|identity| identity.failures > 0).collect();
    let Some(worst) = failing.iter().max_by_key(|identity| identity.failures) else {
        return Check::ok(name, format!("gave {} certificates and refused nothing lately", report.issued));
    };
    let error = worst.last_error.as_deref().unwrap_or("no reason known");
    let detail = format!("{} of {} identities wait: {error}", failing.len(), report.identities.len());
    let mend = "check that it runs and can be reached from here, and that the agent's token is good; the agent keeps \
                what is still valid and tries again";
    match failing.len() < report.identities.len() || report.identities.iter().any(is_valid) {
        true => Check::warn(name, detail, mend),
        false => Check::fail(name, detail, mend),
    }
}

fn is_valid(identity: &IdentityStatus) -> bool {
    identity.state == IdentityState::Valid
}

fn roots(report: &IdentityReport, now: u64) -> Check {
    let name = "roots of trust";
    let mend = "rotate the root: `mesh-control ca rotate`";
    match report.roots.iter().min_by_key(|root| root.expires) {
        None if report.identities.is_empty() => Check::ok(name, "none needed"),
        None => Check::fail(
            name,
            "none: no peer's certificate can be verified",
            "they come with the first certificate; see the check of the certificate authority",
        ),
        Some(first) if first.expires <= now => {
            Check::warn(name, format!("{} has expired", first.subject), mend)
        }
        Some(first) if first.expires < now + ROOT_ENDS_SOON_SECONDS => {
            let days = (first.expires - now) / (24 * 3600);
            Check::warn(name, format!("{} expires in {days} days", first.subject), mend)
        }
        Some(_) => Check::ok(name, format!("{} trusted", report.roots.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::{CheckStatus, RootInfo};

    const NOW: u64 = 1_000_000;

    fn identity(state: IdentityState, failures: u32) -> IdentityStatus {
        IdentityStatus {
            identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
            state,
            serial: None,
            issuer: None,
            not_before: None,
            expires: (state != IdentityState::Pending).then_some(NOW + 60),
            next_request: None,
            failures,
            last_error: (failures > 0).then(|| "the authority is away".into()),
            pods: vec![],
        }
    }

    fn statuses(identities: Vec<IdentityStatus>, root_expires: Option<u64>) -> [CheckStatus; 3] {
        let root = |expires| RootInfo { subject: "CN=root".into(), serial: "1".into(), expires };
        let roots = root_expires.map(root).into_iter().collect();
        checks(&IdentityReport { identities, roots, issued: 1, ..IdentityReport::default() }, NOW)
            .map(|check| check.status)
    }

    #[test]
    fn what_stops_traffic_fails_and_what_will_warns() {
        use CheckStatus::{Fail, Ok, Warn};
        use IdentityState::{Expired, Pending, Valid};
        let far = Some(NOW + 365 * 24 * 3600);
        assert_eq!(statuses(vec![], None), [Ok, Ok, Ok]);
        assert_eq!(statuses(vec![identity(Valid, 0)], far), [Ok, Ok, Ok]);
        assert_eq!(statuses(vec![identity(Valid, 3)], far), [Ok, Warn, Ok]);
        assert_eq!(statuses(vec![identity(Pending, 0)], None), [Warn, Ok, Fail]);
        assert_eq!(statuses(vec![identity(Pending, 2)], None), [Warn, Fail, Fail]);
        assert_eq!(statuses(vec![identity(Expired, 2), identity(Valid, 0)], far), [Fail, Warn, Ok]);
        assert_eq!(statuses(vec![identity(Valid, 0)], Some(NOW + 24 * 3600)), [Ok, Ok, Warn]);
        assert_eq!(statuses(vec![identity(Valid, 0)], Some(NOW - 1)), [Ok, Ok, Warn]);
    }
}
