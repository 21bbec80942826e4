//! What the kernel and the node must offer, looked at before anything is changed.
//!
//! The same list serves the agent's start, which stops at the first [`Status::Fail`], and `meshctl check`. A check
//! tries the thing itself where that leaves no trace, rather than compare version numbers: distributions backport
//! and leave out.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use aya::programs::ProgramType;
use futures::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::tc::TcAttribute;
use nix::sys::statfs;
use nix::unistd::{AccessFlags, access};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::{HostError, HostSettings, capabilities, rules, untrack};

#[cfg(test)]
mod tests;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// The agent runs, with the restriction that `detail` names.
    Warn,
    /// The agent cannot run.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// How to mend it; empty if there is nothing to mend.
    pub mend: &'static str,
}

impl Check {
    pub(super) fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), mend: "" }
    }

    pub(super) fn warn(name: &'static str, detail: impl Into<String>, mend: &'static str) -> Self {
        Self { name, status: Status::Warn, detail: detail.into(), mend }
    }

    pub(super) fn fail(name: &'static str, detail: impl Into<String>, mend: &'static str) -> Self {
        Self { name, status: Status::Fail, detail: detail.into(), mend }
    }
}

/// What keeps the agent from running here.
#[derive(Debug, thiserror::Error)]
#[error("this node cannot run the agent:{}", .0.iter().map(|check| format!("\n  {}: {}; {}", check.name, check.detail, check.mend)).collect::<String>())]
pub struct Unfit(pub Vec<Check>);

/// Fails if one of `checks` did.
pub fn require(checks: &[Check]) -> Result<(), Unfit> {
    let failed: Vec<Check> = checks.iter().filter(|check| check.status == Status::Fail).cloned().collect();
    if failed.is_empty() { Ok(()) } else { Err(Unfit(failed)) }
}

/// Looks at everything. `bpffs` is where kernel objects are to be pinned.
pub async fn check(settings: &HostSettings, bpffs: &Path) -> Vec<Check> {
    let mut checks = vec![
        version(),
        clock(),
        held_capabilities(),
        program("bpf sched_cls", ProgramType::SchedClassifier),
        program("bpf sk_lookup", ProgramType::SkLookup),
        pin_directory(bpffs),
        transparent_sockets(),
        sysctls_writable(settings),
        nf_tables(),
        ipv6(settings),
    ];
    checks.extend(forwarding(settings));
    checks.extend(conflicting_rules(settings).await);
    checks.extend(other_meshes());
    checks.push(other_programs().await);
    checks
}

