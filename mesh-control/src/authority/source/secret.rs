//! A Kubernetes secret, of an operator (`cacerts`, as Istio has it) or made here.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret as Object;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::timeout;

use super::files::{CERTIFICATE, CHAIN, KEY, ROOTS};
use super::{Change, Found, STATE, SourceError};
use crate::authority::signer::Material;
use crate::model::ObjectName;

/// Other servers that change the secret at the same time want the same; a few rounds settle it.
const ATTEMPTS: usize = 5;
/// The API server answers at once or is away.
const PATIENCE: Duration = Duration::from_secs(10);
/// HTTP status of a change that somebody else was faster with.
const CONFLICT: u16 = 409;
/// HTTP status of what the service account may not do.
const FORBIDDEN: u16 = 403;

/// The secret.
#[derive(Clone)]
pub(in crate::authority) struct Secret {
    api: Api<Object>,
    namespace: String,
    name: String,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Secret({}/{})", self.namespace, self.name)
    }
}

/// What came of an attempt.
enum Attempt {
    Done(Found),
    /// Somebody else changed the secret in between.
    Outrun,
}

impl Secret {
    pub(in crate::authority) fn new(client: Client, name: &ObjectName) -> Self {
        let api = Api::namespaced(client, &name.namespace);
        Self { api, namespace: name.namespace.to_string(), name: name.name.to_string() }
    }

    pub(super) async fn change(&self, change: &Change, now: SystemTime) -> Result<Found, SourceError> {
        for _ in 0..ATTEMPTS {
            let attempt = timeout(PATIENCE, self.attempt(change, now)).await;
            match attempt.map_err(|_| self.error("the API server does not answer".to_owned()))?? {
                Attempt::Done(found) => return Ok(found),
                Attempt::Outrun => {}
            }
        }
        Err(self.error(format!("was changed by others {ATTEMPTS} times in a row")))
    }

    async fn attempt(&self, change: &Change, now: SystemTime) -> Result<Attempt, SourceError> {
        let object = self.api.get_opt(&self.name).await.map_err(|error| self.api_error("read", &error))?;
        let data = object.as_ref().and_then(|object| object.data.as_ref());
        if let Some(data) = data.filter(|data| data.contains_key(CERTIFICATE)) {
            if matches!(change, Change::Rotate) {
                return Err(SourceError::Operators(format!("{self:?}")));
            }
            return Ok(Attempt::Done(Found { material: self.operators(data)?, generations: None }));
        }
        let kept = data.and_then(|data| data.get(STATE)).map(|kept| kept.0.as_slice());
        let state_error = |error: super::StateError| self.error(format!("{STATE} {error}"));
        let (state, changed) = change.apply(kept, now).map_err(state_error)?;
        if changed {
            let written = self.write(object, state.write(), state.material().map_err(state_error)?).await;
            if let Err(error) = written {
                return match &error {
                    kube::Error::Api(status) if status.code == CONFLICT => Ok(Attempt::Outrun),
                    _ => Err(self.api_error("write", &error)),
                };
            }
        }
        Ok(Attempt::Done(Found::generated(state).map_err(state_error)?))
    }

    /// Replaces the version that was read and no other, or creates the secret.
    async fn write(
        &self,
        object: Option<Object>,
        state: Vec<u8>,
        material: Material,
    ) -> Result<(), kube::Error> {
        let parameters = PostParams::default();
        let exists = object.is_some();
        let mut object = object.unwrap_or_else(|| Object {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("Opaque".to_owned()),
            ..Object::default()
        });
        let data = object.data.get_or_insert_default();
        data.insert(STATE.to_owned(), ByteString(state));
        // For whoever mounts the secret to know the roots.
        data.insert(ROOTS.to_owned(), ByteString(material.roots.into_bytes()));
        if exists {
            self.api.replace(&self.name, &parameters, &object).await.map(drop)
        } else {
            self.api.create(&parameters, &object).await.map(drop)
        }
    }

    fn operators(&self, data: &BTreeMap<String, ByteString>) -> Result<Material, SourceError> {
        let text = |key: &str| {
            let Some(bytes) = data.get(key) else { return Ok(None) };
            let text = String::from_utf8(bytes.0.clone());
            text.map(Some).map_err(|_| self.error(format!("{key} is not PEM text")))
        };
        let needed = |key: &str| {
            text(key)?.ok_or_else(|| self.error(format!("{key} is missing: put it next to {CERTIFICATE}")))
        };
        Ok(Material {
            certificate: needed(CERTIFICATE)?,
            key: needed(KEY)?,
            chain: text(CHAIN)?.unwrap_or_default(),
            roots: needed(ROOTS)?,
        })
    }

    fn api_error(&self, what: &str, error: &kube::Error) -> SourceError {
        self.error(match error {
            kube::Error::Api(status) if status.code == FORBIDDEN => format!(
                "cannot {what} it: {}: allow the service account of mesh-control to get, create and update it",
                status.message
            ),
            kube::Error::Api(status) => format!("cannot {what} it: {}", status.message),
            error => format!("cannot {what} it: {error}"),
        })
    }

    fn error(&self, reason: String) -> SourceError {
        SourceError::Secret { name: format!("{}/{}", self.namespace, self.name), reason }
    }
}
