//! `mesh-control ca`: a look at the authority, and its rotation on demand.

use std::fmt::Write;
use std::time::SystemTime;

use clap::Subcommand;
use kube::Client;

use super::clock::{from_unix, rfc3339};
use super::generations::{Generation, Generations};
use super::pem::PemCertificate;
use super::settings::{MaterialArgs, MaterialSettings};
use super::signer::Signer;
use super::source::{Change, Directory, Files, Secret, Source};

/// What is done with the authority.
#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Prints the roots and the signing certificate, and how far a rotation is
    Show {
        /// Where they are.
        #[command(flatten)]
        material: MaterialArgs,
    },
    /// Replaces a generated root: the next one is handed out at once, signs after --ca-overlap, and is the only one after
    /// another. The servers that use the directory or secret begin within seconds
    Rotate {
        /// Where it is.
        #[command(flatten)]
        material: MaterialArgs,
    },
}

impl AuthorityCommand {
    /// Does it, and returns what to print.
    pub async fn run(self) -> anyhow::Result<String> {
        let (material, change) = match self {
            Self::Show { material } => (material, Change::Look),
            Self::Rotate { material } => (material, Change::Rotate),
        };
        let source = match material.check() {
            Some(MaterialSettings::Directory(path)) => Source::Directory(Directory::new(path)),
            Some(MaterialSettings::Files(path)) => Source::Files(Files::new(path)),
            Some(MaterialSettings::Secret(name)) => {
                Source::Secret(Secret::new(Client::try_default().await?, &name))
            }
            None => anyhow::bail!("say where the authority is: --ca-dir, --ca-files or --ca-secret"),
        };
        let now = SystemTime::now();
        let found = source.change(change, now).await?;
        let mut text = String::new();
        match &found.generations {
            Some(generations) => describe(&mut text, generations)?,
            None => {
                let signer = Signer::new(&found.material, now)?;
                certificate(&mut text, "issuer", signer.certificate(), "")?;
                for root in signer.roots() {
                    certificate(&mut text, "root", root, "")?;
                }
            }
        }
        Ok(text)
    }
}

fn describe(text: &mut String, generations: &Generations) -> anyhow::Result<()> {
    let wanted = if generations.rotation_wanted() { ", a rotation is wanted" } else { "" };
    writeln!(text, "rotation: {}{wanted}", generations.phase().name())?;
    let signing = generations.list().rposition(|generation| generation.signs.is_some());
    for (index, generation) in generations.list().enumerate() {
        let Generation { root, issuer, announced, signs } = generation;
        let since = match (signs, Some(index) == signing) {
            (Some(since), true) => format!("signs since {}", rfc3339(from_unix(*since))),
            (Some(_), false) => "trusted, does not sign any more".to_owned(),
            (None, _) => format!("trusted since {}, will sign", rfc3339(from_unix(*announced))),
        };
        for (role, pem) in [("root", &root.certificate), ("issuer", &issuer.certificate)] {
            for read in PemCertificate::read_all(pem).map_err(anyhow::Error::msg)? {
                certificate(text, role, &read, &since)?;
            }
        }
    }
    Ok(())
}

fn certificate(text: &mut String, role: &str, certificate: &PemCertificate, since: &str) -> std::fmt::Result {
    let PemCertificate { subject, serial, .. } = certificate;
    let (from, until) = (rfc3339(certificate.not_before), rfc3339(certificate.not_after));
    write!(text, "{role:<6}  {subject}  serial {serial}  {from} to {until}")?;
    if since.is_empty() { writeln!(text) } else { writeln!(text, "  {since}") }
}
