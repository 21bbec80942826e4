//! What the client holds and wants of each type: the protocol's bookkeeping, without any I/O. It outlives the
//! streams, so that a new one continues where the last one broke off.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use prost::Message;

use super::config::Subscription;
use super::handler::{Handler, Rejection, Update};
use super::version::{Version, Versions};
use crate::proto::Any;
use crate::proto::discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Resource};
use crate::proto::mesh::RejectedResource;
use crate::text::truncated;

const WILDCARD: &str = "*";
/// A gRPC status code.
const INVALID_ARGUMENT: i32 = 3;
/// Rejections spelled out in a NACK; all are counted.
const MAX_DETAILS: usize = 64;

/// Names wanted of each type.
pub(super) type Names = BTreeMap<Arc<str>, imbl::OrdSet<String>>;

pub(super) struct Types {
    types: BTreeMap<Arc<str>, TypeState>,
}

#[derive(Default)]
pub(super) struct TypeState {
    wildcard: bool,
    /// Names the server was asked for, or will be by the first request.
    names: imbl::OrdSet<String>,
    held: Versions,
    /// On demand only, by name: other names that may be among those asked for.
    aliases: HashMap<Arc<str>, Vec<String>>,
    /// Wildcard only: names of which no version was ever accepted. The next stream names them too, so that the server
    /// sends them again or says that they are gone: the handler may keep something in their place.
    refused: HashSet<String>,
}

/// What came of a response.
pub(super) struct Received {
    pub(super) answer: DeltaDiscoveryRequest,
    /// Names the response was about.
    pub(super) update: Update,
    pub(super) rejections: Vec<Rejection>,
}

impl Types {
    pub(super) fn new(subscriptions: Vec<Subscription>) -> Self {
        let types = subscriptions.into_iter().map(|subscription| {
            let Subscription { type_url, wildcard, held } = subscription;
            (type_url, TypeState { wildcard, held, ..TypeState::default() })
        });
        Self { types: types.collect() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &TypeState)> {
        self.types.iter()
    }

    pub(super) fn get(&self, type_url: &str) -> Option<&TypeState> {
        self.types.get(type_url)
    }

    /// The requests that begin a stream.
    pub(super) fn first_requests(&self, node: &Node) -> Vec<DeltaDiscoveryRequest> {
        let mut requests: Vec<_> = self.types.iter().map(|(url, state)| state.first_request(url)).collect();
        // Only the first one of a stream needs to say who asks.
        if let Some(first) = requests.first_mut() {
            first.node = Some(node.clone());
        }
        requests
    }

    /// Brings the names that are asked for in line with those that are wanted; returns the requests that tell the
    /// server. What is no longer wanted is forgotten, by the handler too.
    pub(super) fn want(&mut self, wanted: &Names, handler: &mut impl Handler) -> Vec<DeltaDiscoveryRequest> {
        let none = imbl::OrdSet::new();
        let each = self.types.iter_mut();
        each.filter_map(|(type_url, state)| {
            state.want(type_url, wanted.get(type_url).unwrap_or(&none), handler)
        })
        .collect()
    }

    /// Takes in a response and words the answer to it.
    pub(super) fn receive(
        &mut self,
        response: DeltaDiscoveryResponse,
        handler: &mut impl Handler,
    ) -> Received {
        let DeltaDiscoveryResponse { resources, type_url, nonce, removed_resources, more, .. } = response;
        let Some((type_url, state)) = self
            .types
            .get_key_value(type_url.as_str())
            .map(|(url, _)| Arc::clone(url))
            .and_then(|url| self.types.get_mut(&url).map(|state| (url, state)))
        else {
            let rejections = vec![Rejection::new("", format!("{type_url:?} was not subscribed to"))];
            let answer = answer(&type_url, nonce, &rejections);
            return Received { answer, update: Update::default(), rejections };
        };

        let (resources, unreadable, names) = read_resources(resources, &type_url);
        let removed = removed_resources.into_iter().filter(|name| !names.contains(name)).collect();
        let update = Update { type_url, resources, removed, unreadable, more };
        let mut rejections = update.unreadable.clone();
        rejections.extend(handler.apply(&update));
        state.hold(&update, &rejections, handler);
        Received { answer: answer(&update.type_url, nonce, &rejections), update, rejections }
    }
}

impl TypeState {
    pub(super) fn is_wildcard(&self) -> bool {
        self.wildcard
    }

    pub(super) fn name_count(&self) -> usize {
        self.names.len()
    }

    pub(super) fn held_count(&self) -> usize {
        self.held.len()
    }

    fn first_request(&self, type_url: &str) -> DeltaDiscoveryRequest {
        let asked = self.names.iter().cloned();
        DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: std::iter::once(WILDCARD.to_owned()).chain(asked).collect(),
            // To subscribe to everything and to leave it again in one request is how a client says that it will
            // ask by name: a first request without names would mean everything.
            resource_names_unsubscribe: if self.wildcard { vec![] } else { vec![WILDCARD.to_owned()] },
            initial_resource_versions: self
                .held
                .iter()
                .map(|(name, held)| (name.to_string(), held.to_string()))
                .chain(self.refused.iter().map(|name| (name.clone(), String::new())))
                .collect(),
            ..Default::default()
        }
    }

