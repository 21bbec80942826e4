//! `meshctl status`: one look.

use std::io;

use crate::admin::api::{ConfigOrigin, ConfigStatus, Status};

use super::screen::{Screen, bad, dubious, emphasis, faint, good};
use super::text::{age_seconds, bytes, plural};

pub(super) fn print(screen: &mut Screen, status: &Status) -> io::Result<()> {
    let node = emphasis(&status.node);
    if status.health.ready {
        screen.line(&format!("{} {node} is {}", good("●"), good("ready")))?;
    } else {
        screen.line(&format!("{} {node} is {}", bad("●"), bad("not ready")))?;
        for reason in &status.health.missing {
            screen.line(&format!("  {reason}"))?;
        }
    }
    screen.blank()?;
    field(screen, "agent", &agent(status))?;
    field(screen, "steering", &format!("on {}", plural(status.attached_devices, "device")))?;
    field(screen, "pods", &pods(status))?;
    field(
        screen,
        "connections",
        &format!("{} outbound, {} inbound", status.connections.outbound, status.connections.inbound),
    )?;
    let mesh = &status.mesh;
    field(
        screen,
        "mesh",
        &format!(
            "{}, {} {}",
            plural(mesh.workloads, "workload"),
            plural(mesh.services, "service"),
            faint(&format!("(revision {})", mesh.revision))
        ),
    )?;
    for (index, line) in configuration(&status.config).iter().enumerate() {
        field(screen, if index == 0 { "configuration" } else { "" }, line)?;
    }
    field(screen, "log", &status.log_filter)
}

fn field(screen: &mut Screen, name: &str, value: &str) -> io::Result<()> {
    screen.line(&format!("  {}  {value}", faint(&format!("{name:<13}"))))
}

fn agent(status: &Status) -> String {
    format!(
        "{}, up {}, pid {}, {}, {}",
        status.version.version,
        age_seconds(status.uptime_seconds),
        status.pid,
        plural(status.workers, "worker"),
        bytes(status.memory_bytes)
    )
}

fn pods(status: &Status) -> String {
    let pods = &status.pods;
    let counts = format!("{} enrolled of {}", pods.enrolled, pods.known);
    match pods.without_device {
        0 => counts,
        lost => format!("{counts}, {}", dubious(&format!("{lost} without a known device"))),
    }
}

fn configuration(config: &ConfigStatus) -> Vec<String> {
    let since = config.since_seconds.map_or_else(String::new, |since| format!(" for {}", age_seconds(since)));
    let mut lines = vec![match (&config.connected, config.origin) {
        (Some(server), _) => format!("{} to {server}{since}", good("connected")),
        (None, ConfigOrigin::None) => bad("none yet: no control server has answered"),
        (None, ConfigOrigin::Cache) => {
            dubious(&format!("the last good state on disk; control server away{since}"))
        }
        (None, ConfigOrigin::Server) => {
            dubious(&format!("control server away{since}; the last good state is in force"))
        }
    }];
    if config.connected.is_none() {
        lines.extend(config.error.clone());
    }
    if let Some(age) = config.last_change_seconds {
        let when = if age == 0 { "just now".into() } else { format!("{} ago", age_seconds(age)) };
        lines.push(format!("last change {when}"));
    }
    if !config.rejected.is_empty() {
        lines.push(dubious(&format!(
            "{} refused, see meshctl check",
            plural(config.rejected.len(), "resource")
        )));
    }
    lines
}
