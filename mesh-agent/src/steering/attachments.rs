//! Attaching the programs, and keeping them attached.
//!
//! With tcx a program hangs on a *link*, which is pinned and lets the program be replaced in one step. Kernels
//! before 6.6 have clsact instead: a filter stays until it is removed, and is replaced by its number.

mod clsact;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::sk_lookup::SkLookupLink;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier};
use aya::sys::SyscallError;
use serde::Serialize;
use tracing::{debug, info, warn};

use super::SteeringError;
use super::devices::{Devices, Link};
use super::error::chain;
use super::members::Members;
use super::pins::{self, Pins};
use super::programs::{Hook, Information, PICK_LISTENER, Programs};

/// How programs are attached to devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// tcx where the kernel has it (Linux 6.6), else clsact.
    #[default]
    Auto,
    /// tcx, first of all programs there.
    Tcx,
    /// A clsact filter of the highest priority.
    Clsact,
}

/// A device that is steered, or should be, or one to the agent's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub device: String,
    /// How programs are attached.
    pub mode: AttachMode,
    /// Whether it leads to the agent's network namespace.
    pub to_agent: bool,
    /// Whether what leaves through it is guarded, too: the device of a pod that is or was enrolled.
    pub guarded: bool,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
    /// Uid of the enrolled pod behind it.
    pub pod: Option<String>,
    /// Why a program could not be attached; it is tried again.
    pub error: Option<String>,
}

/// The programs and where they are attached.
pub(super) struct Attachments {
    programs: Programs,
    pins: Pins,
    mode: AttachMode,
    /// By program and interface index: the way it is attached, or why it is not.
    attached: BTreeMap<(Hook, u32), Result<AttachMode, String>>,
    /// Not pinned: the network namespace goes with the agent.
    picks_listeners: Option<SkLookupLink>,
}

