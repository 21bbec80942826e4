//! What a running agent finds wrong with itself, after what is wrong with its node.

mod identity;

use std::time::{SystemTime, UNIX_EPOCH};

use super::api::{Check, ConfigOrigin, ConfigStatus, KubeletInfo, PodState, SteeringReport};
use super::state::AdminState;
use crate::connect_time::PodBalancing;

/// A control server that has been away for longer is worth a word.
const AWAY_TOO_LONG_SECONDS: u64 = 300;

impl AdminState {
    /// Everything that can be checked while the agent runs.
    pub(super) async fn checks(&self) -> Vec<Check> {
        let mut checks = self.host.check().await;
        match self.steering.report() {
            Ok(report) => {
                checks.push(attachments(&report));
                checks.push(listeners(&report, self.facts.workers));
                checks.push(spoofing(&report));
                checks.push(kubelet(&report));
            }
            Err(error) => checks.push(Check::fail(
                "kernel programs",
                error,
                "restart the agent; if that does not help, run `mesh-agent detach` first",
            )),
        }
        let config = self.config.status();
        checks.push(control_server(&config));
        checks.push(configuration(&config));
        checks.push(cache(&config));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        checks.extend(identity::checks(&self.identities.report(), now));
        checks.push(self.pods());
        checks.push(self.devices());
        checks.push(self.connect_time());
        checks.push(self.access_log());
        checks
    }

    fn pods(&self) -> Check {
        let (mut pending, mut failed, mut odd) = (Vec::new(), Vec::new(), Vec::new());
        for pod in self.pod_infos() {
            let described = || {
                format!(
                    "{}/{}: {}",
                    pod.namespace,
                    pod.name,
                    pod.detail.as_deref().unwrap_or("no reason known")
                )
            };
            match pod.state {
                PodState::Pending => pending.push(described()),
                PodState::Failed => failed.push(described()),
                PodState::Enrolled | PodState::Outside if pod.detail.is_some() => odd.push(described()),
                PodState::Enrolled | PodState::Outside => {}
            }
        }
        let name = "enrolment";
        if !failed.is_empty() {
            return Check::fail(name, failed.join("; "), "see `meshctl pods`; the agent keeps trying");
        }
        if !pending.is_empty() {
            return Check::warn(name, pending.join("; "), "wait: a starting pod gets its device last");
        }
        if !odd.is_empty() {
            return Check::warn(
                name,
                odd.join("; "),
                "correct the pods' labels and annotations; see `meshctl pods`",
            );
        }
        let pods = self.pod_counts();
        Check::ok(name, format!("{} of {} pods of this node are enrolled", pods.enrolled, pods.known))
    }

    fn connect_time(&self) -> Check {
        let name = "connect-time balancing";
        if !self.connect_time.is_on() {
            return Check::ok(name, "off: the agent balances all connections");
        }
        let states = self.connect_time.pods();
        let refused: Vec<_> = states
            .iter()
            .filter_map(|(uid, state)| match state {
                PodBalancing::Refused(error) => Some(format!("{uid}: {error}")),
                PodBalancing::Balanced | PodBalancing::NoCgroup => None,
            })
            .collect();
        if !refused.is_empty() {
            let advice = "the agent balances their connections; the kernel's reason may say what it lacks";
            return Check::warn(name, refused.join("; "), advice);
        }
        let balanced = states.iter().filter(|(_, state)| *state == PodBalancing::Balanced).count();
        let (all, rest) = (states.len(), states.len() - balanced);
        let rest = if rest == 0 { String::new() } else { format!("; {rest} have no cgroup2 of their own") };
        Check::ok(name, format!("{balanced} of {all} enrolled pods{rest}"))
    }

    fn devices(&self) -> Check {
        let name = "pod devices";
        let pods = self.pods.load();
        let lost: Vec<_> = pods
            .iter()
            .filter(|pod| pod.enrolled && pod.device.is_none())
            .map(|pod| format!("{}/{}", pod.namespace, pod.name))
            .collect();
        if lost.is_empty() {
            return Check::ok(name, "known for every enrolled pod: the source of each packet is checked");
        }
        Check::warn(
            name,
            format!("unknown for {}: anybody on the node may send with their addresses", lost.join(", ")),
            "the node needs a route or a neighbour entry for each pod's address; see `ip route get ADDRESS`",
        )
    }

    fn access_log(&self) -> Check {
        match self.telemetry.dropped_lines() {
            0 => Check::ok("access log", "no line was dropped"),
            dropped => Check::warn(
                "access log",
                format!("{dropped} lines were dropped: they came faster than they could be written"),
                "write to a faster disk (--access-log-file), or less (--access-log off)",
            ),
        }
    }
}

