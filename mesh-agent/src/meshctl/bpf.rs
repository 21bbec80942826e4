//! `meshctl bpf`: the kernel's side.

use std::io;

use clap::Args;
use mesh_common::{Effect, Outcome};

use crate::admin::api::{SteeringReport, Toggle, path};

use super::screen::{BAD, FAINT, GOOD, PLAIN, Screen, faint, good};
use super::table::{Cell, Table, numbers, words};
use super::text::{age_seconds, bytes, number, short_uid};
use super::{Context, MeshctlError};

#[derive(Debug, Args)]
pub(super) struct BpfArgs {
    /// Have the kernel measure how long programs run. Costs a little per packet.
    #[arg(long, conflicts_with = "disable_stats")]
    enable_stats: bool,

    /// Stop that.
    #[arg(long)]
    disable_stats: bool,
}

pub(super) async fn run(context: &Context, args: &BpfArgs) -> Result<(), MeshctlError> {
    if args.enable_stats || args.disable_stats {
        let toggle = Toggle { enabled: args.enable_stats };
        let _: Toggle = context.client.put(path::BPF_STATS, &toggle).await?;
    }
    context.show(path::BPF, print).await
}

fn print(screen: &mut Screen, report: &SteeringReport) -> io::Result<()> {
    screen.title("PROGRAMS")?;
    programs(screen, report)?;
    screen.blank()?;
    screen.title("ATTACHED TO")?;
    attachments(screen, report)?;
    screen.blank()?;
    screen.title("PACKETS")?;
    counters(screen, report)?;
    if !report.maps.is_empty() {
        screen.blank()?;
        screen.title("MAPS")?;
        let mut table = Table::new(&[words("NAME"), numbers("ENTRIES")]).indented(2);
        for (name, entries) in &report.maps {
            table.row([name.as_str().into(), entries.to_string().into()]);
        }
        table.print(screen)?;
    }
    screen.blank()?;
    screen.line(&format!("{} {}", faint("pinned at"), report.pin_path))?;
    screen.line(&match report.stats_enabled {
        true => format!("{} {}", faint("run times are"), good("measured")),
        false => faint("run times are not measured: meshctl bpf --enable-stats"),
    })
}

fn programs(screen: &mut Screen, report: &SteeringReport) -> io::Result<()> {
    let mut table = Table::new(&[
        words("NAME"),
        words("TYPE"),
        numbers("ID"),
        numbers("SIZE").expendable(2),
        numbers("VERIFIED").expendable(3),
        numbers("LOADED").expendable(1),
        numbers("RUNS"),
        numbers("PER RUN"),
    ])
    .indented(2);
    for program in &report.programs {
        let per_run = program.run_nanoseconds.checked_div(program.run_count);
        table.row([
            program.name.as_str().into(),
            program.kind.as_str().into(),
            program.id.to_string().into(),
            bytes(program.memory_bytes).into(),
            program.verified_instructions.map(number).unwrap_or_default().into(),
            program.loaded_seconds.map(age_seconds).unwrap_or_default().into(),
            if program.run_count == 0 { "".into() } else { number(program.run_count).into() },
            per_run.map(|nanoseconds| format!("{nanoseconds} ns")).unwrap_or_default().into(),
        ]);
    }
    table.print(screen)
}

fn attachments(screen: &mut Screen, report: &SteeringReport) -> io::Result<()> {
    let mut table = Table::new(&[
        words("DEVICE"),
        numbers("INDEX").expendable(1),
        words("HOOK"),
        words("BRIDGE").expendable(2),
        words("POD").shrinks(),
        words("STATE"),
    ])
    .indented(2);
    for attachment in &report.attachments {
        table.row([
            attachment.device.as_str().into(),
            attachment.index.to_string().into(),
            attachment.hook.as_str().into(),
            attachment.bridge.clone().unwrap_or_default().into(),
            attachment.pod.as_deref().map_or("", short_uid).into(),
            match &attachment.error {
                None if attachment.guarded => Cell::styled(GOOD, "attached, guarded"),
                None => Cell::styled(GOOD, "attached"),
                Some(error) => Cell::styled(BAD, error.as_str()),
            },
        ]);
    }
    if report.attachments.is_empty() {
        return screen.line(&format!("  {}", faint("nothing")));
    }
    table.print(screen)
}

/// In the order of the outcomes, which groups what passes, is captured and is dropped.
fn counters(screen: &mut Screen, report: &SteeringReport) -> io::Result<()> {
    let mut table = Table::new(&[words("WHAT"), words("OUTCOME"), numbers("PACKETS")]).indented(2);
    for outcome in Outcome::ALL {
        let packets = report.counters.get(outcome.name()).copied().unwrap_or_default();
        if packets == 0 {
            continue;
        }
        let (effect, style) = match outcome.effect() {
            Effect::Pass => ("passed", FAINT),
            Effect::Capture => ("captured", GOOD),
            Effect::Drop => ("dropped", BAD),
            Effect::Reset => ("reset", BAD),
            Effect::Lookup => ("looked up", PLAIN),
            Effect::Deliver => ("delivered", PLAIN),
            Effect::Passage => ("beside", PLAIN),
            Effect::Connect => ("connected", PLAIN),
        };
        let name = outcome.name().split_once('_').map_or(outcome.name(), |(_, name)| name);
        table.row([Cell::styled(style, effect), name.replace('_', " ").into(), number(packets).into()]);
    }
    if report.counters.values().all(|packets| *packets == 0) {
        return screen.line(&format!("  {}", faint("none yet")));
    }
    table.print(screen)
}