impl Attachments {
    pub(super) fn new(programs: Programs, pins: Pins, mode: AttachMode) -> Self {
        Self { programs, pins, mode, attached: BTreeMap::new(), picks_listeners: None }
    }

    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    pub(super) fn programs_mut(&mut self) -> &mut Programs {
        &mut self.programs
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// The programs, and where what they are attached to is pinned.
    pub(super) fn programs_and_pins(&mut self) -> (&mut Programs, &Pins) {
        (&mut self.programs, &self.pins)
    }

    /// Attaches `pick_listener` to the agent's network namespace, in which there is none: it is as new as the agent.
    pub(super) fn attach_pick_listener(&mut self, namespace: BorrowedFd<'_>) -> Result<(), SteeringError> {
        let failed = |error: ProgramError| SteeringError::Attach {
            program: PICK_LISTENER,
            target: "the agent's network namespace".to_owned(),
            reason: chain(&error),
        };
        let program = self.programs.pick_listener()?;
        let link = program.attach(namespace).and_then(|id| program.take_link(id)).map_err(failed)?;
        self.picks_listeners = Some(link);
        Ok(())
    }

    /// Attaches the programs to the devices that lack them, and forgets the devices that are gone.
    pub(super) fn sync(&mut self, devices: &Devices, members: &Members, gone: &[u32]) {
        let pinned: BTreeSet<u32> = Hook::ALL.into_iter().flat_map(|hook| self.pins.devices(hook)).collect();
        for index in gone.iter().chain(pinned.iter().filter(|index| devices.link(**index).is_none())) {
            self.forget(*index);
        }
        for (hook, link) in devices.attended() {
            self.attach(hook, link);
        }
        self.sync_guards(devices, members);
        // Only now does no program use the maps of an agent with another layout any more.
        if self.attached.values().all(Result::is_ok)
            && let Err(error) = self.pins.remove_other_maps()
        {
            warn!(%error, "former kernel maps stay");
        }
    }

    /// Attaches `guard` to the devices of pods that are or were enrolled, and to no others.
    pub(super) fn sync_guards(&mut self, devices: &Devices, members: &Members) {
        let wanted = members.guarded_devices();
        for link in wanted.iter().filter_map(|index| devices.link(*index)).filter(|link| link.is_steered()) {
            self.attach(Hook::Guard, link);
        }
        let ours = self.attached.keys().filter(|(hook, _)| *hook == Hook::Guard).map(|(_, index)| *index);
        let noted = self.pins.devices(Hook::Guard).into_iter().chain(self.pins.clsact_filters(Hook::Guard));
        let unwanted: BTreeSet<u32> = ours.chain(noted).filter(|index| !wanted.contains(index)).collect();
        for index in unwanted {
            self.remove_guard(index);
        }
    }

    fn remove_guard(&mut self, index: u32) {
        self.attached.remove(&(Hook::Guard, index));
        if self.pins.clsact_filters(Hook::Guard).contains(&index) {
            clsact::detach(Hook::Guard, index);
        }
        if let Err(error) = self.pins.forget_program(Hook::Guard, index) {
            warn!(index, %error, "a pin stays");
        }
    }

    /// Attaches a program to a device, unless that is done.
    pub(super) fn attach(&mut self, hook: Hook, link: &Link) {
        if let Some(Ok(_)) = self.attached.get(&(hook, link.index)) {
            return;
        }
        let program = hook.program();
        let result = match self.try_attach(hook, link) {
            Ok(mode) => {
                info!(device = %link.name, index = link.index, ?mode, program, "attached");
                Ok(mode)
            }
            Err(error) => {
                warn!(device = %link.name, %error, program, "not attached; will try again");
                Err(error.to_string())
            }
        };
        self.attached.insert((hook, link.index), result);
    }

    /// Forgets a device that is gone, with its pin: a link that stayed behind would follow a device that moved to
    /// another network namespace.
    pub(super) fn forget(&mut self, index: u32) {
        for hook in Hook::ALL {
            if self.attached.remove(&(hook, index)).is_some() {
                debug!(index, program = hook.program(), "device is gone");
            }
        }
        if let Err(error) = self.pins.forget_device(index) {
            warn!(index, %error, "a pin stays");
        }
    }

    pub(super) fn report(&self, devices: &Devices, members: &Members) -> Vec<Attachment> {
        let name = |index| devices.link(index).map(|link| link.name.clone());
        let at_ingress = self.attached.iter().filter(|((hook, _), _)| *hook != Hook::Guard);
        at_ingress
            .map(|((hook, index), result)| {
                let guard = self.attached.get(&(Hook::Guard, *index));
                let error = result.as_ref().err().or(guard.and_then(|guard| guard.as_ref().err()));
                Attachment {
                    index: *index,
                    device: name(*index).unwrap_or_default(),
                    mode: *result.as_ref().unwrap_or(&self.mode),
                    to_agent: *hook == Hook::Deliver,
                    guarded: guard.is_some_and(Result::is_ok),
                    bridge: devices.link(*index).and_then(|link| name(link.bridge?)),
                    pod: members.uid(devices.owner(*index)).map(|uid| uid.to_string()),
                    error: error.cloned(),
                }
            })
            .collect()
    }

    fn try_attach(&mut self, hook: Hook, link: &Link) -> Result<AttachMode, SteeringError> {
        let failed = |reason: String| SteeringError::Attach {
            program: hook.program(),
            target: link.name.clone(),
            reason,
        };
        if self.mode != AttachMode::Clsact {
            match self.attach_tcx(hook, link) {
                Ok(()) => return Ok(AttachMode::Tcx),
                // The kernel does not know tcx.
                Err(TcxError::Program(error)) if self.mode == AttachMode::Auto && is_invalid(&error) => {
                    info!("this kernel has no tcx; using clsact");
                    self.mode = AttachMode::Clsact;
                }
                Err(TcxError::Program(error)) => return Err(failed(chain(&error))),
                Err(TcxError::Pin(error)) => return Err(error),
            }
        }
        let program = self.programs.of_devices(hook)?;
        clsact::attach(program, hook, &self.pins, link.index, &link.name).map_err(failed)?;
        Ok(AttachMode::Clsact)
    }

    fn attach_tcx(&mut self, hook: Hook, link: &Link) -> Result<(), TcxError> {
        let pin = self.pins.device(hook, link.index);
        let program = self.programs.of_devices(hook)?;
        if adopt(program, &pin, link.index) {
            return Ok(());
        }
        // What is pinned there belongs to a device that is gone.
        pins::remove(&pin)?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program.attach_with_options(&link.name, hook.attach_type(), order)?;
        let not_pinned = |error: &(dyn std::error::Error + 'static)| SteeringError::Attach {
            program: hook.program(),
            target: pin.display().to_string(),
            reason: chain(error),
        };
        let attached = FdLink::try_from(program.take_link(id)?).map_err(|error| not_pinned(&error))?;
        attached.pin(&pin).map_err(|error| not_pinned(&error))?;
        Ok(())
    }
}

enum TcxError {
    Program(ProgramError),
    Pin(SteeringError),
}

impl From<ProgramError> for TcxError {
    fn from(error: ProgramError) -> Self {
        Self::Program(error)
    }
}

impl From<SteeringError> for TcxError {
    fn from(error: SteeringError) -> Self {
        Self::Pin(error)
    }
}

/// Replaces the program in the pinned link of an agent before, if there is one and it is this device's.
fn adopt(program: &mut SchedClassifier, pin: &Path, device: u32) -> bool {
    let Ok(pinned) = PinnedLink::from_pin(pin) else { return false };
    let link = FdLink::from(pinned);
    // The number may have been another device's, whose link is still pinned and attached to nothing.
    let attached_to = link.info().ok().and_then(|info| Information::of_link(info.id())?.number("ifindex"));
    attached_to == Some(device.into())
        && SchedClassifierLink::try_from(link).is_ok_and(|link| {
            // The pin keeps the link; the descriptor is not needed.
            program.attach_to_link(link).and_then(|id| program.take_link(id)).is_ok()
        })
}

/// `EINVAL`: the kernel knows no such attach type.
fn is_invalid(error: &ProgramError) -> bool {
    matches!(error, ProgramError::SyscallError(SyscallError { io_error, .. })
        if io_error.kind() == ErrorKind::InvalidInput)
}

/// Detaches everything that is pinned or noted below `directory`.
pub(super) fn detach_all(directory: &Path) -> Result<Vec<PathBuf>, SteeringError> {
    let pins = Pins::existing(directory);
    for hook in Hook::ALL {
        pins.clsact_filters(hook).into_iter().for_each(|index| clsact::detach(hook, index));
    }
    pins.clsact_qdiscs().into_iter().for_each(|index| clsact::remove_own_qdisc(&pins, index));
    pins.remove_all()
}
