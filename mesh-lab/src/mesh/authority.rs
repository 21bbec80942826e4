//! The files between the control server, which signs certificates, and the agents, which ask for them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::MeshError;

/// What the authority thinks of the token of a node's agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// It is good.
    Good,
    /// It was good once.
    Expired,
    /// It never was.
    Unknown,
}

/// An authority in a directory, and a token for the agent of each node.
#[derive(Debug)]
pub(super) struct Authority {
    mesh: PathBuf,
    tokens: Mutex<BTreeMap<String, (String, TokenState)>>,
}

impl Authority {
    pub(super) fn new(mesh: &Path) -> Self {
        Self { mesh: mesh.to_owned(), tokens: Mutex::default() }
    }

    /// Where keys and certificates are kept.
    pub(super) fn directory(&self) -> PathBuf {
        self.mesh.join("ca")
    }

    fn roots(&self) -> PathBuf {
        self.mesh.join("roots.pem")
    }

    fn token_list(&self) -> PathBuf {
        self.mesh.join("tokens.yaml")
    }

    fn token_file(&self, node: &str) -> PathBuf {
        self.mesh.join(node).join("token")
    }

    pub(super) fn control_arguments(&self) -> [PathBuf; 6] {
        [
            "--ca-dir".into(),
            self.directory(),
            "--ca-root-file".into(),
            self.roots(),
            "--agent-tokens".into(),
            self.token_list(),
        ]
    }

    pub(super) fn agent_arguments(&self, node: &str) -> [PathBuf; 4] {
        ["--control-root-cert".into(), self.roots(), "--control-token-file".into(), self.token_file(node)]
    }

    /// Gives a node's agent a token, once, and tells the authority what to think of it.
    pub(super) fn set_token(&self, node: &str, state: TokenState) -> Result<(), MeshError> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        match tokens.get_mut(node) {
            Some((_, known)) => *known = state,
            None => {
                let token = random_token().map_err(|source| failed("/dev/urandom", source))?;
                write(&self.token_file(node), &token)?;
                tokens.insert(node.to_owned(), (token, state));
            }
        }
        let mut list = String::new();
        for (node, (token, state)) in tokens.iter() {
            let expires = match state {
                TokenState::Good => "2999-01-01T00:00:00Z",
                TokenState::Expired => "2000-01-01T00:00:00Z",
                TokenState::Unknown => continue,
            };
            let _ = writeln!(list, "- {{token: {token}, node: {node}, expires: \"{expires}\"}}");
        }
        write(&self.token_list(), if list.is_empty() { "[]" } else { &list })
    }

    /// Puts the token of `owner`'s agent where that of `node` is expected.
    pub(super) fn lend_token(&self, node: &str, owner: &str) -> Result<(), MeshError> {
        let from = self.token_file(owner);
        let token = fs::read_to_string(&from).map_err(|source| failed(from, source))?;
        write(&self.token_file(node), &token)
    }
}

/// 32 bytes that nobody guesses, as text.
fn random_token() -> io::Result<String> {
    let mut bytes = [0; 32];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().fold(String::new(), |mut token, byte| {
        let _ = write!(token, "{byte:02x}");
        token
    }))
}

/// Writes a file as a whole: its readers never see half of it.
fn write(path: &Path, text: &str) -> Result<(), MeshError> {
    let draft = path.with_extension("new");
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(&draft, text))
        .and_then(|()| fs::rename(&draft, path))
        .map_err(|source| failed(path, source))
}

fn failed(path: impl Into<PathBuf>, source: io::Error) -> MeshError {
    MeshError::File { path: path.into(), source }
}
