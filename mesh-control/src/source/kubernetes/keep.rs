//! Which fields of an object are read at all.
//!
//! A pod of the API has many kilobytes, of which the mesh uses a few hundred bytes. The rest is skipped by the parser and
//! never built. It also keeps apart what a newer Kubernetes has added from what a user has misspelt: of Kubernetes' own
//! kinds only known fields get through, while specs of Istio's kinds come whole, for a field that is not understood may be
//! a condition.

use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};

use crate::model::Kind;

/// A part of an object.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keep {
    /// All of it.
    Whole,
    /// These fields of a mapping.
    Fields(&'static [(&'static str, Keep)]),
    /// All of a mapping but one field.
    Except(&'static str),
    /// This of each item of a sequence.
    Items(&'static Keep),
}

use Keep::{Except, Fields, Items, Whole};

/// What `kubectl apply` remembers: the object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

const METADATA: Keep = Fields(&[
    ("annotations", Except(LAST_APPLIED)),
    ("creationTimestamp", Whole),
    ("deletionTimestamp", Whole),
    ("generation", Whole),
    ("labels", Whole),
    ("name", Whole),
    ("namespace", Whole),
    (
        "ownerReferences",
        Items(&Fields(&[
            ("apiVersion", Whole),
            ("controller", Whole),
            ("kind", Whole),
            ("name", Whole),
            ("uid", Whole),
        ])),
    ),
    ("resourceVersion", Whole),
]);

const CONTAINERS: Keep = Items(&Fields(&[
    ("name", Whole),
    ("ports", Items(&Fields(&[("containerPort", Whole), ("name", Whole), ("protocol", Whole)]))),
    ("restartPolicy", Whole),
]));

const POD: &[(&str, Keep)] = &[
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[
            ("containers", CONTAINERS),
            ("hostNetwork", Whole),
            ("initContainers", CONTAINERS),
            ("nodeName", Whole),
            ("serviceAccountName", Whole),
        ]),
    ),
    (
        "status",
        Fields(&[
            ("conditions", Items(&Fields(&[("status", Whole), ("type", Whole)]))),
            ("phase", Whole),
            ("startTime", Whole),
            ("podIP", Whole),
            ("podIPs", Items(&Fields(&[("ip", Whole)]))),
        ]),
    ),
];

const SERVICE: &[(&str, Keep)] = &[
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[
            ("clusterIP", Whole),
            ("clusterIPs", Whole),
            ("externalIPs", Whole),
            ("externalName", Whole),
            ("internalTrafficPolicy", Whole),
            ("ipFamilies", Whole),
            (
                "ports",
                Items(&Fields(&[
                    ("appProtocol", Whole),
                    ("name", Whole),
                    ("port", Whole),
                    ("protocol", Whole),
                    ("targetPort", Whole),
                ])),
            ),
            ("publishNotReadyAddresses", Whole),
            ("selector", Whole),
            ("sessionAffinity", Whole),
            ("sessionAffinityConfig", Fields(&[("clientIP", Fields(&[("timeoutSeconds", Whole)]))])),
            ("trafficDistribution", Whole),
            ("type", Whole),
        ]),
    ),
    (
        "status",
        Fields(&[(
            "loadBalancer",
            Fields(&[("ingress", Items(&Fields(&[("ip", Whole), ("ipMode", Whole)])))]),
        )]),
    ),
];

const ENDPOINT_SLICE: &[(&str, Keep)] = &[
    ("addressType", Whole),
    (
        "endpoints",
        Items(&Fields(&[
            ("addresses", Whole),
            ("conditions", Fields(&[("ready", Whole), ("serving", Whole), ("terminating", Whole)])),
            ("nodeName", Whole),
            ("targetRef", Fields(&[("kind", Whole), ("name", Whole), ("namespace", Whole)])),
        ])),
    ),
    ("metadata", METADATA),
    ("ports", Items(&Fields(&[("name", Whole), ("port", Whole), ("protocol", Whole)]))),
];

/// Kinds whose labels and annotations are all that is used.
const NAMED: &[(&str, Keep)] = &[("metadata", METADATA)];

/// The API writes to `status` what others found; what the user wants is in `spec`.
const CUSTOM: &[(&str, Keep)] =
    &[("apiVersion", Whole), ("kind", Whole), ("metadata", METADATA), ("spec", Whole)];

/// What is kept of an object of a kind.
pub(super) fn of_kind(kind: Kind) -> Keep {
    Fields(match kind {
        Kind::Namespace | Kind::Node => NAMED,
        Kind::Pod => POD,
        Kind::Service => SERVICE,
        Kind::EndpointSlice => ENDPOINT_SLICE,
        Kind::ServiceEntry | Kind::WorkloadEntry | Kind::AuthorizationPolicy | Kind::PeerAuthentication => {
            CUSTOM
        }
    })
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Whole => Value::deserialize(deserializer),
            Fields(_) | Except(_) | Items(_) => deserializer.deserialize_any(self),
        }
    }
}

/// What has another form than it should is kept as it is: whoever reads it says so.
impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let part = match self {
                Fields(fields) => fields.iter().find(|(name, _)| *name == key).map(|(_, part)| *part),
                Except(unused) if key == unused => None,
                Whole | Except(_) | Items(_) => Some(Whole),
            };
            match part {
                Some(part) => {
                    kept.insert(key, map.next_value_seed(part)?);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let part = if let Items(part) = self { *part } else { Whole };
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(part)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kept(kind: Kind, object: &Value) -> Value {
        let text = object.to_string();
        of_kind(kind).deserialize(&mut serde_json::Deserializer::from_str(&text)).unwrap()
    }

    #[test]
    fn what_is_not_used_is_not_kept() {
        let pod = json!({
            "metadata": {
                "name": "p", "managedFields": [{"manager": "kubelet"}], "uid": "1",
                "annotations": {"a": "b", LAST_APPLIED: "{}"},
            },
            "spec": {"nodeName": "n", "volumes": [{}], "containers": [
                {"name": "c", "image": "i", "env": [{}], "ports": [{"containerPort": 80, "hostPort": 80}]},
            ]},
            "status": {"phase": "Running", "containerStatuses": [{}]},
        });
        let expected = json!({
            "metadata": {"name": "p", "annotations": {"a": "b"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
            "status": {"phase": "Running"},
        });
        assert_eq!(kept(Kind::Pod, &pod), expected);
    }

    #[test]
    fn what_has_another_form_stays_for_the_reader_to_judge() {
        let odd =
            json!({"metadata": [{"managedFields": 1}], "spec": "none", "status": {"podIPs": {"ip": 1.5}}});
        assert_eq!(kept(Kind::Pod, &odd), odd);
        let policy = json!({"metadata": {"name": "p"}, "spec": {"new": [1]}});
        assert_eq!(kept(Kind::AuthorizationPolicy, &policy), policy);
    }
}
