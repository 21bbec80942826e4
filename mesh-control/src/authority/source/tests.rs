use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use futures::future::join_all;
use k8s_openapi::ByteString;
use mesh_lab::ApiServer;
use serde_json::{Value, json};

use super::*;
use crate::authority::generations::Phase;
use crate::authority::tests::{client, hours, lifetimes, start};
use crate::model::ObjectName;

fn due() -> Change {
    Change::Due(Arc::new(Plan { trust_domain: "cluster.local".to_owned(), lifetimes: lifetimes() }))
}

fn directory(path: &Path) -> Source {
    Source::Directory(Directory::new(path.join("ca")))
}

fn secret(server: &ApiServer) -> Source {
    Source::Secret(Secret::new(client(server), &ObjectName::new("mesh-system", "mesh-ca")))
}

/// Writes that took effect.
fn writes(server: &ApiServer) -> usize {
    let answered = server.answered();
    let took_effect = answered.iter().filter(|answered| {
        answered.resource == "secrets" && !["get", "list"].contains(&answered.verb) && answered.status < 300
    });
    took_effect.count()
}

fn phase(found: &Found) -> Phase {
    found.generations.as_ref().unwrap().phase()
}

/// What any place of generated states does.
async fn is_kept_and_rotated(source: Source) {
    let error = |result: Result<Found, SourceError>| result.err().unwrap().to_string();
    for change in [Change::Look, Change::Rotate] {
        assert!(error(source.change(change, start()).await).contains("start mesh-control on it first"));
    }
    let first = source.change(due(), start()).await.unwrap();
    assert!(source.change(due(), start()).await.unwrap() == first, "kept");
    assert!(source.change(Change::Look, start()).await.unwrap() == first);

    source.change(Change::Rotate, start()).await.unwrap();
    let announced = source.change(due(), start()).await.unwrap();
    assert_eq!(phase(&announced), Phase::Announced);
    assert_eq!(announced.material.certificate, first.material.certificate);
    assert!(announced.material.roots.starts_with(&first.material.roots));
    assert!(error(source.change(Change::Rotate, start()).await).contains("in the middle of a rotation"));
    let retiring = source.change(due(), start() + hours(2)).await.unwrap();
    assert_eq!(phase(&retiring), Phase::Retiring);
    assert_eq!(phase(&source.change(due(), start() + hours(4)).await.unwrap()), Phase::Steady);
}

/// Servers that start at once on an empty place.
async fn is_agreed_on(servers: Vec<Source>) {
    let found = join_all(servers.iter().map(|source| source.change(due(), start()))).await;
    let roots: BTreeSet<String> = found.into_iter().map(|found| found.unwrap().material.roots).collect();
    assert_eq!(roots.len(), 1, "all have the same root");
}

#[tokio::test]
async fn a_directory_keeps_a_state() {
    let root = tempfile::tempdir().unwrap();
    is_kept_and_rotated(directory(root.path())).await;
    let mode = |name: &str| fs::metadata(root.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca"), mode("ca/authority.json")), (0o700, 0o600));
    let names: BTreeSet<_> =
        fs::read_dir(root.path().join("ca")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["authority.json".into(), "lock".into()].into(), "nothing is left over");
}

#[tokio::test]
async fn servers_agree_through_a_directory() {
    let root = tempfile::tempdir().unwrap();
    is_agreed_on((0..8).map(|_| directory(root.path())).collect()).await;
}

#[tokio::test]
async fn a_damaged_state_is_left_for_somebody_to_mend() {
    let root = tempfile::tempdir().unwrap();
    let source = directory(root.path());
    let good = source.change(due(), start()).await.unwrap();
    let path = root.path().join("ca/authority.json");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    for change in [due(), Change::Rotate, Change::Look] {
        let error = source.change(change, start()).await.err().unwrap().to_string();
        assert!(error.contains("authority.json: is damaged") && error.contains("restore it"), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), &text[..text.len() / 2]);
    fs::write(&path, &text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(source.change(due(), start()).await.unwrap() == good);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "made private again");
}

#[tokio::test]
async fn a_secret_keeps_a_state() {
    let server = ApiServer::start().unwrap();
    is_kept_and_rotated(secret(&server)).await;
    let data = server.object("Secret", "mesh-system", "mesh-ca").unwrap()["data"].clone();
    let keys: Vec<_> = data.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["authority.json", "root-cert.pem"]);
    assert_eq!(writes(&server), 5, "written only when something changed");
}

#[tokio::test]
async fn servers_agree_through_a_secret() {
    let server = ApiServer::start().unwrap();
    is_agreed_on((0..4).map(|_| secret(&server)).collect()).await;
    assert_eq!(writes(&server), 1);
}

#[tokio::test]
async fn a_secret_that_is_changed_by_others_is_read_again() {
    let server = ApiServer::start().unwrap();
    let source = secret(&server);
    server.fail_next_write(409);
    source.change(due(), start()).await.unwrap();
    for _ in 0..5 {
        server.fail_next_write(409);
    }
    let error = source.change(Change::Rotate, start()).await.err().unwrap().to_string();
    assert!(error.contains("secret mesh-system/mesh-ca: was changed by others"), "{error}");
    server.fail_next_write(403);
    let error = source.change(Change::Rotate, start()).await.err().unwrap().to_string();
    assert!(error.contains("allow the service account"), "{error}");
}

#[tokio::test]
async fn an_operators_secret_and_files_are_read_and_never_changed() {
    let root = tempfile::tempdir().unwrap();
    let material = directory(root.path()).change(due(), start()).await.unwrap().material;
    let keys = [(files::CERTIFICATE, &material.certificate), (files::KEY, &material.key)];
    let keys = keys.into_iter().chain([(files::ROOTS, &material.roots)]);

    let server = ApiServer::start().unwrap();
    let put = |data: Value| {
        let metadata = json!({"namespace": "mesh-system", "name": "mesh-ca"});
        server.apply(json!({"kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data}));
    };
    let bytes = |text: &String| serde_json::to_value(ByteString(text.clone().into_bytes())).unwrap();
    let data: serde_json::Map<String, Value> =
        keys.clone().map(|(name, text)| (name.to_owned(), bytes(text))).collect();
    put(data.clone().into());
    let sources = [secret(&server), Source::Files(Files::new(root.path().to_owned()))];
    for (name, text) in keys {
        fs::write(root.path().join(name), text).unwrap();
    }
    for source in &sources {
        let found = source.change(due(), start()).await.unwrap();
        assert!(found.material == material && found.generations.is_none());
        let error = source.change(Change::Rotate, start()).await.err().unwrap().to_string();
        assert!(error.contains("put the old and the new root into root-cert.pem"), "{error}");
    }
    assert_eq!(writes(&server), 0);

    let mut incomplete = data;
    incomplete.remove(files::KEY);
    put(incomplete.into());
    fs::remove_file(root.path().join(files::KEY)).unwrap();
    for source in &sources {
        let error = source.change(due(), start()).await.err().unwrap().to_string();
        assert!(error.contains("ca-key.pem") && error.contains("is missing"), "{error}");
    }
}
