//! Tokens in a file, for meshes without Kubernetes.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use serde::Deserialize;

use super::{Agent, AgentError};
use crate::authority::clock::parse_rfc3339;

/// Shorter tokens can be guessed.
const MIN_TOKEN_CHARACTERS: usize = 16;
/// Room for one token per node and its successor in a mesh of 5,000 nodes.
const MAX_TOKENS: usize = 10_000;
const MAX_FILE_BYTES: u64 = 8 << 20;

/// SHA-256 of a token.
pub(in crate::authority) type Digest = [u8; 32];

pub(in crate::authority) fn digest(token: &str) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    token: Option<String>,
    sha256: Option<String>,
    node: String,
    expires: String,
    name: Option<String>,
}

/// A token that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    digest: Digest,
    agent: Agent,
    expires: SystemTime,
}

/// The file, and what it said when it was last good.
#[derive(Debug)]
pub(in crate::authority) struct TokenFile {
    path: PathBuf,
    tokens: ArcSwap<Vec<Token>>,
}

impl TokenFile {
    /// A file that was not read yet: nobody is known.
    pub(in crate::authority) fn new(path: PathBuf) -> Self {
        Self { path, tokens: ArcSwap::default() }
    }

    /// Reads the file anew; if that cannot be done, what it said before stays.
    pub(in crate::authority) fn reload(&self) -> Result<(), String> {
        let explained = |reason: String| format!("{}: {reason}", self.path.display());
        let tokens = read(&self.path).and_then(|text| parse(&text)).map_err(explained)?;
        if **self.tokens.load() != tokens {
            tracing::info!(file = %self.path.display(), tokens = tokens.len(), "tokens of agents read");
            self.tokens.store(Arc::new(tokens));
        }
        Ok(())
    }

    pub(in crate::authority) fn len(&self) -> usize {
        self.tokens.load().len()
    }

    pub(super) fn agent(&self, token: &str, now: SystemTime) -> Result<Agent, AgentError> {
        let digest = digest(token);
        let tokens = self.tokens.load();
        let mut found = None;
        // All of them, whichever it is: the time this takes says nothing about the tokens.
        for known in tokens.iter() {
            if verify_slices_are_equal(&known.digest, &digest).is_ok() {
                found = Some(known);
            }
        }
        let Token { agent, expires, .. } = found.ok_or(AgentError::Unknown)?;
        if now >= *expires {
            return Err(AgentError::Expired { name: Arc::clone(&agent.name), at: *expires });
        }
        Ok(agent.clone())
    }
}

fn read(path: &Path) -> Result<String, String> {
    let read = || {
        if fs::metadata(path)?.len() > MAX_FILE_BYTES {
            return Ok(Err(format!("is larger than {} MiB", MAX_FILE_BYTES >> 20)));
        }
        fs::read_to_string(path).map(Ok)
    };
    read().map_err(|error: std::io::Error| format!("cannot be read: {error}"))?
}

