//! How the bytes of a trunk are sealed: in place, in the buffer they were read into and are written from.
//!
//! The records of TLS hold 16 KiB, and a TLS library copies every byte into one and out of it. So of TLS a trunk has the
//! handshake and what comes of it, and seals for itself: the keys are exported from the session (RFC 8446, 7.5), which binds them
//! to the identities of both ends, and the cipher is the one TLS has agreed on. HELLO travels within TLS. By that a client
//! hears first, as ever, whether the server takes its certificate. Everything after it is in records of this kind:
//!
//! ```text
//! 23, 3, 3, length (2)      as TLS has it; of all that follows
//! ciphertext                as long as its plaintext, of whole frames or parts of them
//! tag (16)                  over the ciphertext and the five bytes in front
//! ```
//!
//! The n-th record of a direction has the nonce that TLS would give it (RFC 8446, 5.3): so none can be left out, repeated or put
//! in another place. After [`RECORDS_PER_KEY`] records both ends go on to the next key:
//!
//! ```text
//! secret 0    exporter, label "EXPORTER-mesh-trunk client" or "... server", no context, 32 bytes
//! key n       HKDF-Expand(secret n, "key")        HKDF with SHA-256 (RFC 5869)
//! iv n        HKDF-Expand(secret n, "iv")
//! secret n+1  HKDF-Expand(secret n, "next")
//! ```

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use rustls::{CipherSuite, Connection};
use thiserror::Error;
use zeroize::Zeroizing;

use super::engine::Side;

/// Bytes in front of a record's ciphertext.
pub(super) const HEADER: usize = 5;
/// Bytes behind it.
pub(super) const TAG: usize = 16;

/// Application data of TLS 1.2, which all of TLS 1.3 looks like.
const APPLICATION_DATA: [u8; 3] = [23, 3, 3];

/// Records that are sealed with one key, of 64 KiB at most: 2^36 bytes, of which an attacker learns nothing worth mentioning
/// with any of the ciphers.
const RECORDS_PER_KEY: u64 = 1 << 20;

const SECRET: usize = 32;
const IV: usize = 12;

/// Why a record cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(in super::super) enum RecordError {
    #[error("the session has no keys for a trunk: {0}")]
    NoKeys(String),
    #[error("the peer sent {0:?} where a record begins")]
    Header([u8; HEADER]),
    #[error("a record of the peer's was changed on its way, or is out of order")]
    Broken,
    #[error("a record cannot be sealed")]
    Unsealable,
}

/// What both ends seal with.
pub(super) struct Keys {
    pub(super) sealing: Direction,
    pub(super) opening: Direction,
}

impl Keys {
    /// The keys of a session whose handshake is done.
    pub(super) fn of(session: &mut Connection, side: Side) -> Result<Self, RecordError> {
        let no_keys = |error: rustls::Error| RecordError::NoKeys(error.to_string());
        let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
        let algorithm = match suite {
            Some(CipherSuite::TLS13_AES_128_GCM_SHA256) => &AES_128_GCM,
            Some(CipherSuite::TLS13_AES_256_GCM_SHA384) => &AES_256_GCM,
            Some(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256) => &CHACHA20_POLY1305,
            other => return Err(RecordError::NoKeys(format!("of cipher suite {other:?}"))),
        };
        let direction = |label: &[u8]| {
            let secret = session.export_keying_material([0; SECRET], label, None).map_err(no_keys)?;
            Direction::new(algorithm, Zeroizing::new(secret), RECORDS_PER_KEY)
                .map_err(|_| RecordError::NoKeys("they cannot be derived".into()))
        };
        let client = direction(b"EXPORTER-mesh-trunk client")?;
        let server = direction(b"EXPORTER-mesh-trunk server")?;
        Ok(match side {
            Side::Client => Self { sealing: client, opening: server },
            Side::Server => Self { sealing: server, opening: client },
        })
    }
}

/// The records of one direction, in their order.
pub(super) struct Direction {
    algorithm: &'static Algorithm,
    /// What the next key is made of.
    secret: Zeroizing<[u8; SECRET]>,
    key: LessSafeKey,
    iv: Zeroizing<[u8; IV]>,
    /// Of the next record, under this key.
    sequence: u64,
    per_key: u64,
}

impl Direction {
    fn new(
        algorithm: &'static Algorithm,
        secret: Zeroizing<[u8; SECRET]>,
        per_key: u64,
    ) -> Result<Self, Unspecified> {
        let (key, iv) = derive(algorithm, &secret)?;
        Ok(Self { algorithm, secret, key, iv, sequence: 0, per_key })
    }

    /// Makes a record of a plaintext in its place: with room for the header in front, and for the tag behind it.
    pub(super) fn seal(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        let (header, rest) = record.split_first_chunk_mut::<HEADER>().ok_or(RecordError::Unsealable)?;
        let length = u16::try_from(rest.len()).map_err(|_| RecordError::Unsealable)?;
        let (plaintext, tag_room) = rest.split_last_chunk_mut::<TAG>().ok_or(RecordError::Unsealable)?;
        let [a, b, c] = APPLICATION_DATA;
        let [high, low] = length.to_be_bytes();
        *header = [a, b, c, high, low];
        let nonce = self.nonce().map_err(|_| RecordError::Unsealable)?;
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(*header), plaintext);
        tag_room.copy_from_slice(tag.map_err(|_| RecordError::Unsealable)?.as_ref());
        Ok(())
    }

    /// Opens a whole record in its place.
    pub(super) fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<&'a [u8], RecordError> {
        let (header, sealed) = record.split_first_chunk_mut::<HEADER>().ok_or(RecordError::Broken)?;
        let nonce = self.nonce().map_err(|_| RecordError::Broken)?;
        let opened = self.key.open_in_place(nonce, Aad::from(*header), sealed);
        opened.map(|plaintext| &*plaintext).map_err(|_| RecordError::Broken)
    }

    /// The next record's.
    fn nonce(&mut self) -> Result<Nonce, Unspecified> {
        if self.sequence == self.per_key {
            let mut next = Zeroizing::new([0; SECRET]);
            expand(&self.secret, b"next", &mut *next)?;
            *self = Self::new(self.algorithm, next, self.per_key)?;
        }
        let mut nonce = *self.iv;
        for (byte, number) in nonce.iter_mut().skip(IV - 8).zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Bytes behind the header of a record, of this kind or of TLS.
pub(super) fn length(header: [u8; HEADER]) -> Result<usize, RecordError> {
    let [kind, major, _, high, low] = header;
    // ChangeCipherSpec (20) to application data (23).
    if !(20..=23).contains(&kind) || major != 3 {
        return Err(RecordError::Header(header));
    }
    Ok(usize::from(u16::from_be_bytes([high, low])))
}

fn derive(
    algorithm: &'static Algorithm,
    secret: &[u8; SECRET],
) -> Result<(LessSafeKey, Zeroizing<[u8; IV]>), Unspecified> {
    let mut key = Zeroizing::new(vec![0; algorithm.key_len()]);
    expand(secret, b"key", &mut key)?;
    let mut iv = Zeroizing::new([0; IV]);
    expand(secret, b"iv", &mut *iv)?;
    Ok((LessSafeKey::new(UnboundKey::new(algorithm, &key)?), iv))
}

fn expand(secret: &[u8; SECRET], label: &[u8], output: &mut [u8]) -> Result<(), Unspecified> {
    struct Length(usize);

    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }

    let secret = Prk::new_less_safe(HKDF_SHA256, secret);
    secret.expand(&[label], Length(output.len()))?.fill(output)
}

#[cfg(test)]
mod tests;
