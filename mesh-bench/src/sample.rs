//! What was measured.

use serde::{Serialize, Serializer};

use crate::metric::Metric;

/// One figure of one round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// The scenario, such as `two-nodes-mtls`.
    pub(crate) scenario: &'static str,
    /// Who did the work, such as `direct` or `mesh-agent`; plug-ins have names of their own.
    pub(crate) contender: String,
    /// What was measured; in the JSON by name, as its row tells the unit.
    #[serde(serialize_with = "name")]
    pub(crate) metric: Metric,
    /// The round, from 0. Samples of one round are compared with each other.
    pub(crate) round: usize,
    /// In the metric's unit.
    pub(crate) value: f64,
}

fn name<S: Serializer>(metric: &Metric, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(metric.name)
}
