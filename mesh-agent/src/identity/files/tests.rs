use mesh_lab::certificates::{Authority, Leaf};
use tempfile::TempDir;

use super::super::{PeerError, PeerSide, SystemClock};
use super::*;

struct Files {
    directory: TempDir,
    trust: Arc<Trust>,
    files: TrustFiles,
}

impl Files {
    fn new(lists: bool) -> Self {
        let directory = TempDir::new().unwrap();
        let trust = Trust::new(["cluster.local".into()], Arc::new(SystemClock));
        let path = |name: &str| Some(directory.path().join(name));
        let lists = if lists { path("crl.pem") } else { None };
        let files = TrustFiles::new(path("root.pem"), lists, Arc::clone(&trust));
        Self { directory, trust, files }
    }

    async fn write(&mut self, name: &str, content: &str) {
        std::fs::write(self.directory.path().join(name), content).unwrap();
        self.files.look().await;
    }

    #[track_caller]
    fn verdict(&self, chain: &[CertificateDer<'_>], expected: &str) {
        let verdict = match self.trust.still_trusted(PeerSide::Client, chain) {
            Ok(()) => "trusted".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(verdict.contains(expected), "{verdict:?} instead of {expected:?}");
    }
}

fn peer(authority: &Authority, serial: u64) -> Vec<CertificateDer<'static>> {
    let leaf = Leaf { serial: Some(serial), ..Leaf::workload("spiffe://cluster.local/ns/shop/sa/web") };
    vec![CertificateDer::from_pem_slice(authority.issue(&leaf).unwrap().chain.as_bytes()).unwrap()]
}

#[tokio::test]
async fn roots_are_read_again_and_the_last_good_ones_stay() {
    let (old, new) = (Authority::root("old").unwrap(), Authority::root("new").unwrap());
    let (of_old, of_new) = (peer(&old, 1), peer(&new, 1));
    let mut files = Files::new(false);
    files.files.look().await;
    files.verdict(&of_old, "does not lead to a root");

    files.write("root.pem", old.root_pem()).await;
    files.verdict(&of_old, "trusted");
    files.write("root.pem", &[old.root_pem(), new.root_pem()].concat()).await;
    files.verdict(&of_new, "trusted");
    files.verdict(&of_old, "trusted");
    for bad in [
        "",
        "-----BEGIN CERTIFICATE-----\nAA",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        files.write("root.pem", bad).await;
        files.verdict(&of_old, "trusted");
    }
    let mut revision = files.trust.revision();
    files.write("root.pem", new.root_pem()).await;
    files.verdict(&of_old, "does not lead to a root");
    assert!(revision.has_changed().unwrap(), "those who keep connections are told");
    revision.mark_unchanged();
}

#[tokio::test]
async fn nobody_is_let_in_before_there_are_revocation_lists_and_then_only_those_not_on_them() {
    let authority = Authority::root("mesh").unwrap();
    let other = Authority::root("other").unwrap();
    let (good, bad) = (peer(&authority, 1), peer(&authority, 66));
    let mut files = Files::new(true);
    files.verdict(&good, "crl.pem is not read yet");
    files.write("root.pem", authority.root_pem()).await;
    files.verdict(&good, "no peer is accepted while there is no revocation list");
    files.verdict(&good, "crl.pem: No such file");
    files.write("crl.pem", "rubbish").await;
    files.verdict(&good, "crl.pem: it holds no revocation list in PEM form");

    files.write("crl.pem", &[other.revoke(&[1]).unwrap(), authority.revoke(&[7]).unwrap()].concat()).await;
    files.verdict(&good, "trusted");
    files.verdict(&bad, "trusted");
    let revision = files.trust.revision();
    files
        .write("crl.pem", &[other.revoke(&[1]).unwrap(), authority.revoke(&[7, 66]).unwrap()].concat())
        .await;
    files.verdict(&bad, "is revoked");
    assert!(revision.has_changed().unwrap(), "those who keep connections are told");
    assert_eq!(files.trust.still_trusted(PeerSide::Server, &bad), Err(PeerError::Revoked));
    files.verdict(&good, "trusted");

    std::fs::remove_file(files.directory.path().join("crl.pem")).unwrap();
    files.files.look().await;
    files.verdict(&bad, "is revoked");
    files.verdict(&good, "trusted");
}
