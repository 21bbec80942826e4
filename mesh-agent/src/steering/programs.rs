//! The kernel programs: loading them, and what the kernel tells of them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

use aya::programs::{SchedClassifier, SkLookup, TestRun as _};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfLoader, TestRunOptions};
use serde::Serialize;

use super::SteeringError;
use super::maps::Maps;
use super::passage::Passages;
use super::pins::Pins;

/// The object built from `mesh-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf"));

pub(super) const STEER: &str = "steer";
pub(super) const PICK_LISTENER: &str = "pick_listener";

/// Both programs, loaded.
pub(super) struct Programs {
    object: Ebpf,
}

/// A loaded program, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProgramReport {
    /// Its name.
    pub name: &'static str,
    /// Its type, in the kernel's words.
    pub kind: &'static str,
    /// When it was loaded; the kernel may not say.
    pub loaded_at: Option<SystemTime>,
    /// Kernel-wide number, as bpftool shows it.
    pub id: u32,
    /// Hash of its instructions: the same program has the same on every node.
    pub tag: String,
    /// Memory it takes, in bytes.
    pub memory: u64,
    /// Instructions the verifier went through, of the million it allows. Unknown before Linux 5.16.
    pub verified_instructions: Option<u64>,
    /// Time it ran, all CPUs together, while [`RunTimeStatistics`] were on.
    pub run_time_ns: u64,
    /// How often it ran meanwhile.
    pub run_count: u64,
}

/// Makes the kernel measure every program's run time for as long as this lives. Costs two clock readings a run, so
/// it is for somebody who watches, not for always.
#[derive(Debug)]
pub struct RunTimeStatistics {
    _enabled: OwnedFd,
}

impl RunTimeStatistics {
    /// Starts measuring.
    ///
    /// # Errors
    /// If the kernel refuses; the right to BPF is needed.
    pub fn enable() -> io::Result<Self> {
        let enabled = enable_stats(Stats::RunTime).map_err(|error| error.io_error)?;
        Ok(Self { _enabled: enabled })
    }
}

/// Loads the programs on the pinned maps, making those that are not there.
pub(super) fn load(pins: &Pins) -> Result<(Programs, Maps, Passages), SteeringError> {
    let mut object = EbpfLoader::new()
        // The programs read no kernel structure whose layout varies, so the kernel's own type information,
        // megabytes to parse, is not needed.
        .btf(None)
        .default_map_pin_directory(pins.maps())
        .load(OBJECT)?;
    let maps = Maps::take(&mut object)?;
    let passages = Passages::adopt(&mut object)?;
    let mut programs = Programs { object };
    programs.steer()?.load().map_err(|source| SteeringError::Program { name: STEER, source })?;
    programs
        .pick_listener()?
        .load()
        .map_err(|source| SteeringError::Program { name: PICK_LISTENER, source })?;
    Ok((programs, maps, passages))
}

impl Programs {
    /// The program of the devices.
    pub(super) fn steer(&mut self) -> Result<&mut SchedClassifier, SteeringError> {
        let program = self.object.program_mut(STEER).and_then(|program| program.try_into().ok());
        program.ok_or(SteeringError::Missing(STEER))
    }

    /// The program of the network namespace.
    pub(super) fn pick_listener(&mut self) -> Result<&mut SkLookup, SteeringError> {
        let program = self.object.program_mut(PICK_LISTENER).and_then(|program| program.try_into().ok());
        program.ok_or(SteeringError::Missing(PICK_LISTENER))
    }

    /// Runs the program of the devices on a frame as if it had come in on `device`. The frame itself goes nowhere.
    pub(super) fn steer_as_if_received(&mut self, frame: &[u8], device: u32) -> Result<(), SteeringError> {
        /// `struct __sk_buff`, and where the interface index is in it.
        const CONTEXT: usize = 192;
        const INTERFACE: std::ops::Range<usize> = 40..44;
        let mut context = [0_u8; CONTEXT];
        if let Some(field) = context.get_mut(INTERFACE) {
            field.copy_from_slice(&device.to_ne_bytes());
        }
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
        let ran = self.steer()?.test_run(options);
        ran.map(drop).map_err(|source| SteeringError::Program { name: STEER, source })
    }

    /// What the kernel tells of both.
    pub(super) fn report(&self) -> Result<Vec<ProgramReport>, SteeringError> {
        [(STEER, "sched_cls"), (PICK_LISTENER, "sk_lookup")]
            .into_iter()
            .map(|(name, kind)| {
                let program = self.object.program(name).ok_or(SteeringError::Missing(name))?;
                let failed = |source| SteeringError::Program { name, source };
                let loaded_at = program.info().map_err(failed)?.loaded_at();
                let information = Information::of(program.fd().map_err(failed)?)?;
                Ok(report(name, kind, loaded_at, &information))
            })
            .collect()
    }
}

fn report(
    name: &'static str,
    kind: &'static str,
    loaded_at: Option<SystemTime>,
    information: &Information,
) -> ProgramReport {
    ProgramReport {
        name,
        kind,
        loaded_at,
        id: information.number("prog_id").and_then(|id| u32::try_from(id).ok()).unwrap_or_default(),
        tag: information.text("prog_tag").unwrap_or_default().to_owned(),
        memory: information.number("memlock").unwrap_or_default(),
        verified_instructions: information.number("verified_insns"),
        run_time_ns: information.number("run_time_ns").unwrap_or_default(),
        run_count: information.number("run_cnt").unwrap_or_default(),
    }
}

/// What `/proc/self/fdinfo` says of a kernel object: all that aya leaves out, in stable names and without
/// structures to declare.
pub(super) struct Information(String);

impl Information {
    pub(super) fn of(object: impl AsFd) -> Result<Self, SteeringError> {
        let path = PathBuf::from(format!("/proc/self/fdinfo/{}", object.as_fd().as_raw_fd()));
        fs::read_to_string(&path).map(Self).map_err(|source| SteeringError::Information { path, source })
    }

    /// Of the link with this id, which this process has open. The kernel would also tell by system call, but only
    /// who has CAP_SYS_ADMIN; and aya keeps the descriptor to itself.
    pub(super) fn of_link(id: u32) -> Option<Self> {
        let own = fs::read_dir("/proc/self/fdinfo").ok()?;
        own.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok().map(Self))
            .find(|information| information.number("link_id") == Some(id.into()))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim())
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.text(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests;