fn parse(text: &str) -> Result<Vec<Token>, String> {
    // The parser's message may show the line that is wrong, and with it a token.
    let entries: Vec<Entry> = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(String::new(), |location| format!("line {}: ", location.line()));
        format!(
            "{line}is not a list of entries with the fields token or sha256, node, expires and, if wanted, name"
        )
    })?;
    if entries.len() > MAX_TOKENS {
        return Err(format!("has {} tokens, more than {MAX_TOKENS}", entries.len()));
    }
    let mut tokens = Vec::with_capacity(entries.len());
    let mut places = HashMap::new();
    for (index, entry) in entries.iter().enumerate() {
        let place = format!("entry {} (node {})", index + 1, entry.node);
        let token = Token::check(entry).map_err(|reason| format!("{place}: {reason}"))?;
        if let Some(earlier) = places.insert(token.digest, index) {
            return Err(format!("{place}: has the same token as entry {}: make another", earlier + 1));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

impl Token {
    fn check(entry: &Entry) -> Result<Self, String> {
        let digest = match (&entry.token, &entry.sha256) {
            (Some(token), None) if token.len() >= MIN_TOKEN_CHARACTERS => digest(token),
            (Some(_), None) => {
                return Err(format!("token: use at least {MIN_TOKEN_CHARACTERS} characters, at random"));
            }
            (None, Some(digits)) => unhex(digits)
                .ok_or("sha256: expected 64 hexadecimal digits, as sha256sum prints them for the token")?,
            _ => return Err("give either token or sha256".to_owned()),
        };
        if entry.node.is_empty() {
            return Err("node: name the agent's node".to_owned());
        }
        let expires = parse_rfc3339(&entry.expires).map_err(|reason| format!("expires: {reason}"))?;
        let node: Arc<str> = entry.node.as_str().into();
        let name = entry.name.as_deref().map_or_else(|| format!("the agent of {node}"), str::to_owned);
        Ok(Self { digest, agent: Agent { name: name.into(), node }, expires })
    }
}

fn unhex(digits: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    if pairs.len() != digest.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(pairs) {
        // Refuses the signs that `from_str_radix` would take.
        let text = std::str::from_utf8(pair)
            .ok()
            .filter(|text| text.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(text, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    const SECRET: &str = "correct horse battery staple";

    fn file(text: &str) -> (tempfile::TempDir, TokenFile) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.yaml");
        fs::write(&path, text).unwrap();
        (directory, TokenFile::new(path))
    }

    fn entry(token: &str, node: &str) -> String {
        format!("- {{{token}, node: {node}, expires: '1970-01-02T00:00:00Z'}}\n")
    }

    #[test]
    fn tokens_are_known_by_text_and_by_digest_until_they_expire() {
        let by_digest =
            format!("sha256: {}", crate::authority::certificates::hex(&digest("another long secret")));
        let (_directory, file) =
            file(&(entry(&format!("token: {SECRET}"), "n1") + &entry(&by_digest, "n2") + "# end\n"));
        let early = UNIX_EPOCH;
        assert_eq!(file.agent(SECRET, early), Err(AgentError::Unknown), "not read yet");
        file.reload().unwrap();
        assert_eq!(&*file.agent(SECRET, early).unwrap().node, "n1");
        assert_eq!(&*file.agent("another long secret", early).unwrap().node, "n2");
        assert_eq!(file.agent("correct horse battery stapl", early), Err(AgentError::Unknown));
        let late = UNIX_EPOCH + Duration::from_secs(86_400);
        let error = file.agent(SECRET, late).unwrap_err().to_string();
        assert_eq!(
            error,
            "the token of the agent of n1 expired at 1970-01-02T00:00:00Z: give the agent a new one"
        );
    }

    #[test]
    fn a_bad_file_says_where_and_leaves_the_last_good_tokens() {
        let (_directory, file) = file(&entry(&format!("token: {SECRET}"), "n1"));
        file.reload().unwrap();
        let good = entry(&format!("token: {SECRET}"), "n1");
        for (bad, reason) in [
            (entry("token: short", "n7"), "entry 1 (node n7): token: use at least 16"),
            (format!("{good}{good}"), "entry 2 (node n1): has the same token as entry 1"),
            (entry("sha256: 00", "n1"), "64 hexadecimal digits"),
            (entry(&format!("token: {SECRET}, sha256: 00"), "n1"), "either token or sha256"),
            (entry(&format!("token: {SECRET}"), "''"), "name the agent's node"),
            (good.replace("1970-01-02T00:00:00Z", "soon"), "expires: expected a time such as"),
            (good.replace("node", "nodes"), "line 1: is not a list of entries"),
            ("[".to_owned(), "is not a list of entries"),
        ] {
            fs::write(&file.path, bad).unwrap();
            let error = file.reload().unwrap_err();
            assert!(error.contains(reason) && error.contains("tokens.yaml"), "{error}");
            assert!(!error.contains(SECRET), "{error}");
            assert!(file.agent(SECRET, UNIX_EPOCH).is_ok(), "{error}");
        }
        fs::remove_file(&file.path).unwrap();
        assert!(file.reload().unwrap_err().contains("cannot be read"));
        fs::write(&file.path, "[]").unwrap();
        file.reload().unwrap();
        assert_eq!(file.agent(SECRET, UNIX_EPOCH), Err(AgentError::Unknown));
    }
}
