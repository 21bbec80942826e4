//! Contenders that are described in a file, so that one can be added without touching code: `run --contender FILE`.
//!
//! ```yaml
//! name: example                       # as it is reported
//! variant: false                      # true: another way to set up a contender that there is, left out of quick runs
//! programs:                           # by a name of their own
//!   near:
//!     on: client                      # the client's node or the server's
//!     command: example-proxy          # a path, or a name: $MESH_EXAMPLE_PROXY, then target/tools/example-proxy/bin, then $PATH
//!     args: [--config, "{dir}/proxy.conf"]
//!     files:                          # written before it is started
//!       proxy.conf: |
//!         listen {node_ip}:15001
//!         forward {server_pod_ip}:{port}
//!     ready: "{node_ip}:15001"        # it is ready when it takes a connection here
//! scenarios:                          # same-node-l4, two-nodes-plain, two-nodes-mtls: those it takes part in
//!   same-node-l4:
//!     dial: "{client_node_ip}:15001"  # whom the client connects to
//!     programs: [near]                # started in this order
//! ```
//!
//! [Names in braces](placeholders::NAMES) are replaced in arguments, files and addresses. In `two-nodes-mtls` the bytes between
//! the nodes must be encrypted; the harness looks. A plug-in is spoken to by its address: that its peers would have to be
//! steered to it, which costs something too, is not measured.

mod document;
mod placeholders;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use mesh_lab::certificates::{Authority, Leaf};
use mesh_lab::{Lab, Machine, Process};
use serde_saphyr::Spanned;

use self::document::{Document, ProgramEntry, Side};
use self::placeholders::{Values, fill};
use super::{CLIENT, Contender, PORT, Place, Stage, address, lab};

/// Those that come with the harness.
const BUILT_IN: [(&str, &str); 3] = [
    ("envoy.yaml", include_str!("envoy.yaml")),
    ("envoy-tls.yaml", include_str!("envoy-tls.yaml")),
    ("haproxy.yaml", include_str!("haproxy.yaml")),
];

/// The scenario in which nobody between the nodes may be able to read anything.
const ENCRYPTED: &str = "two-nodes-mtls";

/// How long a program may take to become ready.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(20);

/// A contender that is described in a file.
#[derive(Debug, Clone)]
pub(crate) struct Plugin(Document);

impl Plugin {
    /// Reads a description.
    ///
    /// # Errors
    ///
    /// Lists everything that is wrong with it, with lines.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Self> {
        document::parse(text).map(Self).map_err(|problems| {
            let problems: Vec<_> = problems.iter().map(|problem| format!("\n  {problem}")).collect();
            anyhow!("the contender in {file} cannot be used:{}", problems.concat())
        })
    }

    /// Reads a description from a file.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--contender: cannot read {}", path.display()))?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Those that come with the harness.
    pub(crate) fn built_in() -> Result<Vec<Self>> {
        BUILT_IN.iter().map(|(file, text)| Self::parse(file, text)).collect()
    }

    /// Its name in the report.
    pub(crate) fn name(&self) -> &str {
        &self.0.name.value
    }

    /// Whether it is another way to set up a contender that there is.
    pub(crate) fn is_variant(&self) -> bool {
        self.0.variant
    }

    /// Whether it takes part in a scenario.
    pub(crate) fn takes_part(&self, scenario: &str) -> bool {
        self.0.scenarios.contains_key(scenario)
    }

    /// Starts its programs.
    pub(crate) fn start(&self, scenario: &str, place: Place) -> Result<Contender> {
        self.up(scenario, place).with_context(|| self.name().to_owned())
    }

    fn up(&self, scenario: &str, place: Place) -> Result<Contender> {
        let way =
            self.0.scenarios.get(scenario).with_context(|| format!("it takes no part in {scenario}"))?;
        let lab = lab(0)?;
        let certificates = Certificates::issue(&lab)?;
        let mut processes = Vec::new();
        for name in &way.programs {
            let program =
                self.0.programs.get(&name.value).with_context(|| format!("no program {}", name.value))?;
            let machine =
                lab.node(if program.on == Side::Client { CLIENT.1 } else { place.server_node() })?;
            let directory = lab.log_directory().join(self.name()).join(&name.value);
            let values = values(&lab, place, machine, program.on, &directory, &certificates)?;
            let process = start(program, machine, &directory, &values);
            processes.push(process.with_context(|| format!("program {}", name.value))?);
        }
        let client_node = lab.node(CLIENT.1)?;
        let directory = lab.log_directory();
        let values = values(&lab, place, client_node, Side::Client, &directory, &certificates)?;
        let target = filled_address(&way.dial, &values)?;
        let stage = Stage::Plugin { _processes: processes, lab, encrypted: scenario == ENCRYPTED };
        Contender::new(self.name(), stage, place, Some(target))
    }
}

