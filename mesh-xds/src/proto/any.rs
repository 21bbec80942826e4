//! `google.protobuf.Any` over shared bytes.

use bytes::Bytes;
use prost::Name;

/// An encoded message and its type.
///
/// The well-known `prost_types::Any` owns a `Vec<u8>`; this one shares its bytes, so that cloning it for the
/// thousandth client copies nothing.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Any {
    /// Type of the message, `type.googleapis.com/<package>.<Message>`.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// Why an [`Any`] could not be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// It holds another message.
    #[error("expected a message of type {expected:?}, found {found:?}")]
    WrongType {
        /// Type asked for.
        expected: String,
        /// Type it has.
        found: String,
    },
    /// Its bytes are not such a message.
    #[error("{type_url} cannot be decoded: {source}")]
    Malformed {
        /// Type it has.
        type_url: String,
        /// What is wrong with the bytes.
        source: prost::DecodeError,
    },
}

impl Any {
    /// Encodes `message`.
    pub fn pack<M: Name>(message: &M) -> Self {
        Self { type_url: M::type_url(), value: message.encode_to_vec().into() }
    }

    /// Decodes the message, which has to be an `M`.
    pub fn unpack<M: Name + Default>(&self) -> Result<M, UnpackError> {
        let expected = M::type_url();
        if self.type_url != expected {
            return Err(UnpackError::WrongType { expected, found: self.type_url.clone() });
        }
        // A clone of the handle, not of the bytes: `bytes` fields of the message keep sharing them.
        M::decode(self.value.clone()).map_err(|source| UnpackError::Malformed { type_url: expected, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mesh::TrafficRedirection;
    use crate::proto::workload::{Address, Workload};

    #[test]
    fn packs_with_the_type_url_of_the_protocol() {
        let any = Any::pack(&Address::default());
        assert_eq!(any.type_url, "type.googleapis.com/istio.workload.Address");
        assert_eq!(any.unpack(), Ok(Address::default()));
    }

    #[test]
    fn unpacks_only_what_it_holds() {
        let any = Any::pack(&Workload::default());
        assert!(matches!(any.unpack::<TrafficRedirection>(), Err(UnpackError::WrongType { .. })));

        let damaged = Any { value: Bytes::from_static(&[0xff]), ..any };
        assert!(matches!(damaged.unpack::<Workload>(), Err(UnpackError::Malformed { .. })));
    }

    #[test]
    fn reads_what_prost_types_writes() {
        let theirs = prost_types::Any { type_url: "a.b/C".to_owned(), value: vec![1, 2, 3] };
        let ours: Any = prost::Message::decode(prost::Message::encode_to_vec(&theirs).as_slice()).unwrap();
        assert_eq!((ours.type_url.as_str(), ours.value.as_ref()), ("a.b/C", &[1, 2, 3][..]));
    }
}
