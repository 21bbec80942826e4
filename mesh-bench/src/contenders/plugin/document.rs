//! The file of a plug-in: its YAML form, and everything that can be wrong with it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::placeholders::{NAMES, unknown};

/// The scenarios in which a plug-in can take part.
pub(super) const SCENARIOS: [&str; 3] = ["same-node-l4", "two-nodes-plain", "two-nodes-mtls"];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    pub(super) name: Spanned<String>,
    /// Whether it is another way to set up a contender that there is: quick runs leave it out.
    #[serde(default)]
    pub(super) variant: bool,
    pub(super) programs: BTreeMap<String, ProgramEntry>,
    pub(super) scenarios: BTreeMap<String, Way>,
}

/// A program on one of the nodes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProgramEntry {
    pub(super) on: Side,
    pub(super) command: Spanned<String>,
    #[serde(default)]
    pub(super) args: Vec<Spanned<String>>,
    /// Texts by their names in the program's directory.
    #[serde(default)]
    pub(super) files: BTreeMap<String, Spanned<String>>,
    /// Where it takes connections when it is ready.
    pub(super) ready: Spanned<String>,
}

/// Whose node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    Client,
    Server,
}

/// The way of the connections in a scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Way {
    /// Whom the client connects to.
    pub(super) dial: Spanned<String>,
    /// The programs that are needed for it.
    pub(super) programs: Vec<Spanned<String>>,
}

/// What is wrong, where, and how to mend it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// 0 where no line can be named.
    pub(super) line: u64,
    pub(super) reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => formatter.write_str(&self.reason),
            line => write!(formatter, "line {line}: {}", self.reason),
        }
    }
}

/// Reads a plug-in, or says everything that is wrong with it.
pub(super) fn parse(text: &str) -> Result<Document, Vec<Problem>> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        vec![Problem { line, reason: error.without_snippet().to_string() }]
    })?;
    let mut check = Check::default();
    check.document(&document);
    if check.0.is_empty() {
        return Ok(document);
    }
    check.0.sort_by_key(|problem| problem.line);
    Err(check.0)
}

#[derive(Default)]
struct Check(Vec<Problem>);

impl Check {
    fn document(&mut self, document: &Document) {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let name = &document.name;
        if name.value.is_empty() || name.value.len() > 32 || !name.value.chars().all(plain) {
            self.at(
                name,
                format!("name {:?}: use 1 to 32 lower-case letters, digits and hyphens", name.value),
            );
        }
        for (name, program) in &document.programs {
            self.program(name, program);
            let used = |way: &Way| way.programs.iter().any(|used| used.value == *name);
            if !document.scenarios.values().any(used) {
                let reason = format!("no scenario has the program {name:?}: list it under `programs` of one");
                self.at(&program.command, reason);
            }
        }
        if document.scenarios.is_empty() {
            self.at(name, format!("it takes part in no scenario: name one of {}", SCENARIOS.join(", ")));
        }
        for (name, way) in &document.scenarios {
            self.way(name, way, document);
        }
    }

    fn program(&mut self, name: &str, program: &ProgramEntry) {
        if program.command.value.trim().is_empty() {
            self.at(&program.command, format!("program {name:?} has no command: name a program or its path"));
        }
        program.args.iter().for_each(|argument| self.names(argument));
        for (file, text) in &program.files {
            if file.is_empty() || file.starts_with('.') || file.contains('/') {
                let reason = format!("file {file:?}: use a plain name; files are in {{dir}}");
                self.at(text, reason);
            }
            self.names(text);
        }
        self.address("ready", &program.ready);
    }

    fn way(&mut self, name: &str, way: &Way, document: &Document) {
        if !SCENARIOS.contains(&name) {
            self.at(&way.dial, format!("there is no scenario {name:?}: use one of {}", SCENARIOS.join(", ")));
        }
        self.address("dial", &way.dial);
        if way.programs.is_empty() {
            self.at(&way.dial, format!("{name} has no programs: list those that connections go through"));
        }
        for program in &way.programs {
            if !document.programs.contains_key(&program.value) {
                let known: Vec<_> = document.programs.keys().map(String::as_str).collect();
                let reason =
                    format!("there is no program {:?}: there are {}", program.value, known.join(", "));
                self.at(program, reason);
            }
        }
    }

    /// An address is one once every name is replaced; until then, it is one if all names are addresses or ports.
    fn address(&mut self, what: &str, text: &Spanned<String>) {
        self.names(text);
        let host_and_port = text.value.rsplit_once(':');
        let port = |port: &str| port == "{port}" || port.parse::<u16>().is_ok_and(|port| port > 0);
        let host = |host: &str| host.ends_with("_ip}") || host.parse::<std::net::IpAddr>().is_ok();
        if !host_and_port.is_some_and(|(ip, number)| host(ip) && port(number)) {
            let reason =
                format!("{what}: {:?} is no address: write one as \"{{client_node_ip}}:15001\"", text.value);
            self.at(text, reason);
        }
    }

    fn names(&mut self, text: &Spanned<String>) {
        for name in unknown(&text.value) {
            let known: Vec<_> = NAMES.iter().map(|(name, _)| format!("{{{name}}}")).collect();
            self.at(text, format!("nothing is called {{{name}}}: there are {}", known.join(", ")));
        }
    }

    fn at<T>(&mut self, place: &Spanned<T>, reason: String) {
        self.0.push(Problem { line: place.referenced.line(), reason });
    }
}
