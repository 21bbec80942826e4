//! A steady load from inside a pod, for as long as a test disturbs the cluster; it tells in the end how many requests have failed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::traffic::{Progress, Report};

use super::{Cluster, ClusterError};

/// The image with this crate's program, an echo server and traffic generator, and busybox.
pub const TEST_IMAGE: &str = "localhost/mesh-lab:test";
/// A load that nobody stops ends by itself.
const LONGEST: Duration = Duration::from_secs(900);
/// What has no answer by then has failed. That it comes is what counts, not when.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the pod may take to be there, or to sum up.
const TURN: Duration = Duration::from_secs(60);

/// What to send, from where.
#[derive(Debug, Clone)]
pub struct SteadyLoad {
    namespace: String,
    name: String,
    labels: Vec<(String, String)>,
    node: Option<String>,
    target: Vec<String>,
    rate: u32,
    connections: u32,
    new_connection_per_request: bool,
}

impl SteadyLoad {
    /// HTTP requests to a URL, from a pod of this name.
    #[must_use]
    pub fn http(namespace: &str, name: &str, url: &str) -> Self {
        Self::new(namespace, name, ["http", url])
    }

    /// Lines to a TCP echo server, from a pod of this name.
    #[must_use]
    pub fn tcp(namespace: &str, name: &str, address: &str) -> Self {
        Self::new(namespace, name, ["tcp", address])
    }

    fn new(namespace: &str, name: &str, target: [&str; 2]) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: Vec::new(),
            node: None,
            target: target.map(str::to_owned).to_vec(),
            rate: 25,
            connections: 4,
            new_connection_per_request: false,
        }
    }

    /// Requests a second, over all connections; 25 unless told otherwise.
    #[must_use]
    pub fn rate(self, rate: u32) -> Self {
        Self { rate, ..self }
    }

    /// Connections at a time; 4 unless told otherwise.
    #[must_use]
    pub fn connections(self, connections: u32) -> Self {
        Self { connections, ..self }
    }

    /// Opens a connection for every request.
    #[must_use]
    pub fn new_connection_per_request(self) -> Self {
        Self { new_connection_per_request: true, ..self }
    }

    /// Sends from this node.
    #[must_use]
    pub fn from_node(self, node: &str) -> Self {
        Self { node: Some(node.to_owned()), ..self }
    }

    /// Gives the pod a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    fn manifest(&self) -> String {
        let mut arguments = vec!["traffic".to_owned()];
        arguments.extend(self.target.clone());
        let options = [
            format!("--rate={}", self.rate),
            format!("--connections={}", self.connections),
            format!("--duration={}", LONGEST.as_secs()),
            format!("--timeout={}", ANSWER.as_secs()),
            // The kube-proxy of its node may be late to know a new service.
            format!("--wait={}", TURN.as_secs()),
            "--follow".to_owned(),
            "--output=json".to_owned(),
        ];
        arguments.extend(options);
        if self.new_connection_per_request {
            arguments.push("--new-connection-per-request".to_owned());
        }
        let mut labels = serde_json::Map::from_iter([("app".to_owned(), json!(self.name))]);
        labels.extend(self.labels.iter().map(|(name, value)| (name.clone(), json!(value))));
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": self.name, "namespace": self.namespace, "labels": labels },
            "spec": {
                "restartPolicy": "Never",
                "nodeName": self.node,
                "containers": [{
                    "name": "load",
                    "image": TEST_IMAGE,
                    "imagePullPolicy": "Never",
                    "args": arguments,
                }],
            },
        })
        .to_string()
    }
}

impl Cluster {
    /// Starts a load and waits for its first good answers.
    ///
    /// # Errors
    /// When the pod does not start, or there are no good answers.
    pub fn start_load(&self, load: &SteadyLoad) -> Result<PodLoad<'_>, ClusterError> {
        self.apply(&load.manifest())?;
        let running = PodLoad { cluster: self, namespace: load.namespace.clone(), name: load.name.clone() };
        running.wait_for("the first good answers", TURN, |progress| progress.succeeded > 0)?;
        Ok(running)
    }
}

/// A load that runs in a pod.
#[derive(Debug)]
pub struct PodLoad<'a> {
    cluster: &'a Cluster,
    namespace: String,
    name: String,
}

/// A line of what `mesh-lab traffic --follow` prints.
#[derive(Debug)]
enum Line {
    Report(Report),
    Progress(Progress),
}

impl Line {
    /// By hand: of an untagged enum serde would not read maps whose keys are numbers.
    fn parse(text: &str) -> serde_json::Result<Self> {
        match serde_json::from_str(text)? {
            Value::Object(mut line) if line.contains_key("report") => {
                serde_json::from_value(line.remove("report").unwrap_or_default()).map(Self::Report)
            }
            line => serde_json::from_value(line).map(Self::Progress),
        }
    }
}

impl PodLoad<'_> {
    /// What has happened until now, at most a second ago.
    ///
    /// # Errors
    /// When the pod has said nothing yet.
    pub fn progress(&self) -> Result<Progress, ClusterError> {
        match self.last_line()? {
            Line::Progress(progress) => Ok(progress),
            Line::Report(report) => Err(self.unreadable(format!("the load has ended:\n{report}"))),
        }
    }

    /// Waits until the load has got somewhere.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_for(
        &self,
        what: &str,
        within: Duration,
        reached: impl Fn(&Progress) -> bool,
    ) -> Result<Progress, ClusterError> {
        self.cluster.wait_until(&format!("{} {}: {what}", self.namespace, self.name), within, |_| match self
            .progress()
        {
            Ok(progress) if reached(&progress) => Ok(progress),
            Ok(Progress { succeeded, failed, lately, .. }) => {
                Err(format!("{succeeded} good answers, {failed} failed {:?}", lately.errors))
            }
            Err(error) => Err(error.to_string()),
        })
    }

    /// Waits until so many good answers more have come.
    ///
    /// # Errors
    /// When they do not in time.
    pub fn wait_for_more(&self, answers: u64, within: Duration) -> Result<Progress, ClusterError> {
        let goal = self.progress()?.succeeded + answers;
        self.wait_for(&format!("{answers} good answers more"), within, |progress| progress.succeeded >= goal)
    }

    /// Ends it, and tells what happened.
    ///
    /// # Errors
    /// When the pod is not there any more.
    pub fn stop(self) -> Result<Report, ClusterError> {
        // The first process of a container takes the signals that it has asked for only; it has for this one.
        self.cluster.exec_output(&self.namespace, &self.name, &["kill", "-TERM", "1"])?;
        let what = format!("{} {} has summed up", self.namespace, self.name);
        let report = self.cluster.wait_until(&what, TURN, |_| match self.last_line() {
            Ok(Line::Report(report)) => Ok(report),
            Ok(Line::Progress(_)) => Err("it goes on".to_owned()),
            Err(error) => Err(error.to_string()),
        })?;
        self.cluster.kubectl(["delete", "pod", "--namespace", &self.namespace, &self.name, "--now"])?;
        Ok(report)
    }

    fn last_line(&self) -> Result<Line, ClusterError> {
        let text = self.cluster.kubectl(["logs", "--namespace", &self.namespace, &self.name, "--tail=1"])?;
        Line::parse(&text).map_err(|error| self.unreadable(format!("{error} in {text:?}")))
    }

    fn unreadable(&self, said: String) -> ClusterError {
        ClusterError::Unreadable {
            command: format!("mesh-lab traffic in {}/{}", self.namespace, self.name),
            said,
        }
    }
}
