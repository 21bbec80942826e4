//! Packages of Debian and Ubuntu.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use anyhow::{Context, Result, bail};

use super::{Missing, Purpose, Remedy};
use crate::{
    process, progress,
    workspace::{Workspace, find_program},
};

/// Programs that packages bring.
struct Need {
    what: &'static str,
    why: &'static str,
    programs: &'static [&'static str],
    packages: &'static [&'static str],
}

const FOR_BUILDING: &[Need] = &[Need {
    what: "C compiler",
    why: "links programs, builds aws-lc (TLS) and bpf-linker",
    programs: &["cc", "c++"],
    packages: &["gcc", "g++", "libc6-dev"],
}];

const FOR_TESTING: &[Need] = &[
    Need {
        what: "ip",
        why: "looks at what a test leaves behind",
        programs: &["ip"],
        packages: &["iproute2"],
    },
    Need {
        what: "curl",
        why: "an HTTP client in tests and the demo",
        programs: &["curl"],
        packages: &["curl", "ca-certificates"],
    },
    Need {
        what: "nginx",
        why: "an HTTP server in tests and the demo",
        programs: &["nginx"],
        packages: &["nginx-light"],
    },
    Need {
        what: "redis",
        why: "a server and its client in tests and the demo",
        programs: &["redis-server", "redis-cli"],
        packages: &["redis-server", "redis-tools"],
    },
    Need {
        what: "PostgreSQL",
        why: "a server and its client in tests and the demo",
        programs: &["postgres", "psql"],
        packages: &["postgresql", "postgresql-client"],
    },
    Need { what: "h2load", why: "HTTP load in tests", programs: &["h2load"], packages: &["nghttp2-client"] },
    Need {
        what: "ps, sysctl",
        why: "look at processes and sysctls",
        programs: &["ps", "sysctl"],
        packages: &["procps"],
    },
];

const FOR_MEASURING: &[Need] = &[Need {
    what: "HAProxy",
    why: "a peer in the benchmarks",
    programs: &["haproxy"],
    packages: &["haproxy"],
}];

const FOR_CLUSTERING: &[Need] = &[
    Need { what: "etcd", why: "the store of test clusters", programs: &["etcd"], packages: &["etcd-server"] },
    Need {
        what: "containerd, runc",
        why: "run the containers of test clusters",
        programs: &["containerd", "ctr", "runc"],
        packages: &["containerd", "runc"],
    },
    Need {
        what: "CNI plugins",
        why: "connect the pods of test clusters",
        programs: &["ptp", "bridge", "host-local", "portmap"],
        packages: &["containernetworking-plugins"],
    },
    Need {
        what: "iptables, nft, conntrack",
        why: "kube-proxy in test clusters",
        programs: &["iptables", "nft", "conntrack"],
        packages: &["iptables", "nftables", "conntrack"],
    },
    Need {
        what: "busybox",
        why: "the shell of pods in test clusters",
        programs: &["busybox"],
        packages: &["busybox-static"],
    },
];

/// The needs that packages meet and that are not met.
pub(super) fn missing(purpose: Purpose) -> Vec<Missing> {
    let needs = [
        (Purpose::Building, FOR_BUILDING),
        (Purpose::Testing, FOR_TESTING),
        (Purpose::Measuring, FOR_MEASURING),
        (Purpose::Clustering, FOR_CLUSTERING),
    ];
    let needs =
        needs.into_iter().filter(|(needed, _)| purpose.includes(*needed)).flat_map(|(_, needs)| needs);
    let unmet = needs.filter(|need| !need.programs.iter().all(|program| is_installed(program)));
    let missing = |need: &Need| Missing {
        what: need.what.into(),
        why: need.why,
        remedy: Remedy::Packages(need.packages.to_vec()),
    };
    unmet.map(missing).collect()
}

fn is_installed(program: &str) -> bool {
    // Debian keeps PostgreSQL's server programs out of `PATH`, one folder per version, and CNI's plugins.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    find_program(program).is_some()
        || Path::new("/usr/lib/cni").join(program).exists()
        || versions.into_iter().any(|version| version.path().join("bin").join(program).exists())
}

