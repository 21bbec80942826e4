//! The kernel programs: loading them, and what the kernel tells of them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::SystemTime;

use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, SchedClassifier, SkLookup, SockOps, TcAttachType, TestRun as _,
};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfLoader, TestRunOptions};
use serde::Serialize;

use super::SteeringError;
use super::connect::ConnectMaps;
use super::error::chain;
use super::maps::Maps;
use super::passage::Passages;
use super::pins::Pins;

/// The object built from `mesh-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf"));

pub(super) const STEER: &str = "steer";
pub(super) const GUARD: &str = "guard";
const DELIVER: &str = "deliver";
pub(super) const PICK_LISTENER: &str = "pick_listener";

/// The programs of a pod's cgroup: those that choose and name endpoints, and the one that remembers.
const SOCKET_PROGRAMS: [&str; 4] = ["connect4", "connect6", "getpeername4", "getpeername6"];
const OPENING: &str = "opening";

/// Where on a device a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// `steer`, where packets come in.
    Steer,
    /// `guard`, where packets leave.
    Guard,
    /// `deliver`, where the agent's packets come in.
    Deliver,
}

impl Hook {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Steer, Self::Guard, Self::Deliver];

    /// Name of the program.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Steer => STEER,
            Self::Guard => GUARD,
            Self::Deliver => DELIVER,
        }
    }

    /// The kernel's name of the place.
    pub(super) const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Steer | Self::Deliver => TcAttachType::Ingress,
            Self::Guard => TcAttachType::Egress,
        }
    }
}

/// All programs, loaded.
pub(super) struct Programs {
    object: Ebpf,
    /// Why the kernel does not take the programs of cgroups. The node can do without them.
    no_cgroup_programs: Option<String>,
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
pub(super) fn load(pins: &Pins) -> Result<(Programs, Maps, Passages, ConnectMaps), SteeringError> {
    let mut object = EbpfLoader::new()
        // The programs read no kernel structure whose layout varies, so the kernel's own type information,
        // megabytes to parse, is not needed.
        .btf(None)
        .default_map_pin_directory(pins.maps())
        .load(OBJECT)?;
    let maps = Maps::take(&mut object)?;
    let passages = Passages::adopt(&mut object)?;
    let connect = ConnectMaps::take(&mut object)?;
    let mut programs = Programs { object, no_cgroup_programs: None };
    for hook in Hook::ALL {
        let name = hook.program();
        programs.of_devices(hook)?.load().map_err(|source| SteeringError::Program { name, source })?;
    }
    programs
        .pick_listener()?
        .load()
        .map_err(|source| SteeringError::Program { name: PICK_LISTENER, source })?;
    programs.no_cgroup_programs = programs.load_cgroup_programs().err().map(|error| error.to_string());
    Ok((programs, maps, passages, connect))
}

impl Programs {
    /// A program of devices.
    pub(super) fn of_devices(&mut self, hook: Hook) -> Result<&mut SchedClassifier, SteeringError> {
        let name = hook.program();
        let program = self.object.program_mut(name).and_then(|program| program.try_into().ok());
        program.ok_or(SteeringError::Missing(name))
    }

    /// The program of the agent's network namespace.
    pub(super) fn pick_listener(&mut self) -> Result<&mut SkLookup, SteeringError> {
        let program = self.object.program_mut(PICK_LISTENER).and_then(|program| program.try_into().ok());
        program.ok_or(SteeringError::Missing(PICK_LISTENER))
    }

    /// Runs `steer` on a frame as if it had come in on `device`. The frame itself goes nowhere.
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
        let ran = self.of_devices(Hook::Steer)?.test_run(options);
        ran.map(drop).map_err(|source| SteeringError::Program { name: STEER, source })
    }

    /// Why no program can be attached to a cgroup; `None` where they can.
    pub(super) fn no_cgroup_programs(&self) -> Option<&str> {
        self.no_cgroup_programs.as_deref()
    }

    fn load_cgroup_programs(&mut self) -> Result<(), SteeringError> {
        for name in SOCKET_PROGRAMS {
            self.socket_program(name)?.load().map_err(|source| SteeringError::Program { name, source })?;
        }
        self.opening()?.load().map_err(|source| SteeringError::Program { name: OPENING, source })
    }

    /// Attaches all programs of cgroups to one; a link for each name.
    pub(super) fn attach_to_cgroup(
        &mut self,
        cgroup: &File,
    ) -> Result<Vec<(&'static str, FdLink)>, SteeringError> {
        let failed = |program: &'static str, error: &(dyn std::error::Error + 'static)| {
            SteeringError::Attach { program, target: "the cgroup".to_owned(), reason: chain(error) }
        };
        // Not `AllowMultiple`: links always stand beside others, and older kernels refuse the flag.
        let mode = CgroupAttachMode::Single;
        let mut links = Vec::new();
        for name in SOCKET_PROGRAMS {
            let program = self.socket_program(name)?;
            let link = program.attach(cgroup, mode).and_then(|id| program.take_link(id));
            let link = link.map_err(|error| failed(name, &error))?;
            links.push((name, FdLink::try_from(link).map_err(|error| failed(name, &error))?));
        }
        let program = self.opening()?;
        let link = program.attach(cgroup, mode).and_then(|id| program.take_link(id));
        let link = link.map_err(|error| failed(OPENING, &error))?;
        links.push((OPENING, FdLink::try_from(link).map_err(|error| failed(OPENING, &error))?));
        Ok(links)
    }

    fn socket_program(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, SteeringError> {
        let program = self.object.program_mut(name).and_then(|program| program.try_into().ok());
        program.ok_or(SteeringError::Missing(name))
    }

    fn opening(&mut self) -> Result<&mut SockOps, SteeringError> {
        let program = self.object.program_mut(OPENING).and_then(|program| program.try_into().ok());
        program.ok_or(SteeringError::Missing(OPENING))
    }

    /// What the kernel tells of all that are loaded.
    pub(super) fn report(&self) -> Result<Vec<ProgramReport>, SteeringError> {
        let of_cgroups = SOCKET_PROGRAMS.map(|name| (name, "cgroup_sock_addr"));
        let of_cgroups = of_cgroups.into_iter().chain([(OPENING, "sock_ops")]);
        let of_devices = Hook::ALL.map(|hook| (hook.program(), "sched_cls"));
        of_devices
            .into_iter()
            .chain([(PICK_LISTENER, "sk_lookup")])
            .chain(of_cgroups.filter(|_| self.no_cgroup_programs.is_none()))
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
