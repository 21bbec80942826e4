//! The command line: `run`, and workers that scenarios start inside of namespaces.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::bench::{Bench, Options};
use crate::report::{self, ShowOptions};
use crate::{hold, load};

/// Compares the mesh with direct connections and with its peers.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What this process is to do. Workers are hidden: they are started by scenarios, not by people.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the scenarios and report what they have measured
    Run(Options),
    /// Show an earlier run again, or compare it with another
    Show(ShowOptions),
    /// Take connections and hold them
    #[command(hide = true)]
    Accept(hold::AcceptOptions),
    /// Open connections and hold them
    #[command(hide = true)]
    Hold(hold::HoldOptions),
    /// Serve what `drive` asks for
    #[command(hide = true)]
    Serve(load::ServeOptions),
    /// Work, and measure it
    #[command(hide = true)]
    Drive(load::DriveOptions),
}

impl Command {
    /// Does it; the exit status says whether everything that was wanted has been measured.
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self {
            Self::Run(options) => return Bench::new(options)?.run(),
            Self::Show(options) => report::show(&options)?,
            Self::Accept(options) => hold::accept(&options)?,
            Self::Hold(options) => hold::hold(&options)?,
            Self::Serve(options) => load::serve(&options)?,
            Self::Drive(options) => load::drive(&options)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
