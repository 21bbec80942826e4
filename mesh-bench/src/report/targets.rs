//! What the mesh has set out to reach, and whether it does.
//!
//! Ratios are to `direct` in the same run on two cores. The figures of peers are what was known when the targets were set, of
//! ztunnel and of a pair of Envoys that speak HBONE; peers that take part in a run have their own figures in it.

use super::Report;
use super::figure;
use super::rows::{Row, Spread};
use crate::bench::DIRECT;

const AGENT: &str = "mesh-agent";
const CONTROL: &str = "mesh-control";
/// What is this close to `direct` is as good: neighbours on a machine cost more than that.
const NOISE: f64 = 0.03;

/// Something to reach.
#[derive(Debug)]
struct Target {
    scenario: &'static str,
    /// Whose figure is judged.
    contender: &'static str,
    metric: &'static str,
    what: &'static str,
    goal: Goal,
    /// What peers have reached, as it was known when the target was set.
    peers: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Goal {
    /// So much of what `direct` does.
    Ratio(f64),
    /// Not more than that, in the metric's unit.
    AtMost(f64),
    /// No less than `direct` does, give or take half of its own spread.
    Indistinct,
    /// So much of another metric of the same scenario and contender.
    ShareOf(&'static str, f64),
}

const SAME_NODE: &str = "same node, authorized and counted in the kernel";
const TWO_NODES: &str = "two nodes, mTLS";
const UNENROLLED: &str = "a pod that is not enrolled, as without an agent";

const fn target(
    scenario: &'static str,
    metric: &'static str,
    what: &'static str,
    goal: Goal,
    peers: &'static str,
) -> Target {
    Target { scenario, contender: AGENT, metric, what, goal, peers }
}

impl Target {
    /// The same for another contender.
    const fn of(self, contender: &'static str) -> Self {
        Self { contender, ..self }
    }
}

/// The targets of the project, in the order in which they are reported.
const TARGETS: &[Target] = &[
    target("same-node-l4", "throughput_1", SAME_NODE, Goal::Ratio(0.97), "ztunnel 0.36 plain"),
    target("same-node-l4", "throughput_4", SAME_NODE, Goal::Ratio(0.97), "ztunnel 0.36 plain"),
    target("same-node-l4", "rate_64", SAME_NODE, Goal::Ratio(0.95), "ztunnel 0.13–0.26"),
    target("same-node-l4", "connects", SAME_NODE, Goal::Ratio(0.90), "ztunnel 0.16–0.23"),
    target("same-node-l4", "connects_past_cliff", "no cliff with ports in TIME_WAIT", CLIFF, ""),
    target("two-nodes-mtls", "throughput_1", TWO_NODES, Goal::Ratio(0.60), "ztunnel 0.22–0.34, Envoy 0.42"),
    target("two-nodes-mtls", "throughput_4", TWO_NODES, Goal::Ratio(0.60), "ztunnel 0.22–0.34, Envoy 0.42"),
    target("two-nodes-mtls", "rate_64", TWO_NODES, Goal::Ratio(0.50), "ztunnel 0.14–0.24, Envoy 0.42"),
    target("two-nodes-mtls", "connects", TWO_NODES, Goal::Ratio(0.45), "ztunnel 0.13–0.20, Envoy 0.37"),
    target("two-nodes-mtls", "connects_past_cliff", "no cliff with ports in TIME_WAIT", CLIFF, ""),
    target("unenrolled", "throughput_1", UNENROLLED, Goal::Indistinct, ""),
    target("unenrolled", "rate_64", UNENROLLED, Goal::Indistinct, ""),
    target("unenrolled", "connects", UNENROLLED, Goal::Indistinct, ""),
    target("memory", "rss_fresh_mb", "a fresh agent", Goal::AtMost(10.0), ""),
    target("memory", "kb_per_idle_connection", "an idle proxied connection", Goal::AtMost(2.0), ""),
    target("memory", "rss_mb_at_100k_workloads", "100,000 workloads", Goal::AtMost(60.0), ""),
    target("config", "first_sync_100k_s", "100,000 workloads synchronised", Goal::AtMost(2.0), ""),
    target("config", "change_to_effect_p99_ms", "change to effect", Goal::AtMost(20.0), ""),
    target("kubernetes", "kubernetes_rss_mb", "10,000 pods and 1,000 services held", Goal::AtMost(100.0), "")
        .of(CONTROL),
];

/// Less than a fifth is noise of short measurements; a cliff takes most.
const CLIFF: Goal = Goal::ShareOf("connects", 0.8);

/// A target, and what the run has to say about it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Judgement {
    pub(super) what: &'static str,
    pub(super) scenario: &'static str,
    pub(super) metric: &'static str,
    /// As text: `≥ 0.97`, `≤ 10 MB`.
    pub(super) goal: String,
    /// None where it was not measured.
    pub(super) reached: Option<Reached>,
    /// Other contenders of the same run, then figures from elsewhere in brackets.
    pub(super) peers: String,
}

/// What was reached.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reached {
    pub(super) text: String,
    pub(super) met: bool,
    /// For a drawing, where ratios are wanted: what was reached, and the goal.
    pub(super) drawn: Option<(Spread, f64)>,
}

