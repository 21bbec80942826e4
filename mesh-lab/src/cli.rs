//! The command line.

mod cluster;
mod labs;
mod load;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::demo::{self, DemoArguments};
use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_lab::echo::any_address;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Labs of nodes and pods out of network namespaces.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a lab; it stays until `down`, or with --foreground as long as this process
    Up {
        /// The topology, in YAML
        file: PathBuf,
        /// Another name than the file's
        #[arg(long)]
        name: Option<String>,
        /// Stay, and remove the lab at SIGINT or SIGTERM
        #[arg(long)]
        foreground: bool,
        #[command(flatten)]
        format: Format,
    },
    /// End every program in a lab and remove it
    Down {
        /// The lab
        #[arg(required_unless_present = "all_stale")]
        name: Option<String>,
        /// Remove the labs whose owners have died
        #[arg(long, conflicts_with = "name")]
        all_stale: bool,
    },
    /// Show the labs of this machine
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Show the machines of a lab
    Show {
        /// The lab
        name: String,
        #[command(flatten)]
        format: Format,
    },
    /// Run a program in a node, pod or host of a lab
    Exec {
        /// The lab
        lab: String,
        /// The node, pod or host
        machine: String,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Kubernetes clusters, for tests and for looking around
    Cluster(cluster::ClusterArguments),
    /// Serve: say which pod answers, whom it sees and over what; echo what is sent
    Echo {
        /// Where to listen: PORT for both families, or ADDRESS:PORT
        #[arg(long, required = true, value_parser = listen_addresses)]
        listen: Vec<Listen>,
        /// The name in the answers
        #[arg(long, env = "POD_NAME", default_value = "echo")]
        name: String,
        /// Serve UDP too, on the same ports
        #[arg(long)]
        udp: bool,
    },
    /// Show what the mesh does, on the nodes and pods of a lab
    Demo(DemoArguments),
    /// Send requests, and tell who answered
    Traffic {
        #[command(subcommand)]
        target: TrafficTarget,
    },
}

#[derive(Debug, Subcommand)]
enum TrafficTarget {
    /// GET requests
    Http {
        /// As in http://10.77.1.2:8080/path
        url: String,
        /// Speak HTTP/2 with prior knowledge
        #[arg(long)]
        http2: bool,
        /// A header, as in "name: value"
        #[arg(long)]
        header: Vec<String>,
        #[command(flatten)]
        options: TrafficOptions,
    },
    /// The line `who` to an echo server
    Tcp {
        /// As in 10.77.1.2:9000
        address: String,
        #[command(flatten)]
        options: TrafficOptions,
    },
}

#[derive(Debug, Args)]
struct TrafficOptions {
    /// Connections at a time
    #[arg(long, short, default_value_t = 1)]
    connections: usize,
    /// Requests a second, over all connections [default: as many as possible]
    #[arg(long, short)]
    rate: Option<f64>,
    /// End after so many requests
    #[arg(long, short = 'n')]
    requests: Option<u64>,
    /// End after so many seconds [default: 10, unless --requests is given]
    #[arg(long, short, value_parser = seconds)]
    duration: Option<Duration>,
    /// Open a connection for every request
    #[arg(long)]
    new_connection_per_request: bool,
    /// Seconds that one request may take
    #[arg(long, default_value = "5", value_parser = seconds)]
    timeout: Duration,
    /// Begin once one request was answered, and fail if none is within so many seconds
    #[arg(long, value_parser = seconds)]
    wait: Option<Duration>,
    /// Print what happens as it happens, a line of JSON per interval
    #[arg(long)]
    follow: bool,
    /// Seconds between the lines of --follow
    #[arg(long, default_value = "1", value_parser = seconds)]
    interval: Duration,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Args)]
struct Format {
    /// How to print the result
    #[arg(long, short, value_enum, default_value_t = OutputFormat::Table)]
    output: OutputFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// For people
    Table,
    /// For programs
    Json,
}

/// The addresses behind one `--listen`.
#[derive(Debug, Clone)]
struct Listen(Vec<SocketAddr>);

fn listen_addresses(text: &str) -> Result<Listen, String> {
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Ok(Listen(any_address(port).to_vec()));
    }
    let address =
        text.parse().map_err(|_| "use a port, or an address such as 0.0.0.0:8080 or [::]:8080".to_owned())?;
    Ok(Listen(vec![address]))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.trim_end_matches('s').parse::<f64>().map_err(|error| error.to_string())?;
    Duration::try_from_secs_f64(number)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "use a number of seconds above 0".to_owned())
}

/// Does what the command line says.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Up { file, name, foreground, format } => {
            labs::up(&file, name.as_deref(), foreground, format.output)?
        }
        Command::Down { name: Some(name), .. } => mesh_lab::state::remove(&name)?,
        Command::Down { name: None, .. } => labs::down_stale()?,
        Command::List { format } => labs::list(format.output)?,
        Command::Show { name, format } => labs::show(&name, format.output)?,
        Command::Exec { lab, machine, command } => return Err(labs::exec(&lab, &machine, &command)),
        Command::Cluster(arguments) => cluster::run(arguments)?,
        Command::Demo(arguments) => demo::run(&arguments)?,
        Command::Echo { listen, name, udp } => {
            let addresses: Vec<SocketAddr> = listen.into_iter().flat_map(|listen| listen.0).collect();
            load::echo(&name, &addresses, udp)?;
        }
        Command::Traffic { target } => return load::traffic(target),
    }
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot make a runtime")
}

/// A token that SIGINT and SIGTERM cancel.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let listen = |kind| -> anyhow::Result<Signal> { signal(kind).context("cannot listen to signals") };
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}
