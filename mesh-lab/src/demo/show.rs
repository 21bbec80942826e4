//! How the demo looks: scenes, tables, bars, and a verdict on every expectation.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use anstream::println;
use anstyle::{AnsiColor, Style};
use anyhow::{Result, bail};
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{ContentArrangement, Table};
use mesh_lab::{Cni, Topology};

const WIDTH: usize = 100;
const BAR: u64 = 40;

const TITLE: Style = AnsiColor::BrightWhite.on_default().bold();
const DIM: Style = AnsiColor::BrightBlack.on_default();
const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const ACCENT: Style = AnsiColor::Cyan.on_default();

/// Writes to standard output; colours only where it is a terminal.
#[derive(Debug, Default)]
pub(super) struct Show {
    scenes: usize,
    promises: usize,
}

impl Show {
    /// Begins a scene.
    pub(super) fn scene(&mut self, title: &str, subtitle: &str) {
        self.scenes += 1;
        let number = self.scenes;
        let used = title.chars().count() + 8;
        let rule = "━".repeat(WIDTH.saturating_sub(used));
        println!("\n{ACCENT}━━ {number:>2}{ACCENT:#} {TITLE}{title}{TITLE:#} {ACCENT}{rule}{ACCENT:#}");
        println!("   {DIM}{subtitle}{DIM:#}\n");
    }

    /// A remark.
    pub(super) fn say(&mut self, text: impl Display) {
        println!("   {text}");
    }

    /// A command as a user would type it.
    pub(super) fn command(&mut self, place: &str, command: &str) {
        println!("   {DIM}{place}${DIM:#} {command}");
    }

    /// What a program printed.
    pub(super) fn output(&mut self, text: &str) {
        for line in text.trim_end().lines() {
            println!("   {DIM}│{DIM:#} {line}");
        }
    }

    /// How long something took.
    pub(super) fn timing(&mut self, what: &str, time: Duration) {
        println!("   {DIM}{what} in {} ms{DIM:#}", time.as_millis());
    }

    /// A promise of the mesh that was just tested.
    pub(super) fn expect(&mut self, kept: bool, promise: impl Display) -> Result<()> {
        if !kept {
            println!("   {BAD}✗ {promise}{BAD:#}");
            bail!("a promise was not kept: {promise}");
        }
        self.promises += 1;
        println!("   {GOOD}✓{GOOD:#} {promise}");
        Ok(())
    }

    /// A table.
    pub(super) fn table<const N: usize>(
        &mut self,
        header: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header);
        for row in rows {
            table.add_row(row);
        }
        for line in table.to_string().lines() {
            println!("   {line}");
        }
    }

    /// One bar per name, as long as its share.
    pub(super) fn bars(&mut self, counts: &BTreeMap<String, u64>) {
        let most = counts.values().copied().max().unwrap_or(0).max(1);
        let total: u64 = counts.values().sum::<u64>().max(1);
        let width = counts.keys().map(|name| name.chars().count()).max().unwrap_or(0);
        for (name, count) in counts {
            let length = usize::try_from(count * BAR / most).unwrap_or(0);
            let bar = "█".repeat(length);
            println!("   {name:width$}  {ACCENT}{bar}{ACCENT:#} {count} ({} %)", count * 100 / total);
        }
    }

    /// The machines of the lab.
    pub(super) fn topology(&mut self, topology: &Topology) {
        let rows = topology.nodes.iter().flat_map(|node| {
            node.pods.iter().enumerate().map(move |(number, pod)| {
                let wiring = match node.cni {
                    Cni::Routed => "routed",
                    Cni::Bridge => "bridge",
                };
                let node = if number == 0 { format!("{} ({wiring})", node.name) } else { String::new() };
                [node, format!("{}/{}", pod.namespace, pod.name), pod.addresses.to_string()]
            })
        });
        self.table(["node", "pod", "addresses"], rows);
    }

    /// Commands to try, with a first line that makes the lab's program available.
    pub(super) fn commands(&mut self, title: &str, lab: &Path, commands: &[String]) {
        println!("\n{TITLE}{title}{TITLE:#}");
        if let Some(directory) = lab.parent() {
            println!("   export PATH=\"{}:$PATH\"", directory.display());
        }
        for command in commands {
            println!("   {command}");
        }
    }

    /// The end.
    pub(super) fn finale(&mut self, time: Duration) {
        let Self { scenes, promises } = self;
        println!(
            "\n{GOOD}✓{GOOD:#} {TITLE}{promises} promises kept{TITLE:#} in {scenes} scenes, {:.0} s",
            time.as_secs_f64()
        );
    }
}
