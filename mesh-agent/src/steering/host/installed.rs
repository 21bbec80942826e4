//! Whether what an agent put on the node is still there: others flush rules, reload firewalls and reset sysctls.

use super::kernel::Check;
use super::sysctls::Sysctls;
use super::{HostSettings, Untracking, namespace, untrack};

const RESTART: &str = "somebody else removed it; restart the agent, which puts it back";

/// Looks at everything that [`HostState::install`](super::HostState::install) put there.
pub async fn check(settings: &HostSettings) -> Vec<Check> {
    vec![devices().await, untracking(settings), sysctls(settings)]
}

async fn devices() -> Check {
    const NAME: &str = "agent's devices";
    match namespace::missing().await {
        Ok(missing) if missing.is_empty() => {
            Check::ok(NAME, format!("{} and {} are up", namespace::STEERED, namespace::AROUND))
        }
        Ok(missing) => Check::fail(NAME, missing.join(", "), RESTART),
        Err(error) => Check::warn(NAME, error.to_string(), "grant CAP_NET_ADMIN"),
    }
}

fn untracking(settings: &HostSettings) -> Check {
    const NAME: &str = "untracking";
    match (settings.untracking, untrack::installed()) {
        (Untracking::Off, _) => Check::ok(NAME, "off, as told"),
        (Untracking::Auto, Ok(true)) => {
            Check::ok(NAME, "what the agent sends from clients' addresses bypasses connection tracking")
        }
        (Untracking::Auto, Ok(false)) => Check::warn(
            NAME,
            "no table of the agent: where kube-proxy runs, its rules drop what the agent sends to other nodes",
            RESTART,
        ),
        (Untracking::Auto, Err(error)) => {
            Check::warn(NAME, error.to_string(), "load the kernel modules nf_tables and nft_ct")
        }
    }
}

fn sysctls(settings: &HostSettings) -> Check {
    const NAME: &str = "sysctl values";
    let sysctls = Sysctls::new(&settings.proc_sys);
    let wanted = match sysctls.wanted(settings.port_range) {
        Ok(wanted) => wanted,
        Err(error) => return Check::warn(NAME, error.to_string(), "see the check of the sysctls"),
    };
    let wrong: Vec<_> = wanted
        .iter()
        .filter_map(|(name, ours)| {
            let current = sysctls.read(name).unwrap_or_else(|error| error.to_string());
            (current != *ours).then(|| format!("{name} is {current}, not {ours}"))
        })
        .collect();
    if wrong.is_empty() {
        return Check::ok(NAME, format!("all {} as they should be", wanted.len()));
    }
    Check::fail(
        NAME,
        wrong.join("; "),
        "somebody else sets them, often a file in /etc/sysctl.d; correct that and restart the agent",
    )
}

#[cfg(test)]
mod tests {
    use super::super::HostState;
    use super::super::kernel::Status;
    use super::super::namespace::{AgentNamespace, NamespaceThread};
    use super::super::testing::{AGENT, CAPTURE, in_namespace_async, shell};
    use super::*;

    fn status(checks: &[Check], name: &str) -> Status {
        checks.iter().find(|check| check.name == name).map(|check| check.status).unwrap()
    }

    #[test]
    fn what_somebody_removed_is_missed() {
        in_namespace_async(async || {
            let directory = tempfile::tempdir().unwrap();
            let settings = HostSettings::new(CAPTURE, AGENT, directory.path());
            assert_eq!(status(&check(&settings).await, "agent's devices"), Status::Fail);

            let state = HostState::install(&settings).unwrap();
            let thread = NamespaceThread::start().unwrap();
            let _namespace = AgentNamespace::connect(thread, &settings).await.unwrap();
            let checks = check(&settings).await;
            assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:?}");

            shell("ip link set mesh-steered down && ip link del mesh-around");
            shell("sysctl -qw net.ipv4.tcp_tw_reuse=0");
            let checks = check(&settings).await;
            assert_eq!(status(&checks, "agent's devices"), Status::Fail);
            assert_eq!(status(&checks, "sysctl values"), Status::Fail);
            assert_eq!(checks[0].detail, "mesh-steered is down, mesh-around is not there");
            state.remove().await.unwrap();
        });
    }
}
