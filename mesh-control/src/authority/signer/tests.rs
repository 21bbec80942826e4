use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa};

use super::*;
use crate::authority::tests::{hours, sign, start, verify};

/// What an operator made with other tools.
struct Made {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

fn params(name: &str, authority: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = if authority { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::NoCa };
    (params.not_before, params.not_after) = (start().into(), (start() + hours(48)).into());
    params
}

fn root(name: &str) -> Made {
    root_with(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(), name)
}

fn root_with(key: KeyPair, name: &str) -> Made {
    let params = params(name, true);
    Made { pem: params.self_signed(&key).unwrap().pem(), params, key }
}

fn below(above: &Made, params: CertificateParams) -> Made {
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::from_params(&above.params, &above.key);
    Made { pem: params.signed_by(&key, &issuer).unwrap().pem(), params, key }
}

fn material(issuer: &Made, chain: &[&Made], roots: &[&Made]) -> Material {
    let text = |all: &[&Made]| all.iter().map(|made| format!("# a comment\n{}", made.pem)).collect();
    Material {
        certificate: issuer.pem.clone(),
        key: issuer.key.serialize_pem(),
        chain: text(chain),
        roots: text(roots),
    }
}

fn error(material: &Material) -> String {
    Signer::new(material, start()).unwrap_err().to_string()
}

#[test]
fn istios_layouts_sign() {
    let top = root("top");
    let middle = below(&top, params("middle", true));
    let issuer = below(&middle, params("issuer", true));
    let other = root("other");
    for (material, links) in [
        // The root itself signs.
        (material(&top, &[&top], &[&top]), 1),
        (material(&middle, &[], &[&top]), 2),
        // As Istio's own tools write it: the issuer, and the root at the end.
        (material(&middle, &[&middle, &top], &[&top]), 2),
        (material(&issuer, &[&issuer, &middle, &top], &[&top]), 3),
        (material(&issuer, &[&middle], &[&other, &top]), 3),
    ] {
        let signer = Signer::new(&material, start()).unwrap();
        let signed = sign(&signer, hours(1), start());
        assert_eq!(signed.chain.len(), links);
        verify(&signed.chain, signer.bundle(), start()).unwrap();
        assert!(!signer.bundle().contains('#'), "certificates only");
    }
}

/// As Istio's scripts and `openssl ecparam -genkey` write them.
#[test]
fn keys_are_read_as_other_tools_write_them() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let top = root_with(rsa, "rsa");
    let signer = Signer::new(&material(&top, &[], &[&top]), start()).unwrap();
    verify(&sign(&signer, hours(1), start()).chain, signer.bundle(), start()).unwrap();

    let top = root("elliptic");
    let mut elliptic = material(&top, &[], &[&top]);
    let parameters = "-----BEGIN EC PARAMETERS-----\nBgUrgQQAIg==\n-----END EC PARAMETERS-----\n";
    elliptic.key.insert_str(0, parameters);
    Signer::new(&elliptic, start()).unwrap();
}

#[test]
fn what_others_would_refuse_is_refused_here_and_explained() {
    let (top, other) = (root("top"), root("other"));
    let issuer = below(&top, params("issuer", true));
    let good = material(&issuer, &[], &[&top]);
    Signer::new(&good, start()).unwrap();

    let with = |change: &dyn Fn(&mut Material)| {
        let mut changed = good.clone();
        change(&mut changed);
        error(&changed)
    };
    let cut = |text: &str| text.get(..text.len() / 2).unwrap().to_owned();
    for (explained, wanted) in [
        (with(&|m| m.certificate = String::new()), "ca-cert.pem holds no certificate"),
        (
            with(&|m| m.certificate = cut(&m.certificate)),
            "ca-cert.pem cannot be read: certificate 1 has no end",
        ),
        (with(&|m| m.roots = "hello".to_owned()), "root-cert.pem holds no certificate"),
        (with(&|m| m.chain = cut(&issuer.pem)), "cert-chain.pem cannot be read"),
        (with(&|m| m.key = "hello".to_owned()), "ca-key.pem cannot be read"),
        (
            with(&|m| m.key = top.key.serialize_pem()),
            "not the key of the certificate in ca-cert.pem (CN=issuer)",
        ),
        (with(&|m| m.roots = other.pem.clone()), "would not be trusted by the roots in root-cert.pem"),
        (error(&material(&below(&top, params("leaf", false)), &[], &[&top])), "CA:TRUE"),
        // Somebody forgot the one in between.
        (error(&material(&below(&issuer, params("deep", true)), &[], &[&top])), "into cert-chain.pem"),
    ] {
        assert!(explained.contains(wanted), "{explained}");
        assert!(!explained.contains("PRIVATE"), "{explained}");
    }
    for at in [start() - hours(1), start() + hours(48)] {
        let error = Signer::new(&good, at).unwrap_err();
        assert!(matches!(error, MaterialError::NotValid { .. }), "{error}");
    }
}

#[test]
fn nothing_outlives_its_issuer() {
    let top = root("top");
    let mut short = params("issuer", true);
    short.not_after = (start() + hours(2)).into();
    let issuer = below(&top, short);
    let signer = Signer::new(&material(&issuer, &[], &[&top]), start()).unwrap();
    assert_eq!(sign(&signer, hours(1), start()).not_after, start() + hours(1));
    assert_eq!(sign(&signer, hours(24), start()).not_after, start() + hours(2));
    let key = KeyPair::generate().unwrap();
    let refused = signer.sign(&key, Subject::Server(&[]), hours(1), start() + hours(2)).unwrap_err();
    assert_eq!(refused.to_string(), "the signing certificate (CN=issuer) expired at 2027-01-15T10:00:00Z");
}
