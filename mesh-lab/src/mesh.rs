//! A mesh in a lab: one control server on a host outside, one agent on every node, each a real process.
//!
//! Used by the demo and by the end-to-end tests, which kill, restart and reconfigure what runs here.

mod authority;
mod error;
mod manifests;
mod programs;
mod ready;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

pub use authority::TokenState;
pub use error::MeshError;
pub use manifests::Manifests;
pub use programs::Programs;

use crate::lab::Lab;
use crate::machine::Kind;
use crate::mounts::mount_bpffs;
use crate::process::Process;
use authority::Authority;
use ready::{ready, wait_until_ready};

const CONTROL_GRPC: u16 = 15010;
const CONTROL_TLS: u16 = 15012;
const CONTROL_HTTP: u16 = 15014;
const AGENT_HTTP: u16 = 15020;

/// A running mesh. Dropping it ends it, and its lab with it.
#[derive(Debug)]
pub struct Mesh {
    // Before the lab: processes end before what they run in is removed.
    control: Option<Process>,
    agents: BTreeMap<String, Process>,
    programs: Programs,
    directory: PathBuf,
    control_host: String,
    /// How to reach the Kubernetes API that the control server reads; without it, manifests.
    kubeconfig: Option<PathBuf>,
    control_arguments: Vec<String>,
    agent_arguments: Vec<String>,
    /// Where certificates come from; without it, everything is plain text.
    authority: Option<Authority>,
    detached: bool,
    access_log: bool,
    lab: Lab,
}

impl Mesh {
    /// Prepares a mesh in `lab`, with its control server on the host `control`, which is its certificate authority too.
    /// Nothing runs yet.
    ///
    /// # Errors
    /// When the programs are not built or the lab's directory cannot be prepared.
    pub fn new(lab: Lab, control: &str) -> Result<Self, MeshError> {
        lab.host(control)?;
        let directory = lab.log_directory().join("mesh");
        let bpffs = directory.join("bpf");
        mount_bpffs(&bpffs).map_err(|source| MeshError::File { path: bpffs, source })?;
        let mesh = Self {
            control: None,
            agents: BTreeMap::new(),
            programs: Programs::find()?,
            authority: Some(Authority::new(&directory)),
            directory,
            control_host: control.to_owned(),
            kubeconfig: None,
            control_arguments: Vec::new(),
            agent_arguments: Vec::new(),
            detached: false,
            access_log: true,
            lab,
        };
        mesh.make_directory(&mesh.manifests_directory())?;
        for node in mesh.nodes() {
            mesh.set_token(&node, TokenState::Good)?;
        }
        Ok(mesh)
    }

    /// Goes without certificates: agents and control server speak plain text, and so do pods of different nodes.
    #[must_use]
    pub fn without_authority(mut self) -> Self {
        self.authority = None;
        self
    }

    /// Goes without the agents' access logs.
    #[must_use]
    pub fn without_access_log(mut self) -> Self {
        self.access_log = false;
        self
    }

    /// Has the control server read the Kubernetes API that this file leads to, instead of manifests.
    #[must_use]
    pub fn kubernetes(mut self, kubeconfig: impl Into<PathBuf>) -> Self {
        self.kubeconfig = Some(kubeconfig.into());
        self
    }

    /// Gives the control server these arguments too when it is started.
    #[must_use]
    pub fn control_arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.control_arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Has certificates live for no longer than this; a root that is replaced is trusted for twice as long.
    #[must_use]
    pub fn certificate_lifetime(self, lifetime: Duration) -> Self {
        self.control_arguments(["--ca-leaf-lifetime".to_owned(), format!("{}s", lifetime.as_secs())])
    }

    /// Gives every agent that is started from now on these arguments too.
    #[must_use]
    pub fn agent_arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.agent_arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// Has the programs that are started from now on outlive this process, for a lab that is kept.
    pub fn detach(&mut self) {
        self.detached = true;
    }