impl Judgement {
    /// Whether the target is met; none where it was not measured.
    pub(super) fn met(&self) -> Option<bool> {
        self.reached.as_ref().map(|reached| reached.met)
    }
}

/// Every target.
pub(super) fn judge(report: &Report) -> Vec<Judgement> {
    TARGETS.iter().map(|target| target.judge(report)).collect()
}

/// How many are met, of how many that were measured.
pub(super) fn summary(judgements: &[Judgement]) -> String {
    let count = |verdict| judgements.iter().filter(|judgement| judgement.met() == verdict).count();
    let (met, missed, unknown) = (count(Some(true)), count(Some(false)), count(None));
    let text = format!("{met} of {} targets met", met + missed);
    if unknown == 0 { text } else { format!("{text}, {unknown} not measured") }
}

impl Target {
    fn judge(&self, report: &Report) -> Judgement {
        let row = report.row(self.scenario, self.contender, self.metric);
        Judgement {
            what: self.what,
            scenario: self.scenario,
            metric: self.metric,
            goal: self.goal.text(row),
            reached: row.and_then(|row| self.reached(report, row)),
            peers: self.peers(report),
        }
    }

    fn reached(&self, report: &Report, row: &Row) -> Option<Reached> {
        let (text, met, drawn) = match self.goal {
            Goal::Ratio(goal) => {
                let ratios = row.ratios()?;
                (ratio_text(ratios), ratios.median >= goal, Some((ratios, goal)))
            }
            Goal::Indistinct => {
                let ratios = row.ratios()?;
                let direct = report.row(self.scenario, DIRECT, self.metric)?.values();
                let noise = NOISE.max((direct.max - direct.min) / 2.0 / direct.median);
                (ratio_text(ratios), ratios.median >= 1.0 - noise, Some((ratios, 1.0)))
            }
            Goal::AtMost(goal) => {
                let values = row.values();
                let text = format!(
                    "{} {} ({})",
                    figure::value(values.median),
                    row.unit,
                    figure::range(values.min, values.max, figure::value)
                );
                (text, values.median <= goal, None)
            }
            Goal::ShareOf(other, goal) => {
                let share = share(report, row, other)?;
                (figure::ratio(share), share >= goal, None)
            }
        };
        Some(Reached { text, met, drawn })
    }

    fn peers(&self, report: &Report) -> String {
        // The same agent in another mode is no peer, and `direct` is what ratios are to.
        let is_peer = |row: &&Row| {
            let own = row.contender.starts_with(self.contender);
            row.metric == self.metric && row.contender != DIRECT && !own
        };
        let figure = |row: &Row| {
            let figure = match self.goal {
                Goal::Ratio(_) | Goal::Indistinct => figure::ratio(row.compared()?.median),
                Goal::AtMost(_) => figure::value(row.median),
                Goal::ShareOf(other, _) => figure::ratio(share(report, row, other)?),
            };
            Some(format!("{} {figure}", row.contender))
        };
        let measured: Vec<_> = report.rows_of(self.scenario).filter(is_peer).filter_map(figure).collect();
        let elsewhere = (!self.peers.is_empty()).then(|| format!("({})", self.peers));
        let parts = [measured.join(", "), elsewhere.unwrap_or_default()];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

impl Goal {
    fn text(self, row: Option<&Row>) -> String {
        match self {
            Self::Ratio(goal) => format!("≥ {}", figure::ratio(goal)),
            Self::AtMost(goal) => {
                format!("≤ {goal} {}", row.map_or("", |row| row.unit.as_str())).trim_end().into()
            }
            Self::Indistinct => "1.00 within noise".into(),
            Self::ShareOf(other, goal) => format!("≥ {} of {other}", figure::ratio(goal)),
        }
    }
}

/// A figure as a share of another metric of the same scenario and contender.
fn share(report: &Report, row: &Row, other: &str) -> Option<f64> {
    Some(row.median / report.row(&row.scenario, &row.contender, other)?.median)
}

fn ratio_text(ratios: Spread) -> String {
    format!("{} ({})", figure::ratio(ratios.median), figure::range(ratios.min, ratios.max, figure::ratio))
}
