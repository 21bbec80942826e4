//! The node's debugging command: asks the agent over its admin socket and shows the answer to people (tables) or
//! programs (`-o json`, the types of [`crate::admin::api`]).

mod bpf;
mod check;
mod client;
mod connections;
mod explain;
mod identities;
mod pods;
mod policies;
mod screen;
mod services;
mod status;
mod table;
mod text;
mod workloads;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use serde::Serialize;

use crate::admin::api::{LogFilter, Version, path};
use client::{Client, ClientError};
use screen::{Screen, bad, emphasis, faint};

/// Shows what the mesh does on this node, and why.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: GlobalArgs,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct GlobalArgs {
    /// Admin socket of the agent.
    #[arg(
        long,
        env = "MESH_ADMIN_SOCKET",
        value_name = "PATH",
        default_value = "/run/mesh-agent/admin.sock",
        global = true
    )]
    socket: PathBuf,

    /// Tables for people, JSON for programs.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table", global = true)]
    output: Output,

    /// When to use colours; auto: on a terminal, unless NO_COLOR is set.
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto", global = true)]
    color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Is everything in order?
    Status,
    /// What is wrong on this node, and how to mend it. Exits with 1 when something is.
    Check,
    /// Pods of this node, in the mesh or not.
    Pods(pods::PodsArgs),
    /// Workloads of the mesh that the agent knows.
    Workloads(workloads::WorkloadsArgs),
    /// Services of the mesh that the agent knows.
    Services(services::ServicesArgs),
    /// Connections that are open now: who, where, bytes, age.
    Connections(connections::ConnectionsArgs),
    /// Identities of this node's pods: certificates, who issued them, when they are renewed.
    Identities(identities::IdentitiesArgs),
    /// Policies that apply to the pods of this node, in the order they are evaluated in.
    Policies(policies::PoliciesArgs),
    /// What would happen to a connection, and why.
    Explain(explain::ExplainArgs),
    /// Kernel programs: where they are attached, what they count and what they cost.
    Bpf(bpf::BpfArgs),
    /// Everything the agent knows, as one JSON object.
    Dump,
    /// Shows or changes what the agent logs.
    Log {
        /// A level (error, warn, info, debug, trace) or directives such as `info,mesh_agent::proxy=trace`.
        #[arg(value_name = "LEVEL")]
        filter: Option<String>,
    },
    /// Prints the completions of a shell.
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Versions of meshctl and of the agent.
    Version,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum MeshctlError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
    #[error("cannot write JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl MeshctlError {
    /// Whoever read the output has seen enough.
    fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            Self::Json(error) => error.io_error_kind() == Some(io::ErrorKind::BrokenPipe),
            Self::Client(_) => false,
        }
    }
}

/// Runs `meshctl` with the arguments of the process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(code) => code,
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            let mut screen = Screen::stderr(cli.global.color);
            // Nobody to tell that nobody can be told.
            let _ = report(&mut screen, &error);
            ExitCode::FAILURE
        }
    }
}

fn report(screen: &mut Screen, error: &MeshctlError) -> io::Result<()> {
    let error = error.to_string();
    let mut lines = error.lines();
    screen.line(&format!("{} {}", bad("error:"), lines.next().unwrap_or_default()))?;
    for line in lines {
        screen.line(&format!("  {line}"))?;
    }
    screen.flush()
}

fn run(cli: &Cli) -> Result<ExitCode, MeshctlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(execute(cli))
}

async fn execute(cli: &Cli) -> Result<ExitCode, MeshctlError> {
    let client = Client::new(&cli.global.socket);
    let context = Context { client, output: cli.global.output, color: cli.global.color };
    match &cli.command {
        Command::Status => context.show(path::STATUS, status::print).await?,
        Command::Check => return check::run(&context).await,
        Command::Pods(args) => pods::run(&context, args).await?,
        Command::Workloads(args) => workloads::run(&context, args).await?,
        Command::Services(args) => services::run(&context, args).await?,
        Command::Connections(args) => connections::run(&context, args).await?,
        Command::Identities(args) => identities::run(&context, args).await?,
        Command::Policies(args) => policies::run(&context, args).await?,
        Command::Explain(args) => explain::run(&context, args).await?,
        Command::Bpf(args) => bpf::run(&context, args).await?,
        Command::Dump => {
            let everything: serde_json::Value = context.client.get(path::DUMP).await?;
            context.print_json(&everything)?;
        }
        Command::Log { filter } => log(&context, filter.as_deref()).await?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "meshctl", &mut script);
            io::Write::write_all(&mut io::stdout(), &script)?;
        }
        Command::Version => version(&context).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn log(context: &Context, filter: Option<&str>) -> Result<(), MeshctlError> {
    let current: LogFilter = match filter {
        Some(filter) => context.client.put(path::LOG, &LogFilter { filter: filter.into() }).await?,
        None => context.client.get(path::LOG).await?,
    };
    context.print(&current, |screen, current| {
        screen.line(&format!("the agent logs {}", emphasis(&current.filter)))
    })
}

#[derive(Serialize)]
struct Versions {
    meshctl: String,
    agent: Option<Version>,
}

async fn version(context: &Context) -> Result<(), MeshctlError> {
    let agent = match context.client.get::<crate::admin::api::Status>(path::STATUS).await {
        Ok(status) => Some(status.version),
        Err(ClientError::NotRunning { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let versions = Versions { meshctl: env!("CARGO_PKG_VERSION").into(), agent };
    context.print(&versions, |screen, versions| {
        screen.line(&format!("meshctl  {}", versions.meshctl))?;
        match &versions.agent {
            Some(agent) => screen.line(&format!(
                "agent    {} {}",
                agent.version,
                faint(&format!("(kernel maps version {})", agent.kernel_abi))
            )),
            None => screen.line(&format!("agent    {}", faint("not running here"))),
        }
    })
}

/// What every command needs.
struct Context {
    client: Client,
    output: Output,
    color: Color,
}

impl Context {
    /// Asks for `path` and prints the answer.
    async fn show<T: Serialize + serde::de::DeserializeOwned>(
        &self,
        path: &str,
        print: impl FnOnce(&mut Screen, &T) -> io::Result<()>,
    ) -> Result<(), MeshctlError> {
        let answer: T = self.client.get(path).await?;
        self.print(&answer, print)
    }

    /// Prints for whoever reads.
    fn print<T: Serialize>(
        &self,
        answer: &T,
        print: impl FnOnce(&mut Screen, &T) -> io::Result<()>,
    ) -> Result<(), MeshctlError> {
        match self.output {
            Output::Json => self.print_json(answer),
            Output::Table => {
                let mut screen = Screen::stdout(self.color);
                print(&mut screen, answer)?;
                Ok(screen.flush()?)
            }
        }
    }

    fn print_json<T: Serialize>(&self, answer: &T) -> Result<(), MeshctlError> {
        let mut text = serde_json::to_vec_pretty(answer)?;
        text.push(b'\n');
        let mut out = io::stdout().lock();
        io::Write::write_all(&mut out, &text)?;
        Ok(io::Write::flush(&mut out)?)
    }
}

/// How often a view that follows is drawn anew.
const REFRESH: Duration = Duration::from_secs(1);
