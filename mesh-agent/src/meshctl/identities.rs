//! `meshctl identities`: who the pods of this node can prove to be, and for how long.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;

use crate::admin::api::{IdentityReport, IdentityState, IdentityStatus, path};

use super::screen::{BAD, DUBIOUS, FAINT, GOOD, PLAIN, Screen, faint};
use super::table::{Cell, Table, numbers, words};
use super::text::{age, plural, short_uid};
use super::{Context, MeshctlError};

#[derive(Debug, Args)]
pub(super) struct IdentitiesArgs {
    /// Only identities with this in their name.
    #[arg(value_name = "TEXT")]
    text: Option<String>,
}

pub(super) async fn run(context: &Context, args: &IdentitiesArgs) -> Result<(), MeshctlError> {
    let mut report: IdentityReport = context.client.get(path::IDENTITIES).await?;
    report.identities.retain(|known| args.text.as_deref().is_none_or(|text| known.identity.contains(text)));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    context.print(&report, |screen, report| print(screen, report, now))
}

fn print(screen: &mut Screen, report: &IdentityReport, now: Duration) -> io::Result<()> {
    if report.identities.is_empty() {
        return screen.line(&faint("no identities"));
    }
    let mut table = Table::new(&[
        words("IDENTITY").shrinks(),
        words("STATE"),
        numbers("EXPIRES IN"),
        numbers("RENEWAL IN"),
        words("SERIAL").shrinks().expendable(3),
        words("ISSUER").shrinks().expendable(2),
        words("PODS").shrinks().expendable(1),
        words("LAST ERROR").shrinks(),
    ]);
    for known in &report.identities {
        let pods: Vec<_> = known.pods.iter().map(|uid| short_uid(uid)).collect();
        table.row([
            known.identity.as_str().into(),
            state(known),
            known.expires.map(|end| until(end, now)).unwrap_or_default().into(),
            match known.next_request {
                Some(moment) => until(moment, now).into(),
                None => Cell::styled(FAINT, "asking"),
            },
            known.serial.clone().unwrap_or_default().into(),
            known.issuer.clone().unwrap_or_default().into(),
            pods.join(" ").into(),
            Cell::styled(DUBIOUS, known.last_error.clone().unwrap_or_default()),
        ]);
    }
    table.print(screen)?;
    screen.blank()?;
    let first_root = report.roots.iter().map(|root| root.expires).min();
    let roots = match first_root {
        Some(end) => {
            format!("{}, the first for {}", plural(report.roots.len(), "trusted root"), until(end, now))
        }
        None => "no trusted root".into(),
    };
    screen.line(&faint(&format!(
        "{} issued, {} failed; {roots}",
        plural(usize::try_from(report.issued).unwrap_or(usize::MAX), "certificate"),
        plural(usize::try_from(report.failures.values().sum::<u64>()).unwrap_or(usize::MAX), "request"),
    )))
}

fn state(known: &IdentityStatus) -> Cell {
    match (known.state, known.failures) {
        (IdentityState::Valid, 0) => Cell::styled(GOOD, "valid"),
        (IdentityState::Valid, failures) => {
            Cell::styled(DUBIOUS, format!("valid, {}", plural_failures(failures)))
        }
        (IdentityState::Pending, 0) => Cell::styled(PLAIN, "pending"),
        (IdentityState::Pending, failures) => {
            Cell::styled(BAD, format!("pending, {}", plural_failures(failures)))
        }
        (IdentityState::Expired, _) => Cell::styled(BAD, "expired"),
    }
}

fn plural_failures(count: u32) -> String {
    plural(usize::try_from(count).unwrap_or(usize::MAX), "failure")
}

/// From `now` to a moment in seconds since 1970.
fn until(moment: u64, now: Duration) -> String {
    match Duration::from_secs(moment).checked_sub(now) {
        Some(left) => age(left),
        None => "now".into(),
    }
}