/// Installs packages, or says which command does where we may not.
pub(super) fn install(workspace: &Workspace, packages: BTreeSet<&str>) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let names = packages.iter().copied().collect::<Vec<_>>().join(" ");
    let by_hand = format!("apt-get update && apt-get install --no-install-recommends {names}");
    if find_program("apt-get").is_none() {
        bail!(
            "only Debian's and Ubuntu's packages are known here; install what these contain, by your system's \
             names, and run the task again: {names}"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "packages are missing and only root may install them: run\n\n    sudo sh -c '{by_hand}'\n\n\
             and the task again"
        );
    }
    update(workspace);
    let strangers = SERVICES.into_iter().filter(|service| !has_service(service)).collect::<Vec<_>>();
    let _idle = KeepServicesIdle::start()?;
    let arguments = [
        "-y",
        "-o",
        "DPkg::Lock::Timeout=600",
        "-o",
        "Dpkg::Options::=--force-confold",
        "install",
        "--no-install-recommends",
    ];
    let mut command = workspace.command("apt-get");
    command.args(arguments).args(&packages).env("DEBIAN_FRONTEND", "noninteractive");
    process::quietly(workspace, &format!("{} packages", packages.len()), &mut command)
        .with_context(|| format!("packages could not be installed; by hand: {by_hand}"))?;
    keep_off_at_boot(workspace, strangers.into_iter().filter(|service| has_service(service)));
    Ok(())
}

/// Brings the package lists up to date. A failure is not the end: the lists may be good enough.
fn update(workspace: &Workspace) {
    let mut command = workspace.command("apt-get");
    command.args(["-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3", "update"]);
    if process::quietly(workspace, "package lists", &mut command).is_err() {
        progress::note("the package lists are not up to date; trying with those that are here");
    }
}

/// The services of the packages we install. Tests and benchmarks start their own servers in namespaces of their own.
const SERVICES: [&str; 6] = ["nginx", "redis-server", "postgresql", "haproxy", "etcd", "containerd"];

fn has_service(name: &str) -> bool {
    Path::new("/lib/systemd/system").join(name).with_extension("service").exists()
}

/// Services that came with our packages must not start at boot either.
fn keep_off_at_boot(workspace: &Workspace, new: impl Iterator<Item = &'static str>) {
    if !Path::new("/run/systemd/system").exists() {
        return;
    }
    for service in new {
        if process::succeeds(workspace.command("systemctl").args(["disable", service])) {
            progress::note(format_args!(
                "installed {service} for tests and benchmarks: it was not started and will not start at boot"
            ));
        }
    }
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const OURS: &str = "#!/bin/sh\n\
     # Written by `cargo xtask setup` while it installs packages. If it does not run, remove this file.\n\
     exit 101\n";

/// Keeps packages' services from being started while it lives, by the switch that Debian has for it. An
/// administrator's own policy stays.
struct KeepServicesIdle {
    written: bool,
}

impl KeepServicesIdle {
    fn start() -> Result<Self> {
        // One of ours is what a set-up that was killed has left: write it anew, and remove it at the end.
        if fs::read_to_string(POLICY).is_ok_and(|policy| policy == OURS) {
            fs::remove_file(POLICY).with_context(|| format!("cannot replace {POLICY}"))?;
        }
        match OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY) {
            Ok(mut file) => {
                file.write_all(OURS.as_bytes()).with_context(|| format!("cannot write {POLICY}"))?;
                Ok(Self { written: true })
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { written: false }),
            Err(error) => Err(error).with_context(|| format!("cannot write {POLICY}")),
        }
    }
}

impl Drop for KeepServicesIdle {
    fn drop(&mut self) {
        if self.written && fs::remove_file(POLICY).is_err() {
            progress::note(format_args!(
                "could not remove {POLICY}: remove it, or packages will not start their services"
            ));
        }
    }
}