fn version() -> Check {
    const NAME: &str = "kernel version";
    let release = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    let Ok(release) = release else {
        return Check::warn(NAME, "unknown", "");
    };
    match parse_version(&release) {
        Some(version) if version >= (6, 6) => Check::ok(NAME, release),
        Some(version) if version >= (6, 1) => {
            Check::ok(NAME, format!("{release}: programs are attached through clsact, tcx came with 6.6"))
        }
        _ => Check::warn(NAME, format!("{release} is untested"), "use Linux 6.1 or later"),
    }
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A clock that was never set makes certificates invalid and logs useless. It cannot be before the time this very
/// program was put on the disk.
fn clock() -> Check {
    const NAME: &str = "clock";
    let installed = fs::metadata("/proc/self/exe").and_then(|program| program.modified());
    match installed.map(|installed| SystemTime::now().duration_since(installed)) {
        Ok(Err(early)) => Check::warn(
            NAME,
            format!("at least {} s behind", early.duration().as_secs()),
            "set it, and keep it with chrony or systemd-timesyncd",
        ),
        Ok(Ok(_)) | Err(_) => Check::ok(NAME, "plausible"),
    }
}

fn held_capabilities() -> Check {
    const NAME: &str = "capabilities";
    let held = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
    let missing: Vec<_> = capabilities::NEEDED.iter().filter(|needed| !held.contains(needed)).collect();
    if missing.is_empty() {
        return Check::ok(NAME, format!("{:?}", capabilities::NEEDED));
    }
    Check::fail(
        NAME,
        format!("missing {missing:?}"),
        "run as root, or add them to the container's securityContext",
    )
}

/// Loads a program of two instructions.
fn program(name: &'static str, kind: ProgramType) -> Check {
    match aya::sys::is_program_supported(kind) {
        Ok(true) => Check::ok(name, "loads"),
        Ok(false) => Check::fail(
            name,
            "the kernel does not know this kind of program",
            "use a kernel with CONFIG_BPF_SYSCALL, CONFIG_NET_CLS_ACT and CONFIG_INET",
        ),
        Err(error) => Check::fail(
            name,
            format!("does not load: {error}"),
            "grant CAP_BPF and CAP_NET_ADMIN, and allow bpf(2) in seccomp and LSM policies",
        ),
    }
}

/// The directory, or what will be its parent, is on a BPF file system.
fn pin_directory(bpffs: &Path) -> Check {
    const NAME: &str = "bpffs";
    const MEND: &str =
        "mount -t bpf bpf /sys/fs/bpf, and mount it into the container with Bidirectional propagation";
    let Some(existing) = bpffs.ancestors().find(|path| path.exists()) else {
        return Check::fail(NAME, format!("{} does not exist", bpffs.display()), MEND);
    };
    match statfs::statfs(existing) {
        Ok(found) if found.filesystem_type() == statfs::BPF_FS_MAGIC => {
            Check::ok(NAME, bpffs.display().to_string())
        }
        Ok(_) => Check::fail(NAME, format!("{} is not on a BPF file system", existing.display()), MEND),
        Err(error) => Check::fail(NAME, format!("{}: {error}", existing.display()), MEND),
    }
}

fn transparent_sockets() -> Check {
    const NAME: &str = "transparent sockets";
    let attempt = || -> io::Result<()> {
        Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?.set_ip_transparent_v4(true)
    };
    match attempt() {
        Ok(()) => Check::ok(NAME, "available"),
        Err(error) => Check::fail(NAME, format!("IP_TRANSPARENT: {error}"), "grant CAP_NET_ADMIN"),
    }
}

/// A container without privileges sees /proc/sys read-only, whatever its capabilities.
fn sysctls_writable(settings: &HostSettings) -> Check {
    const NAME: &str = "sysctls";
    let path = settings.proc_sys.join("net/ipv4/tcp_tw_reuse");
    match access(&path, AccessFlags::W_OK) {
        Ok(()) => Check::ok(NAME, format!("{} is writable", settings.proc_sys.display())),
        Err(error) => Check::fail(
            NAME,
            format!("{}: {error}", path.display()),
            "mount the node's /proc into the container and point the agent at its sys directory",
        ),
    }
}

fn nf_tables() -> Check {
    const NAME: &str = "nf_tables";
    match untrack::installed() {
        Ok(true) => Check::ok(NAME, "the agent's connections are untracked"),
        Ok(false) => Check::ok(NAME, "no table of the agent yet"),
        Err(error) => Check::warn(
            NAME,
            format!("{error}: kube-proxy's rules would see the agent's connections"),
            "load the kernel modules nf_tables and nft_ct",
        ),
    }
}

fn ipv6(settings: &HostSettings) -> Check {
    const NAME: &str = "ipv6";
    match fs::read_to_string(settings.proc_sys.join("net/ipv6/conf/all/disable_ipv6")) {
        Ok(value) if value.trim() == "0" => Check::ok(NAME, "available"),
        Ok(_) => Check::warn(
            NAME,
            "disabled: IPv6 connections do not reach the agent",
            "sysctl -w net.ipv6.conf.all.disable_ipv6=0, if pods have IPv6 addresses",
        ),
        Err(_) => Check::warn(
            NAME,
            "not in this kernel",
            "boot without ipv6.disable=1, if pods have IPv6 addresses",
        ),
    }
}

/// Pods reach each other through the node even unsteered, or there is no pod network at all.
fn forwarding(settings: &HostSettings) -> Vec<Check> {
    [("ipv4 forwarding", "net/ipv4/ip_forward"), ("ipv6 forwarding", "net/ipv6/conf/all/forwarding")]
        .into_iter()
        .filter_map(|(name, path)| {
            let value = fs::read_to_string(settings.proc_sys.join(path)).ok()?;
            Some(match value.trim() {
                "0" => Check::warn(
                    name,
                    "off: unsteered packets do not pass this node",
                    "let the CNI plugin turn it on, if pods have addresses of this family",
                ),
                _ => Check::ok(name, "on"),
            })
        })
        .collect()
}

/// Policy rules that look at the bits of our marks.
async fn conflicting_rules(settings: &HostSettings) -> Vec<Check> {
    const NAME: &str = "mark";
    let mask = settings.capture_mark.mask;
    match rules::on_marks(settings.capture_mark).await {
        Ok(conflicts) if conflicts.is_empty() => {
            vec![Check::ok(NAME, format!("bits {mask:#x} are ours alone"))]
        }
        Ok(conflicts) => conflicts
            .into_iter()
            .map(|conflict| {
                Check::warn(
                    NAME,
                    format!("a policy rule of another program matches bits of {mask:#x}: {conflict}"),
                    "choose other bits for the agent's marks",
                )
            })
            .collect(),
        Err(error) => vec![Check::fail(NAME, error.to_string(), "grant CAP_NET_ADMIN")],
    }
}

/// Filters of others on devices, as far as they are clsact's: which tcx programs there are, only CAP_SYS_ADMIN may ask.
async fn other_programs() -> Check {
    const NAME: &str = "programs of others";
    match foreign_filters().await {
        Ok(devices) if devices.is_empty() => Check::ok(NAME, "no clsact filters on the node's devices"),
        // Where there is no tcx, the agent's own are of this kind.
        Ok(_) if !has_tcx() => Check::ok(NAME, "cannot be told from the agent's own on this kernel"),
        Ok(devices) => Check::warn(
            NAME,
            format!(
                "clsact filters on {}: packets that the agent steers do not reach them",
                devices.join(", ")
            ),
            "fine for a CNI's own accounting and policies; another mesh's must go. See `tc filter show dev DEVICE ingress`",
        ),
        Err(error) => Check::warn(NAME, error.to_string(), "grant CAP_NET_ADMIN"),
    }
}

fn has_tcx() -> bool {
    let release = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    release.ok().and_then(|release| parse_version(&release)).is_some_and(|version| version >= (6, 6))
}

/// The names of the devices that have clsact.
async fn foreign_filters() -> Result<Vec<String>, HostError> {
    let doing = "listing the queueing disciplines";
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(HostError::netlink(doing))?;
    let connection = tokio::spawn(connection);
    let asked = async {
        let links: Vec<_> = netlink.link().get().execute().try_collect().await?;
        let disciplines: Vec<_> = netlink.qdisc().get().execute().try_collect().await?;
        let is_clsact =
            |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "clsact");
        let with: HashSet<_> = disciplines
            .iter()
            .filter(|discipline| discipline.attributes.iter().any(is_clsact))
            .filter_map(|discipline| u32::try_from(discipline.header.index).ok())
            .collect();
        let name = |link: &LinkMessage| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            })
        };
        Ok::<_, rtnetlink::Error>(
            links.iter().filter(|link| with.contains(&link.header.index)).filter_map(name).collect(),
        )
    };
    let found = asked.await;
    connection.abort();
    found.map_err(|error| HostError::netlink(doing)(io::Error::other(error)))
}

/// Other programs that redirect pods' traffic. Both at once on one pod would chase its connections in circles.
fn other_meshes() -> Vec<Check> {
    let found = [
        (
            "istio ztunnel",
            "/var/run/ztunnel/ztunnel.sock",
            "runs here: it redirects enrolled pods too",
            "remove istio-cni and ztunnel from nodes with this agent",
        ),
        (
            "cilium",
            "/sys/class/net/cilium_host",
            "runs here: programs of both are on the pods' devices, and Cilium may short-cut them",
            "set bpf.hostLegacyRouting=true and cni.exclusive=false, and turn Cilium's L7 proxy off",
        ),
    ];
    found
        .into_iter()
        .filter(|(_, path, ..)| Path::new(path).exists())
        .map(|(name, _, detail, mend)| Check::warn(name, detail, mend))
        .collect()
}