fn attachments(report: &SteeringReport) -> Check {
    let name = "attached devices";
    let failed: Vec<_> = report
        .attachments
        .iter()
        .filter_map(|attachment| Some(format!("{}: {}", attachment.device, attachment.error.as_ref()?)))
        .collect();
    if !failed.is_empty() {
        return Check::fail(
            name,
            failed.join("; "),
            "traffic of these devices passes the mesh by; see `meshctl bpf` and the agent's log",
        );
    }
    match report.attachments.len() {
        0 => {
            Check::fail(name, "none: nothing is steered", "see the agent's log for why nothing was attached")
        }
        count => Check::ok(name, format!("all {count}")),
    }
}

fn listeners(report: &SteeringReport, workers: usize) -> Check {
    let name = "listeners";
    match report.listeners {
        0 => Check::fail(
            name,
            "none: new connections pass the mesh by, or are dropped where a pod fails closed",
            "restart the agent; its log says why the listeners are gone",
        ),
        alive if alive < workers => Check::warn(
            name,
            format!("{alive} for {workers} workers: some workers have nothing to do"),
            "restart the agent; its log says why listeners are missing",
        ),
        alive => Check::ok(name, format!("{alive} for {workers} workers")),
    }
}

fn spoofing(report: &SteeringReport) -> Check {
    match report.counters.get(mesh_common::Outcome::Spoofed.name()).copied().unwrap_or_default() {
        0 => Check::ok("source addresses", "no packet came with the address of another pod"),
        dropped => Check::warn(
            "source addresses",
            format!("{dropped} packets were dropped: they came with the address of another pod"),
            "find the sender: a pod that forges addresses, or a device that moved without the agent noticing",
        ),
    }
}

fn kubelet(report: &SteeringReport) -> Check {
    let name = "kubelet";
    match &report.kubelet {
        KubeletInfo::Found(groups) => Check::ok(
            name,
            format!("in {}: of the node's processes it alone reaches pods past policy", groups.join(", ")),
        ),
        KubeletInfo::Gone => Check::warn(
            name,
            "its cgroup is not there: no process of the node reaches pods past policy, nor would a kubelet elsewhere",
            "start the kubelet, or name its cgroup with --kubelet-cgroup",
        ),
        KubeletInfo::Unknown => Check::warn(
            name,
            "its cgroup is not known: all processes of the node reach enrolled pods around policy, because probes must",
            "name the kubelet's cgroup with --kubelet-cgroup, and mount the node's cgroup2 hierarchy for the agent",
        ),
    }
}

fn control_server(config: &ConfigStatus) -> Check {
    let name = "control server";
    if let Some(server) = &config.connected {
        let Some(identifier) = &config.identifier else {
            return Check::ok(name, format!("connected to {server}"));
        };
        let connected = format!("connected to {server}: {identifier}");
        let ours = env!("CARGO_PKG_VERSION");
        return match identifier.strip_prefix("mesh-control ") {
            Some(version) if version != ours => Check::warn(
                name,
                format!("{connected}; this agent is of version {ours}"),
                "fine during an update; else give both images the same tag",
            ),
            _ => Check::ok(name, connected),
        };
    }
    let error = config.error.as_deref().unwrap_or("not connected yet");
    let mend = format!(
        "check that it runs and can be reached from here: {}. The agent goes on with what it knows and tries again",
        config.servers.join(", ")
    );
    match config.since_seconds {
        Some(away) if away < AWAY_TOO_LONG_SECONDS && config.origin != ConfigOrigin::None => {
            Check::warn(name, format!("away for {away} s: {error}"), mend)
        }
        _ => Check::fail(name, error, mend),
    }
}

fn configuration(config: &ConfigStatus) -> Check {
    let name = "configuration";
    if !config.rejected.is_empty() {
        let reasons: Vec<_> = config
            .rejected
            .iter()
            .map(|resource| format!("{}: {}", resource.name, resource.reason))
            .collect();
        return Check::warn(
            name,
            format!("{} refused; the last good version is in force: {}", reasons.len(), reasons.join("; ")),
            "correct the resources at their source",
        );
    }
    match config.origin {
        ConfigOrigin::None => {
            Check::fail(name, "none received and none on disk", "see the check of the control server")
        }
        ConfigOrigin::Cache => Check::warn(
            name,
            "the last good state on disk is in force: the control server has not answered since the start",
            "see the check of the control server",
        ),
        ConfigOrigin::Server => Check::ok(name, "from the control server"),
    }
}

fn cache(config: &ConfigStatus) -> Check {
    match &config.cache_error {
        None => Check::ok("last good state", "can be read and written"),
        Some(error) => Check::warn(
            "last good state",
            error,
            "the agent could not start from it while the control server is away; check the disk",
        ),
    }
}
