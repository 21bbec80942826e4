//! `up`, `down`, `list`, `show`, `exec`.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use mesh_lab::state::{self, Record};
use mesh_lab::{Kind, Lab, Topology};

use super::OutputFormat;

pub(super) fn up(
    file: &Path,
    name: Option<&str>,
    foreground: bool,
    format: OutputFormat,
) -> anyhow::Result<()> {
    let mut topology = Topology::read(file)?;
    if let Some(name) = name {
        topology = topology.named(name)?;
    }
    if foreground {
        return up_in_foreground(topology, format);
    }
    let name = topology.name.clone();
    Lab::up(topology)?.keep()?;
    show(&name, format)
}

/// Builds a lab that lives as long as this process.
fn up_in_foreground(topology: Topology, format: OutputFormat) -> anyhow::Result<()> {
    let lab = Lab::up(topology)?;
    let runtime = super::runtime()?;
    // Before anybody is told that the lab is there, and may ask for its end.
    let stop = runtime.block_on(async { super::stop_on_signal() })?;
    show(lab.name(), format)?;
    runtime.block_on(stop.cancelled());
    Ok(lab.down()?)
}

pub(super) fn down_stale() -> anyhow::Result<()> {
    for name in state::remove_stale()? {
        println!("removed {name}");
    }
    Ok(())
}

pub(super) fn list(format: OutputFormat) -> anyhow::Result<()> {
    let records = state::list()?;
    if format == OutputFormat::Json {
        return print_json(&records);
    }
    let mut rows = vec![["LAB", "STATE", "NODES", "PODS", "HOSTS"].map(str::to_owned).to_vec()];
    rows.extend(records.iter().map(|record| {
        let topology = &record.topology;
        let counts = [topology.nodes.len(), topology.pods().count(), topology.hosts.len()];
        let mut row = vec![topology.name.clone(), state_of(record)];
        row.extend(counts.iter().map(ToString::to_string));
        row
    }));
    print_table(&rows)
}

fn state_of(record: &Record) -> String {
    match record.owner {
        None => "kept".to_owned(),
        Some(owner) if record.stale() => format!("stale: process {} has died", owner.pid),
        Some(owner) => format!("of process {}", owner.pid),
    }
}

pub(super) fn show(name: &str, format: OutputFormat) -> anyhow::Result<()> {
    let lab = Lab::open(name)?;
    if format == OutputFormat::Json {
        return print_json(lab.topology());
    }
    let mut rows =
        vec![["MACHINE", "KIND", "NODE", "ADDRESSES", "NETWORK NAMESPACE"].map(str::to_owned).to_vec()];
    rows.extend(lab.machines().map(|machine| {
        let (kind, node) = match machine.kind() {
            Kind::Node => ("node", ""),
            Kind::Pod { node, .. } => ("pod", node.as_str()),
            Kind::Host => ("host", ""),
        };
        let namespace = machine.namespace().name();
        [machine.name(), kind, node, &machine.addresses().to_string(), namespace].map(str::to_owned).to_vec()
    }));
    print_table(&rows)
}

/// Becomes the program; returns only if that fails.
pub(super) fn exec(lab: &str, machine: &str, command: &[OsString]) -> anyhow::Error {
    let become_program = || -> anyhow::Result<std::convert::Infallible> {
        let lab = Lab::open(lab)?;
        let machine = lab.machine(machine)?;
        machine.enter().with_context(|| format!("cannot enter {}", machine.name()))?;
        let (program, arguments) = command.split_first().context("no program given")?;
        let error = Command::new(program).args(arguments).exec();
        Err(error).with_context(|| format!("cannot run {}", program.display()))
    };
    match become_program() {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(())
}

/// Prints columns as wide as their widest cell.
pub(super) fn print_table(rows: &[Vec<String>]) -> anyhow::Result<()> {
    let columns = rows.first().map_or(0, Vec::len);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<usize> =
        (0..columns).map(|column| cells(column).map(String::len).max().unwrap_or(0)).collect();
    let mut out = std::io::stdout().lock();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}
