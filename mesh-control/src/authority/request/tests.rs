use rcgen::{CertificateParams, KeyPair, PublicKeyData, RsaKeySize, SanType, SignatureAlgorithm};

use super::*;
use crate::authority::tests::web;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn request(key: &KeyPair, uris: &[&str]) -> String {
    let mut params = CertificateParams::new(["also-a-dns-name.test".to_owned()]).unwrap();
    params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
    params.serialize_request(key).unwrap().pem().unwrap()
}

fn generate(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).unwrap()
}

#[test]
fn keys_of_the_usual_kinds_are_taken() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    for pair in [
        generate(&rcgen::PKCS_ECDSA_P256_SHA256),
        generate(&rcgen::PKCS_ECDSA_P384_SHA384),
        generate(&rcgen::PKCS_ED25519),
        rsa,
    ] {
        let taken = key(&request(&pair, &[WEB]), &web()).unwrap();
        assert_eq!(taken.subject_public_key_info(), pair.subject_public_key_info());
    }
}

#[test]
fn other_keys_are_not() {
    let error = key(&request(&generate(&rcgen::PKCS_ECDSA_P521_SHA512), &[]), &web()).unwrap_err();
    assert!(matches!(error, RequestError::Key(_)), "{error}");
}

#[test]
fn another_identity_is_refused_and_names_of_other_kinds_are_passed_over() {
    let pair = generate(&rcgen::PKCS_ECDSA_P256_SHA256);
    key(&request(&pair, &[]), &web()).unwrap();
    for uris in [&["spiffe://cluster.local/ns/shop/sa/db"][..], &[WEB, "https://elsewhere.test"]] {
        let error = key(&request(&pair, uris), &web()).unwrap_err();
        assert!(matches!(error, RequestError::OtherIdentity { .. }), "{error}");
    }
}

#[test]
fn whoever_has_not_the_key_gets_no_certificate() {
    let mine = request(&generate(&rcgen::PKCS_ECDSA_P256_SHA256), &[]);
    let theirs = generate(&rcgen::PKCS_ECDSA_P256_SHA256);
    let mut der = CertificateSigningRequestDer::from_pem_slice(mine.as_bytes()).unwrap().to_vec();
    let (_, parsed) = X509CertificationRequest::from_der(&der).unwrap();
    let point = &parsed.certification_request_info.subject_pki.subject_public_key.data;
    let place = der.windows(point.len()).position(|window| window == point.as_ref()).unwrap();
    der[place..place + theirs.public_key_raw().len()].copy_from_slice(theirs.public_key_raw());
    assert_eq!(key(&pem(&der), &web()), Err(RequestError::Signature));
}

#[test]
fn what_is_no_request_is_refused() {
    let good = request(&generate(&rcgen::PKCS_ECDSA_P256_SHA256), &[]);
    let der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap();
    let mut followed = der.to_vec();
    followed.push(0);
    let texts = [
        "".to_owned(),
        "hello".to_owned(),
        good[..good.len() / 2].to_owned(),
        pem(&followed),
        pem(&der[..40]),
    ];
    for text in texts {
        let error = key(&text, &web()).unwrap_err();
        assert!(matches!(error, RequestError::Unreadable(_)), "{text:?}: {error}");
    }
    assert_eq!(key(&" ".repeat(MAX_BYTES + 1), &web()), Err(RequestError::TooLong(MAX_BYTES + 1)));
}

fn pem(der: &[u8]) -> String {
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".as_bytes();
    let mut text = String::new();
    for chunk in der.chunks(3) {
        let bits =
            chunk.iter().chain([0; 2].iter()).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        for place in 0..4 {
            let digit = if place <= chunk.len() { digits[bits >> (18 - 6 * place) & 63] } else { b'=' };
            text.push(char::from(digit));
        }
    }
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}
