//! What can be set about the webhook, and about writing to the Kubernetes API.

use std::net::SocketAddr;

use clap::Args;
use rcgen::SanType;

use crate::authority::namespaced;
use crate::model::{ObjectName, is_subdomain};
use crate::settings::{any, server_name};

/// Settings as they are written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Validation and status in Kubernetes")]
#[group(skip)]
pub struct AdmissionArgs {
    /// ValidatingWebhookConfiguration by which the API server asks this server before it takes a policy; its caBundle is
    /// kept to the authority's roots. Without it no webhook is served
    #[arg(long, env = "MESH_CONTROL_WEBHOOK_CONFIGURATION", value_name = "NAME")]
    pub webhook_configuration: Option<String>,
    /// Address for the webhook
    #[arg(long, env = "MESH_CONTROL_WEBHOOK_ADDRESS", value_name = "ADDRESS:PORT", default_value_t = any(15017))]
    pub webhook_address: SocketAddr,
    /// DNS name or address that the API server knows the webhook by: service.namespace.svc. May be given several times
    #[arg(
        long = "webhook-name", env = "MESH_CONTROL_WEBHOOK_NAMES", value_name = "NAME", value_delimiter = ',',
        value_parser = server_name, default_value = "mesh-control.mesh-system.svc"
    )]
    pub webhook_names: Vec<SanType>,
    /// Write into the status of policies and entries whether they are in effect, and which parts are not
    #[arg(long, env = "MESH_CONTROL_WRITE_STATUS")]
    pub write_status: bool,
    /// Lease that the one of several servers holds which writes to the API
    #[arg(long, env = "MESH_CONTROL_LEADER_LEASE", value_name = "NAMESPACE/NAME", value_parser = namespaced)]
    pub leader_lease: Option<ObjectName>,
    /// Name of this server in the lease, which no other has [default: the host's name, which in a pod is the pod's]
    #[arg(long, env = "MESH_CONTROL_LEADER_IDENTITY", value_name = "NAME")]
    pub leader_identity: Option<String>,
}

/// The webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionSettings {
    /// Where it is served.
    pub address: SocketAddr,
    /// The ValidatingWebhookConfiguration that names it.
    pub configuration: String,
    /// What its certificate is for.
    pub names: Vec<SanType>,
}

/// What the one of several servers does that holds the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderSettings {
    /// The lease.
    pub lease: ObjectName,
    /// The name of this server in it.
    pub identity: String,
    /// Whether to write the status of policies and entries.
    pub write_status: bool,
}

impl AdmissionArgs {
    /// Checks everything and adds to the mistakes.
    pub(crate) fn check(
        self,
        authority: bool,
        mistakes: &mut Vec<String>,
    ) -> (Option<AdmissionSettings>, Option<LeaderSettings>) {
        let mut mistake = |wrong: bool, text: &str| {
            if wrong {
                mistakes.push(text.to_owned());
            }
        };
        let webhook = self.webhook_configuration.filter(|name| !name.is_empty());
        mistake(
            webhook.as_ref().is_some_and(|name| !is_subdomain(name)),
            "--webhook-configuration: that is no name of an object",
        );
        mistake(
            webhook.is_some() && !authority,
            "--webhook-configuration: the authority issues the webhook's certificate; set --ca-secret, --ca-dir or \
             --ca-files",
        );
        mistake(
            self.leader_lease.is_none() && (webhook.is_some() || self.write_status),
            "--webhook-configuration, --write-status: of several servers only one may write; set --leader-lease",
        );
        mistake(
            self.leader_lease.is_some() && webhook.is_none() && !self.write_status,
            "--leader-lease: there is nothing to write without --webhook-configuration or --write-status",
        );
        let host = || nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        let identity = self.leader_identity.filter(|name| !name.is_empty()).or_else(host);
        mistake(
            self.leader_lease.is_some() && identity.is_none(),
            "--leader-identity: this host has no name; give this server one",
        );
        let leader = self.leader_lease.zip(identity).map(|(lease, identity)| LeaderSettings {
            lease,
            identity,
            write_status: self.write_status,
        });
        let admission = webhook.map(|configuration| AdmissionSettings {
            address: self.webhook_address,
            configuration,
            names: self.webhook_names,
        });
        (admission, leader)
    }
}