    fn want(
        &mut self,
        type_url: &Arc<str>,
        wanted: &imbl::OrdSet<String>,
        handler: &mut impl Handler,
    ) -> Option<DeltaDiscoveryRequest> {
        if self.names.ptr_eq(wanted) {
            return None;
        }
        let new: Vec<String> = wanted.iter().filter(|name| !self.names.contains(*name)).cloned().collect();
        let mut left: BTreeSet<String> =
            self.names.iter().filter(|name| !wanted.contains(*name)).cloned().collect();
        self.names = wanted.clone();

        if !self.wildcard && !left.is_empty() {
            let aliases = &self.aliases;
            let wants = |name: &Arc<str>| {
                let aliases = aliases.get(name).map(Vec::as_slice).unwrap_or_default();
                wanted.contains(&**name) || aliases.iter().any(|alias| wanted.contains(alias))
            };
            let forgotten: Vec<String> =
                self.held.extract_if(|name, _| !wants(name)).map(|(name, _)| name.to_string()).collect();
            forgotten.iter().for_each(|name| drop(self.aliases.remove(name.as_str())));
            // After a reconnect the server takes the names of what is held as asked for, too.
            left.extend(forgotten.iter().cloned());
            if !forgotten.is_empty() {
                let type_url = Arc::clone(type_url);
                handler.apply(&Update { type_url, removed: forgotten, ..Update::default() });
            }
        }
        (!new.is_empty() || !left.is_empty()).then(|| DeltaDiscoveryRequest {
            type_url: type_url.to_string(),
            resource_names_subscribe: new,
            resource_names_unsubscribe: left.into_iter().collect(),
            ..Default::default()
        })
    }

    fn hold(&mut self, update: &Update, rejections: &[Rejection], handler: &impl Handler) {
        for name in &update.removed {
            self.held.remove(name.as_str());
            self.aliases.remove(name.as_str());
            self.refused.remove(name);
        }
        let rejected: HashSet<&str> = rejections.iter().map(|rejection| rejection.name.as_str()).collect();
        for resource in update.resources.iter().filter(|r| !rejected.contains(r.name.as_str())) {
            self.refused.remove(&resource.name);
            let version = Version::from(resource.version.as_str());
            let shared = handler.shared_name(&resource.name);
            // The handler may have a new copy of the name with a new version: the old one must not be kept alive.
            let known = self.held.remove_entry(resource.name.as_str()).map(|(name, _)| name);
            let name = shared.or(known).unwrap_or_else(|| resource.name.as_str().into());
            if !self.wildcard {
                self.aliases.insert(Arc::clone(&name), resource.aliases.clone());
            }
            self.held.insert(name, version);
        }
        if self.wildcard {
            let unheld =
                rejected.into_iter().filter(|name| !name.is_empty() && !self.held.contains_key(*name));
            self.refused.extend(unheld.map(str::to_owned));
        }
    }
}

/// Reads the resources of a response. Of several with one name the last counts; what the response says of a name
/// is then one thing, whatever order it is worked in. Also returns the names.
fn read_resources(
    encoded: Vec<bytes::Bytes>,
    type_url: &str,
) -> (Vec<Resource>, Vec<Rejection>, HashSet<String>) {
    let mut names = HashSet::new();
    let (mut resources, mut rejections) = (Vec::with_capacity(encoded.len()), Vec::new());
    for encoded in encoded.into_iter().rev() {
        let read = read_resource(encoded, type_url);
        let name = match &read {
            Ok(resource) => resource.as_ref().map_or("", |resource| &resource.name),
            Err(rejection) => &rejection.name,
        };
        if !name.is_empty() && !names.insert(name.to_owned()) {
            continue;
        }
        match read {
            Ok(resource) => resources.extend(resource),
            Err(rejection) => rejections.push(rejection),
        }
    }
    resources.reverse();
    rejections.reverse();
    (resources, rejections, names)
}

/// Reads a resource; `None` is a sign of life of one that is held already.
fn read_resource(encoded: bytes::Bytes, type_url: &str) -> Result<Option<Resource>, Rejection> {
    let resource = Resource::decode(encoded)
        .map_err(|error| Rejection::new("", format!("a resource cannot be decoded: {error}")))?;
    let reason = match &resource.resource {
        _ if resource.name.is_empty() => "it has no name".to_owned(),
        None if resource.ttl.is_some() => return Ok(None),
        None => "it has no body".to_owned(),
        Some(body) if body.type_url != type_url => {
            format!("its body is of type {:?} in a response of {type_url:?}", truncated(&body.type_url))
        }
        Some(_) => return Ok(Some(resource)),
    };
    Err(Rejection::new(resource.name, reason))
}

/// An ACK, or a NACK that says of every refused resource what is wrong with it.
fn answer(type_url: &str, nonce: String, rejections: &[Rejection]) -> DeltaDiscoveryRequest {
    let error_detail = (!rejections.is_empty()).then(|| {
        let named = rejections.iter().take(MAX_DETAILS);
        let details = named.clone().map(|rejection| {
            Any::pack(&RejectedResource {
                name: truncated(&rejection.name).to_owned(),
                reason: truncated(&rejection.reason).to_owned(),
            })
        });
        let reasons: Vec<String> =
            named.take(8).map(|r| format!("{}: {}", truncated(&r.name), truncated(&r.reason))).collect();
        discovery::Status {
            code: INVALID_ARGUMENT,
            message: format!("refused {} resources: {}", rejections.len(), reasons.join("; ")),
            details: details.collect(),
        }
    });
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        response_nonce: nonce,
        error_detail,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
