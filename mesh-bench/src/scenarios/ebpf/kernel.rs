//! The system calls that run a kernel program on a made-up context, as often as one likes (`BPF_PROG_TEST_RUN`).
//!
//! aya has them for classifiers only, and on programs it has loaded itself.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::libc;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;

const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
const BPF_SK_LOOKUP: u32 = 36;

/// `union bpf_attr` for loading a program, as far as it is used.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach_type: u32,
}

/// `union bpf_attr` for running a program.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    return_value: u32,
    data_size: u32,
    data_size_out: u32,
    data: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size: u32,
    context_size_out: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// `union bpf_attr` for a handle of a program that is loaded.
#[repr(C)]
#[derive(Default)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// What a run is given: a classifier takes a packet, a look-up has none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) packet: &'a [u8],
    pub(super) context: &'a [u8],
}

/// How a run went.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ran {
    /// What the program returned, the last time.
    pub(super) returned: i32,
    /// How long it took on average, with the kernel's loop around it.
    pub(super) nanoseconds: u32,
}

/// A loaded program.
pub(super) struct Program(OwnedFd);

impl Program {
    /// The program with this number.
    pub(super) fn by_id(id: u32) -> Result<Self> {
        let mut attributes = ById { id, ..ById::default() };
        let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut attributes)
            .with_context(|| format!("cannot open kernel program {id}"))?;
        Ok(Self(owned(fd)?))
    }

    /// A classifier that lets every packet pass to the next program.
    pub(super) fn empty_classifier() -> Result<Self> {
        Self::empty(BPF_PROG_TYPE_SCHED_CLS, 0, -1)
    }

    /// A look-up program that leaves every look-up to the kernel.
    pub(super) fn empty_look_up() -> Result<Self> {
        Self::empty(BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, 1)
    }

    fn empty(kind: u32, attach_type: u32, returns: i32) -> Result<Self> {
        const MOVE_IMMEDIATE: u64 = 0xb7;
        const EXIT: u64 = 0x95;
        let immediate = u64::from(u32::from_ne_bytes(returns.to_ne_bytes()));
        let code = [MOVE_IMMEDIATE | immediate << 32, EXIT];
        let mut attributes = Load {
            kind,
            instructions: 2,
            code: code.as_ptr().addr() as u64,
            license: c"GPL".as_ptr().addr() as u64,
            attach_type,
            ..Load::default()
        };
        let fd = bpf(BPF_PROG_LOAD, &mut attributes).context("cannot load an empty kernel program")?;
        Ok(Self(owned(fd)?))
    }

    /// Runs it.
    pub(super) fn run(&self, input: Input<'_>, repeat: u32) -> Result<Ran> {
        let mut attributes = TestRun {
            program: u32::try_from(self.0.as_raw_fd())?,
            data_size: u32::try_from(input.packet.len())?,
            data: if input.packet.is_empty() { 0 } else { input.packet.as_ptr().addr() as u64 },
            context_size: u32::try_from(input.context.len())?,
            context: input.context.as_ptr().addr() as u64,
            repeat,
            ..TestRun::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut attributes).context("cannot run a kernel program on a made-up packet")?;
        let returned = i32::from_ne_bytes(attributes.return_value.to_ne_bytes());
        Ok(Ran { returned, nanoseconds: attributes.duration })
    }
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are a prefix of the command's `union bpf_attr`, whose rest the kernel takes as zero; the
    // memory they point to outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(fd)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
