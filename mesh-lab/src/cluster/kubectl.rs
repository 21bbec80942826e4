//! Talking to the API, through kubectl: what tests say to a cluster is what its users would.

use std::io::Write;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Output, Program};

use super::credentials::{ADMIN, Credentials};
use super::wait::wait_until;
use super::{CONTROL, Cluster, ClusterError};

/// kubectl's own limits are shorter; this one is for a machine that is busy.
const LIMIT: Duration = Duration::from_secs(180);

impl Cluster {
    /// kubectl, as a user who may do everything, to be given arguments.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn kubectl_program(&self) -> Result<Program, ClusterError> {
        let program = self.lab.host(CONTROL)?.program(self.program("kubectl"))?;
        let program = self
            .kubectl_variables()
            .into_iter()
            .fold(program, |program, (name, value)| program.env(name, value));
        Ok(program.timeout(LIMIT))
    }

    /// The variables that make kubectl, or Helm, talk to this cluster, and keep what they cache with it.
    #[must_use]
    pub fn kubectl_variables(&self) -> [(&'static str, String); 3] {
        let data = self.data();
        [
            ("KUBECONFIG", Credentials::of(self).kubeconfig(ADMIN)),
            ("KUBECACHEDIR", data.join("kubectl").display().to_string()),
            ("HOME", data.display().to_string()),
        ]
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn kubectl<S: AsRef<str>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<String, ClusterError> {
        let arguments: Vec<String> = arguments.into_iter().map(|one| one.as_ref().to_owned()).collect();
        let output = self.kubectl_program()?.args(&arguments).output()?;
        succeeded(&format!("kubectl {}", arguments.join(" ")), output)
    }

    /// Applies manifests.
    ///
    /// # Errors
    /// When the API server refuses one of them; with its reason.
    pub fn apply(&self, manifests: &str) -> Result<(), ClusterError> {
        self.kubectl_with_input(&["apply", "--filename=-"], manifests).map(drop)
    }

    /// Deletes what manifests describe, and waits until it is gone; what is not there is no error.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn delete(&self, manifests: &str) -> Result<(), ClusterError> {
        let arguments = ["delete", "--ignore-not-found", "--wait", "--filename=-"];
        self.kubectl_with_input(&arguments, manifests).map(drop)
    }

    /// What the API has, as JSON: `kubectl get <arguments>`.
    ///
    /// # Errors
    /// When there is nothing of the kind.
    pub fn get(&self, arguments: &[&str]) -> Result<Value, ClusterError> {
        let text = self.kubectl(["get", "--output=json"].iter().chain(arguments))?;
        serde_json::from_str(&text).map_err(|error| ClusterError::Unreadable {
            command: format!("kubectl get {}", arguments.join(" ")),
            said: error.to_string(),
        })
    }

    /// Runs a program in a container: `target` is a pod, or `deployment/name` for any of its pods. A bad exit status is no error.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn exec(&self, namespace: &str, target: &str, command: &[&str]) -> Result<Output, ClusterError> {
        let arguments = ["exec", "--namespace", namespace, target, "--"];
        Ok(self.kubectl_program()?.args(arguments).args(command).output()?)
    }

    /// As [`Cluster::exec`], for what the program prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec_output(
        &self,
        namespace: &str,
        target: &str,
        command: &[&str],
    ) -> Result<String, ClusterError> {
        let output = self.exec(namespace, target, command)?;
        succeeded(&format!("{} (in {namespace}/{target})", command.join(" ")), output)
    }

    /// What the containers of a pod have written.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn logs(&self, namespace: &str, target: &str) -> Result<String, ClusterError> {
        self.kubectl(["logs", "--namespace", namespace, target, "--all-containers"])
    }

    /// Waits until all pods of a deployment, daemon set or stateful set are as it says, and ready.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn wait_for_rollout(&self, namespace: &str, target: &str) -> Result<(), ClusterError> {
        self.kubectl(["rollout", "status", "--namespace", namespace, target, "--timeout=120s"]).map(drop)
    }

    /// Waits until `look` finds something; what stood in the way last is in the error.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_until<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&Self) -> Result<T, String>,
    ) -> Result<T, ClusterError> {
        wait_until(what, within, || Ok(look(self)))
    }

    fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String, ClusterError> {
        let failed = |source| ClusterError::File { path: "a pipe to kubectl".into(), source };
        let (reader, mut writer) = std::io::pipe().map_err(failed)?;
        let program = self.kubectl_program()?.args(arguments).stdin(reader);
        let output = thread::scope(|scope| {
            // It ends with kubectl, whether that has read everything or not.
            scope.spawn(move || writer.write_all(input.as_bytes()));
            program.output()
        })?;
        succeeded(&format!("kubectl {}", arguments.join(" ")), output)
    }
}

/// What a program printed, if all is well.
pub(super) fn succeeded(command: &str, output: Output) -> Result<String, ClusterError> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = if output.stderr.trim().is_empty() { output.stdout } else { output.stderr };
    Err(ClusterError::Command { command: command.to_owned(), said: said.trim_end().to_owned() })
}