    /// Ends this handle but neither the lab nor what runs in it; for a mesh that was [detached](Self::detach).
    ///
    /// # Errors
    /// When that cannot be recorded.
    pub fn keep(self) -> Result<(), MeshError> {
        Ok(self.lab.keep()?)
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The mesh's programs.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The directory the control server reads.
    #[must_use]
    pub fn manifests_directory(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// The BPF file system of all nodes.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Where an agent keeps its last good configuration.
    #[must_use]
    pub fn state_directory(&self, node: &str) -> PathBuf {
        self.directory.join(node).join("state")
    }

    /// Where an agent keeps its socket, lock and journal.
    #[must_use]
    pub fn run_directory(&self, node: &str) -> PathBuf {
        self.directory.join(node).join("run")
    }

    /// The names of the nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        let nodes = self.lab.machines().filter(|machine| *machine.kind() == Kind::Node);
        nodes.map(|machine| machine.name().to_owned()).collect()
    }

    /// Writes manifests where the control server reads them, in one step.
    ///
    /// # Errors
    /// When that fails.
    pub fn apply(&self, file: &str, text: &str) -> Result<(), MeshError> {
        let path = self.manifests_directory().join(file);
        // Not named like a manifest until it is complete.
        let draft = self.manifests_directory().join(format!(".{file}.new"));
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(|source| MeshError::File { path, source })
    }

    /// Writes a copy of a file of manifests where the control server reads them, under its own name.
    ///
    /// # Errors
    /// When that fails.
    pub fn apply_file(&self, path: &Path) -> Result<(), MeshError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| MeshError::File { path: path.to_owned(), source })?;
        self.apply(&path.file_name().unwrap_or_default().to_string_lossy(), &text)
    }

    /// Changes what the control server thinks of the token of a node's agent. It notices within two seconds.
    ///
    /// # Errors
    /// When the list of tokens cannot be written.
    pub fn set_token(&self, node: &str, state: TokenState) -> Result<(), MeshError> {
        self.lab.node(node)?;
        match &self.authority {
            Some(authority) => authority.set_token(node, state),
            None => Ok(()),
        }
    }

    /// Replaces the root that certificates lead to: the next one is handed out at once, signs after the overlap, and is
    /// the only one after another. Returns what the command said.
    ///
    /// # Errors
    /// When there is no authority, or it refuses.
    pub fn rotate_root(&self) -> Result<String, MeshError> {
        self.authority_command("rotate")
    }

    /// What `mesh-control ca show` says of the authority: its certificates, and how far a rotation is.
    ///
    /// # Errors
    /// When there is no authority, or it cannot be read.
    pub fn show_authority(&self) -> Result<String, MeshError> {
        self.authority_command("show")
    }

    fn authority_command(&self, command: &str) -> Result<String, MeshError> {
        let authority = self.authority.as_ref();
        let authority = authority.ok_or_else(|| MeshError::State("the mesh has no authority".to_owned()))?;
        let host = self.lab.host(&self.control_host)?;
        let program = host.program(self.programs.path("mesh-control"))?;
        let output = program.args(["ca", command, "--ca-dir"]).arg(authority.directory()).output()?;
        if !output.status.success() {
            return Err(MeshError::State(format!(
                "mesh-control ca {command}: {}{}",
                output.stdout, output.stderr
            )));
        }
        Ok(output.stdout)
    }

    /// Gives the agent of `node` the token of another node's agent.
    ///
    /// # Errors
    /// When there is no such node or its token cannot be written.
    pub fn lend_token(&self, node: &str, owner: &str) -> Result<(), MeshError> {
        self.lab.node(node)?;
        match &self.authority {
            Some(authority) => authority.lend_token(node, owner),
            None => Ok(()),
        }
    }

    /// Removes a file of manifests.
    ///
    /// # Errors
    /// When that fails.
    pub fn withdraw(&self, file: &str) -> Result<(), MeshError> {
        let path = self.manifests_directory().join(file);
        std::fs::remove_file(&path).map_err(|source| MeshError::File { path, source })
    }

    /// Starts the control server and the agents of all nodes.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub fn start(&mut self) -> Result<(), MeshError> {
        self.start_control()?;
        for node in self.nodes() {
            self.launch_agent(&node)?;
        }
        for node in self.nodes() {
            self.wait_for_agent(&node)?;
        }
        Ok(())
    }

    /// Starts the control server and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_control(&mut self) -> Result<(), MeshError> {
        if self.control.is_some() {
            return Err(MeshError::State("the control server runs already".to_owned()));
        }
        let host = self.lab.host(&self.control_host)?;
        let program = host.program(self.programs.path("mesh-control"))?;
        let program = match &self.kubeconfig {
            Some(kubeconfig) => program.arg("--kubernetes").env("KUBECONFIG", kubeconfig),
            None => program.arg("--manifests").arg(self.manifests_directory()),
        };
        let mut program = program
            .args(["--grpc-address", &any(CONTROL_GRPC), "--http-address", &any(CONTROL_HTTP)])
            .args(&self.control_arguments)
            .log_to(self.directory.join("control.log"));
        if let Some(authority) = &self.authority {
            program = program
                .args([
                    "--tls-address",
                    &any(CONTROL_TLS),
                    "--tls-name",
                    &self.control_address()?.to_string(),
                ])
                .args(authority.control_arguments());
        }
        if self.detached {
            program = program.detached();
        }
        let process = program.spawn()?;
        let process = self.control.insert(process);
        let answer = wait_until_ready(process, || {
            let host = self.lab.host(&self.control_host).ok()?;
            host.namespace().run(|| ready(CONTROL_HTTP)).ok()
        });
        answer.map_err(|(answer, log)| MeshError::NotReady { what: "mesh-control".to_owned(), answer, log })
    }

    /// The control server.
    pub fn control(&mut self) -> Option<&mut Process> {
        self.control.as_mut()
    }

    /// Kills the control server (SIGKILL).
    pub fn kill_control(&mut self) {
        if let Some(mut process) = self.control.take() {
            process.kill();
        }
    }

    /// Starts a node's agent and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_agent(&mut self, node: &str) -> Result<(), MeshError> {
        self.launch_agent(node)?;
        self.wait_for_agent(node)
    }

    /// Starts a node's agent and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_agent(&mut self, node: &str) -> Result<(), MeshError> {
        if self.agents.contains_key(node) {
            return Err(MeshError::State(format!("the agent of {node} runs already")));
        }
        let process = self.agent_process(node)?;
        self.agents.insert(node.to_owned(), process);
        Ok(())
    }

    /// Starts one more agent on a node, which is not taken care of.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn agent_process(&self, node: &str) -> Result<Process, MeshError> {
        let machine = self.lab.node(node)?;
        for directory in [self.state_directory(node), self.run_directory(node)] {
            self.make_directory(&directory)?;
        }
        let address = self.control_address()?;
        let server = match &self.authority {
            Some(_) => format!("https://{}", SocketAddr::new(address, CONTROL_TLS)),
            None => format!("http://{}", SocketAddr::new(address, CONTROL_GRPC)),
        };
        let mut program = machine
            .program(self.programs.path("mesh-agent"))?
            .arg("run")
            .args(["--node-name", node, "--pod-source", "control"])
            .args(["--control-server", &server])
            .arg("--bpffs")
            .arg(self.bpffs())
            .arg("--state-dir")
            .arg(self.state_directory(node))
            .arg("--run-dir")
            .arg(self.run_directory(node))
            .args(&self.agent_arguments)
            .log_to(self.agent_log(node));
        program = if self.access_log {
            program.args(["--access-log", "json", "--access-log-file"]).arg(self.access_log(node))
        } else {
            program.args(["--access-log", "off"])
        };
        if let Some(root) = machine.cgroup() {
            program = program.arg("--cgroup-root").arg(root);
        }
        if let Some(authority) = &self.authority {
            program = program.args(authority.agent_arguments(node));
        }
        if self.detached {
            program = program.detached();
        }
        Ok(program.spawn()?)
    }

    /// Waits until a node's agent says that it is ready.
    ///
    /// # Errors
    /// When it does not, or has ended.
    pub fn wait_for_agent(&mut self, node: &str) -> Result<(), MeshError> {
        let machine = self.lab.node(node)?;
        let process =
            self.agents.get_mut(node).ok_or_else(|| MeshError::State(format!("no agent runs on {node}")))?;
        let answer = wait_until_ready(process, || machine.namespace().run(|| ready(AGENT_HTTP)).ok());
        answer.map_err(|(answer, log)| MeshError::NotReady {
            what: format!("the agent of {node}"),
            answer,
            log,
        })
    }

    /// A node's agent.
    pub fn agent(&mut self, node: &str) -> Option<&mut Process> {
        self.agents.get_mut(node)
    }

    /// Kills a node's agent (SIGKILL).
    pub fn kill_agent(&mut self, node: &str) {
        if let Some(mut process) = self.agents.remove(node) {
            process.kill();
        }
    }

    /// Asks a node's agent to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// When it has to be killed.
    pub fn stop_agent(&mut self, node: &str, timeout: Duration) -> Result<(), MeshError> {
        match self.agents.remove(node) {
            Some(process) => Ok(process.stop(timeout).map(drop)?),
            None => Ok(()),
        }
    }

    /// Where a node's agent logs.
    #[must_use]
    pub fn agent_log(&self, node: &str) -> PathBuf {
        self.directory.join(node).join("agent.log")
    }

    /// Where a node's agent writes one JSON line per connection.
    #[must_use]
    pub fn access_log(&self, node: &str) -> PathBuf {
        self.directory.join(node).join("access.log")
    }

    /// Where a node's agent answers meshctl.
    #[must_use]
    pub fn admin_socket(&self, node: &str) -> PathBuf {
        self.run_directory(node).join("admin.sock")
    }

    /// Runs meshctl on a node and returns its output as it is.
    ///
    /// # Errors
    /// When it fails, with what it said.
    pub fn meshctl_text(&self, node: &str, arguments: &[&str]) -> Result<String, MeshError> {
        let failed =
            |said: String| MeshError::Meshctl { node: node.to_owned(), arguments: arguments.join(" "), said };
        let meshctl = self.lab.node(node)?.program(self.programs.path("meshctl"))?;
        let output = meshctl.arg("--socket").arg(self.admin_socket(node)).args(arguments).output()?;
        if !output.status.success() {
            return Err(failed(format!("{}{}", output.stdout, output.stderr)));
        }
        Ok(output.stdout)
    }

    /// Runs meshctl on a node and returns its JSON output.
    ///
    /// # Errors
    /// When it fails, or does not answer in JSON.
    pub fn meshctl(&self, node: &str, arguments: &[&str]) -> Result<Value, MeshError> {
        let all: Vec<&str> = ["-o", "json"].iter().chain(arguments).copied().collect();
        let text = self.meshctl_text(node, &all)?;
        serde_json::from_str(&text).map_err(|error| MeshError::Meshctl {
            node: node.to_owned(),
            arguments: arguments.join(" "),
            said: format!("{error} in {text}"),
        })
    }

    fn control_address(&self) -> Result<IpAddr, MeshError> {
        let address = self.lab.host(&self.control_host)?.address();
        address.ok_or_else(|| MeshError::State("the control host has no address".to_owned()))
    }

    fn make_directory(&self, path: &Path) -> Result<(), MeshError> {
        std::fs::create_dir_all(path).map_err(|source| MeshError::File { path: path.to_owned(), source })
    }
}

fn any(port: u16) -> String {
    format!("[::]:{port}")
}
