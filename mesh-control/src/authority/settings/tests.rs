use clap::Parser;

use super::*;
use crate::settings::{Cli, ServerCertificate, Settings};

fn check(arguments: &[&str]) -> Result<Settings, Vec<String>> {
    let always = ["mesh-control", "--manifests", "/nowhere"];
    let cli = Cli::try_parse_from(always.iter().chain(arguments)).map_err(|error| vec![error.to_string()])?;
    cli.serve.check().map_err(|error| error.0)
}

#[test]
fn an_authority_in_a_directory_takes_a_directory_and_tokens() {
    let settings = check(&["--ca-dir", "/ca", "--agent-tokens", "/tokens"]).unwrap();
    let authority = settings.authority.unwrap();
    assert_eq!(authority.material, MaterialSettings::Directory("/ca".into()));
    assert_eq!((authority.lifetimes, authority.plaintext), (Lifetimes::default(), false));
    let tls = settings.tls.unwrap();
    assert_eq!(tls.address.port(), 15012);
    assert!(matches!(tls.certificate, ServerCertificate::Issued(names) if !names.is_empty()));
    assert_eq!(check(&[]).unwrap().authority, None);
}

#[test]
fn an_authority_in_kubernetes_takes_a_secret_and_reviews() {
    let settings = check(&[
        "--ca-secret",
        "istio-system/cacerts",
        "--agent-token-review",
        "--agent-service-account=a/b,c/d",
        "--tls-name=10.0.0.1",
        "--tls-name=control.test",
    ]);
    let settings = settings.unwrap();
    let authority = settings.authority.unwrap();
    assert_eq!(authority.material, MaterialSettings::Secret(ObjectName::new("istio-system", "cacerts")));
    let accounts = ["a/b".to_owned(), "c/d".to_owned()].into();
    assert_eq!(authority.reviews, Some(ReviewSettings { audience: "istio-ca".to_owned(), accounts }));
    assert!(
        matches!(settings.tls.unwrap().certificate, ServerCertificate::Issued(names) if names.len() == 2)
    );
}

#[test]
fn what_does_not_fit_together_is_said() {
    let mistakes = |arguments: &[&str]| check(arguments).unwrap_err().join("\n");
    assert!(mistakes(&["--ca-dir", "/ca"]).contains("set --agent-tokens"));
    assert!(mistakes(&["--ca-dir", "/ca", "--ca-files", "/files"]).contains("cannot be used with"));
    assert!(mistakes(&["--ca-secret", "cacerts"]).contains("NAMESPACE/NAME"));
    assert!(mistakes(&["--tls-name", "a b"]).contains("DNS name or an IP address"));
    assert_eq!(check(&["--ca-plaintext", "--agent-token-review"]).unwrap_err().len(), 2);
    let with = |flags: &[&str]| {
        let mut arguments = vec!["--ca-dir=/ca", "--agent-tokens=/tokens"];
        arguments.extend(flags);
        check(&arguments).unwrap_err()
    };
    let all =
        ["--ca-overlap=1s", "--ca-issuer-lifetime=1h", "--ca-root-renew-before=1s", "--ca-root-lifetime=1s"];
    assert_eq!(with(&all).len(), 4, "{:?}", with(&all));
    let short = [
        "--ca-leaf-lifetime=10s",
        "--ca-issuer-lifetime=60s",
        "--ca-root-renew-before=40s",
        "--ca-root-lifetime=10m",
    ];
    assert!(check(&[&["--ca-dir=/ca", "--agent-tokens=/tokens"], &short[..]].concat()).is_ok());
}

#[test]
fn times_are_read_with_their_unit() {
    assert_eq!(duration("90d"), Ok(Duration::from_secs(90 * 24 * 60 * 60)));
    assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
    for wrong in ["", "5", "h", "0s", "-1s", "1.5h", "40000d", "99999999999999999999s"] {
        assert!(duration(wrong).is_err(), "{wrong}");
    }
}
