//! A program that is a part of the cluster: started, found again by any process, stopped, started again.
//!
//! Which process it is stands in a file of the lab's directory. A part has a cgroup of its own below its machine's, so that the
//! kubelet can be told from containers, also from those in the node's network.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::Machine;
use crate::state::ProcessId;

use super::wait::wait_until;
use super::{Cluster, ClusterError, START, write};

/// How long a part may take to end when it is asked to.
const STOP: Duration = Duration::from_secs(10);
/// How much of a log an error shows.
const TAIL_LINES: usize = 20;

/// How it is seen that a part does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ready {
    /// What needs it waits.
    Started,
    /// The API server says so.
    ApiServer,
    /// containerd answers.
    Runtime,
}

/// A program of the cluster.
#[derive(Debug)]
pub struct Part<'a> {
    cluster: &'a Cluster,
    name: String,
    machine: &'a Machine,
    group: String,
    program: PathBuf,
    arguments: Vec<String>,
    ready: Ready,
}

impl<'a> Part<'a> {
    /// A part of this name, which runs in the cgroup `group` below its machine's.
    pub(super) fn new(cluster: &'a Cluster, name: &str, machine: &'a Machine, group: &str) -> Self {
        Self {
            cluster,
            name: name.to_owned(),
            machine,
            group: group.to_owned(),
            program: PathBuf::new(),
            arguments: Vec::new(),
            ready: Ready::Started,
        }
    }

    pub(super) fn program(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    pub(super) fn arguments(self, arguments: Vec<String>) -> Self {
        Self { arguments, ..self }
    }

    pub(super) fn ready(self, ready: Ready) -> Self {
        Self { ready, ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cgroup2 group that it runs in, and nothing that is not of its own.
    #[must_use]
    pub fn cgroup(&self) -> Option<PathBuf> {
        self.machine.cgroup().map(|machine| machine.join(&self.group))
    }

    /// The file it writes to.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.cluster.log_directory().join(format!("{}.log", self.name))
    }

    /// Its process; `None` if it does not run.
    #[must_use]
    pub fn process(&self) -> Option<ProcessId> {
        let text = fs::read(self.process_path()).ok()?;
        serde_json::from_slice::<ProcessId>(&text).ok().filter(|process| process.alive())
    }

    /// Starts it, unless it runs, and waits until it does its work.
    ///
    /// # Errors
    /// When it cannot be started or does not get ready.
    pub fn start(&self) -> Result<(), ClusterError> {
        if self.process().is_none() {
            self.launch()?;
        }
        self.wait_until_ready()
    }

    /// Asks it to end, waits, and kills it if it takes too long.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn stop(&self) -> Result<(), ClusterError> {
        self.end(Signal::SIGTERM)
    }

    /// Ends it without a word.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn kill(&self) -> Result<(), ClusterError> {
        self.end(Signal::SIGKILL)
    }

    /// Starts it without waiting for anything.
    pub(super) fn launch(&self) -> Result<(), ClusterError> {
        let mut program = self.machine.program(&self.program)?.args(&self.arguments);
        if let Some(group) = self.cgroup() {
            program = program.cgroup(&group)?;
        }
        // What it keeps for itself, below its home, is the cluster's.
        program = program.env("HOME", self.cluster.data()).log_to(self.log_path());
        let process = program.detached().spawn()?;
        let text = serde_json::to_vec(&process.id())
            .map_err(|error| ClusterError::File { path: self.process_path(), source: error.into() })?;
        write(&self.process_path(), text)
    }

    /// Waits until it does its work.
    pub(super) fn wait_until_ready(&self) -> Result<(), ClusterError> {
        wait_until(&format!("{} is ready", self.name), START, || {
            let ready = match self.ready {
                Ready::Started => Ok(()),
                Ready::ApiServer => self.cluster.kubectl(["get", "--raw", "/readyz"]).map(drop),
                Ready::Runtime => self.runtime_answers(),
            };
            match (ready, self.ended()) {
                (Err(_), Some(ended)) => Err(ended),
                (ready, _) => Ok(ready.map_err(|error| error.to_string())),
            }
        })
    }

    fn runtime_answers(&self) -> Result<(), ClusterError> {
        let output = self.machine.program("ctr")?.arg("version").output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(ClusterError::Command { command: "ctr version".to_owned(), said: output.stderr })
    }

    fn end(&self, signal: Signal) -> Result<(), ClusterError> {
        let Some(process) = self.process() else { return Ok(()) };
        let pid = Pid::from_raw(process.pid);
        // An error means that it has just ended.
        let _ = kill(pid, signal);
        let gone = || Ok(if process.alive() { Err("it still runs".to_owned()) } else { Ok(()) });
        let what = format!("{} has ended", self.name);
        if wait_until(&what, STOP, gone).is_ok() {
            return Ok(());
        }
        let _ = kill(pid, Signal::SIGKILL);
        wait_until(&what, STOP, gone)
    }

    /// What is to be said if it has ended.
    pub(super) fn ended(&self) -> Option<ClusterError> {
        let log = self.log_path();
        let ended = || ClusterError::Ended { part: self.name.clone(), said: tail(&log), log: log.clone() };
        self.process().is_none().then(ended)
    }

    fn process_path(&self) -> PathBuf {
        self.cluster.log_directory().join("parts").join(format!("{}.json", self.name))
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.split_at(lines.len().saturating_sub(TAIL_LINES)).1.join("\n")
}