/// Writes the files of a program, starts it, and waits until it is ready.
fn start(program: &ProgramEntry, machine: &Machine, directory: &Path, values: &Values) -> Result<Process> {
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (name, text) in &program.files {
        let path = directory.join(name);
        std::fs::write(&path, fill(&text.value, values))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let command = find(&program.command.value)?;
    let arguments = program.args.iter().map(|argument| fill(&argument.value, values));
    let mut process = machine.program(command)?.args(arguments).current_dir(directory).spawn()?;
    let ready = filled_address(&program.ready, values)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let connect = || std::net::TcpStream::connect_timeout(&ready, Duration::from_secs(1));
        let Err(error) = machine.namespace().run(connect)? else { return Ok(process) };
        if let Some(status) = process.try_wait()? {
            bail!("it ended ({status}) before it was ready:\n{}", process.log());
        }
        ensure!(Instant::now() < end, "it takes no connection at {ready} ({error}):\n{}", process.log());
        std::thread::sleep(POLL);
    }
}

/// Where a command is: a path as it is, or a name looked for as the module says.
fn find(command: &str) -> Result<PathBuf> {
    if command.contains('/') {
        return Ok(command.into());
    }
    let variable = format!("MESH_{}", command.to_ascii_uppercase().replace('-', "_"));
    if let Some(path) = std::env::var_os(&variable) {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("the path of this program")?;
    // target/release/mesh-bench, or target/debug/deps/... in a test.
    let installed = own
        .ancestors()
        .skip(1)
        .take(4)
        .map(|above| above.join("tools").join(command).join("bin").join(command));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons are where only root's PATH leads.
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found =
        installed.chain(directories.map(|directory| directory.join(command))).find(|path| path.is_file());
    found.with_context(|| {
        format!("there is no program {command}: run `cargo xtask setup`, install it, or set {variable} to its path")
    })
}

/// The files of the identities that programs speak for.
struct Certificates {
    root: PathBuf,
    /// Of client and server.
    sides: [(String, PathBuf); 2],
}

impl Certificates {
    fn issue(lab: &Lab) -> Result<Self> {
        let directory = lab.log_directory().join("certificates");
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let authority = Authority::root("bench")?;
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        let root = directory.join("root.pem");
        write(&root, authority.root_pem())?;
        let side = |name: &str| -> Result<(String, PathBuf)> {
            let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
            let issued = authority.issue(&Leaf::workload(&identity))?;
            let stem = directory.join(name);
            write(&stem.with_extension("cert.pem"), &issued.chain)?;
            write(&stem.with_extension("key.pem"), &issued.key)?;
            write(&stem.with_extension("both.pem"), &format!("{}{}", issued.chain, issued.key))?;
            Ok((identity, stem))
        };
        Ok(Self { root, sides: [side("client")?, side("server")?] })
    }
}

fn values(
    lab: &Lab,
    place: Place,
    node: &Machine,
    side: Side,
    directory: &Path,
    certificates: &Certificates,
) -> Result<Values> {
    let ip = |machine: &Machine| address(machine, PORT).map(|address| address.ip().to_string());
    let [client, server] = &certificates.sides;
    let (_, own) = if side == Side::Client { client } else { server };
    let file = |extension| own.with_extension(extension).display().to_string();
    let cores = std::thread::available_parallelism().context("the number of cores")?;
    Ok(Values::from([
        ("node_ip", ip(node)?),
        ("client_node_ip", ip(lab.node(CLIENT.1)?)?),
        ("server_node_ip", ip(lab.node(place.server_node())?)?),
        ("client_pod_ip", ip(lab.pod(CLIENT.0)?)?),
        ("server_pod_ip", ip(lab.pod(place.server())?)?),
        ("port", PORT.to_string()),
        ("cores", cores.to_string()),
        ("dir", directory.display().to_string()),
        ("cert", file("cert.pem")),
        ("key", file("key.pem")),
        ("cert_and_key", file("both.pem")),
        ("root", certificates.root.display().to_string()),
        ("client_id", client.0.clone()),
        ("server_id", server.0.clone()),
    ]))
}

fn filled_address(text: &Spanned<String>, values: &Values) -> Result<SocketAddr> {
    let filled = fill(&text.value, values);
    filled.parse().with_context(|| format!("{:?} is {filled}, which is no address", text.value))
}
