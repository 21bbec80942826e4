//! Who a workload is: the SPIFFE identity of its service account.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// What a SPIFFE ID begins with.
const SCHEME: &str = "spiffe://";

/// The identity of a Kubernetes service account,
/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`
/// (<https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md>; the path is Istio's).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// A text that names no identity of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
pub struct InvalidIdentity(String);

impl Identity {
    /// The identity of a service account.
    #[must_use]
    pub fn new(
        trust_domain: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        }
    }

    /// Who vouches for it.
    #[must_use]
    pub fn trust_domain(&self) -> &Arc<str> {
        &self.trust_domain
    }

    /// Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &Arc<str> {
        &self.service_account
    }

    /// The identity without `spiffe://`, as authorization policies and metrics have it.
    #[must_use]
    pub fn principal(&self) -> String {
        let Self { trust_domain, namespace, service_account } = self;
        format!("{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, namespace, service_account } = self;
        write!(out, "{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}")
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let parse = || {
            let (trust_domain, path) = text.strip_prefix(SCHEME)?.split_once('/')?;
            let (namespace, service_account) = path.strip_prefix("ns/")?.split_once("/sa/")?;
            let plain = |part: &str| !part.is_empty() && !part.contains('/');
            [trust_domain, namespace, service_account]
                .into_iter()
                .all(plain)
                .then(|| Self::new(trust_domain, namespace, service_account))
        };
        parse().ok_or_else(|| InvalidIdentity(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_written_as_they_are_read() {
        let text = "spiffe://cluster.local/ns/shop/sa/web";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(identity, Identity::new("cluster.local", "shop", "web"));
        assert_eq!(identity.to_string(), text);
        assert_eq!(identity.principal(), "cluster.local/ns/shop/sa/web");
    }

    #[test]
    fn what_is_no_identity_of_the_mesh_is_refused() {
        for text in [
            "",
            "cluster.local/ns/shop/sa/web",
            "spiffe://cluster.local/ns/shop/sa/",
            "spiffe://cluster.local/ns/shop/sa/web/more",
            "spiffe://cluster.local/ns/shop/sa/web/",
            "spiffe:///ns/shop/sa/web",
            "spiffe://cluster.local/sa/web/ns/shop",
            "https://cluster.local/ns/shop/sa/web",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
