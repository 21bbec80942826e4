//! `mesh-control`: serves the mesh's configuration, or checks manifests.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use mesh_control::authority::AuthorityCommand;
use mesh_control::control::Control;
use mesh_control::settings::{Cli, Command, LogFormat, Settings, ValidationFormat};
use mesh_control::source::files;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Validate { paths, output, root_namespace }) => {
            return validate(&paths, output, &root_namespace);
        }
        Some(Command::Ca { command }) => return authority(command),
        None => {}
    }
    log_to_stderr(&cli.serve.log_level, cli.serve.log_format)?;
    let settings = cli.serve.check()?;
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(settings))?;
    Ok(ExitCode::SUCCESS)
}

/// An agent is a connection; the soft limit of open files is often 1,024.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files: fewer agents may connect than --max-connections says");
    }
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut control = Control::start(settings).await?;
    tokio::select! {
        error = control.failed() => return Err(error.into()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    control.stop().await;
    Ok(())
}

fn validate(paths: &[PathBuf], output: ValidationFormat, root_namespace: &str) -> anyhow::Result<ExitCode> {
    let validation = files::validate(paths, std::io::stdin().lock(), root_namespace);
    let mut out = std::io::stdout().lock();
    match output {
        ValidationFormat::Text => {
            for problem in &validation.problems {
                writeln!(out, "{problem}")?;
            }
            writeln!(std::io::stderr().lock(), "{}", validation.summary())?;
        }
        ValidationFormat::Json => {
            serde_json::to_writer_pretty(&mut out, &validation)?;
            writeln!(out)?;
        }
    }
    Ok(if validation.refused() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn authority(command: AuthorityCommand) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = runtime.block_on(command.run())?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn log_to_stderr(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("--log-level: {filter:?} is no log filter"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
