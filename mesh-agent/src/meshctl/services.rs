//! `meshctl services`: what the agent knows of the mesh's services.

use std::io;

use clap::Args;

use crate::admin::api::{ServiceInfo, path};

use super::client::query_value;
use super::screen::{BAD, DUBIOUS, FAINT, GOOD, Screen, faint};
use super::table::{Cell, Table, words};
use super::text::short_service;
use super::{Context, MeshctlError};

#[derive(Debug, Args)]
pub(super) struct ServicesArgs {
    /// Only services of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
}

pub(super) async fn run(context: &Context, args: &ServicesArgs) -> Result<(), MeshctlError> {
    let path = match &args.namespace {
        Some(namespace) => format!("{}?namespace={}", path::SERVICES, query_value(namespace)),
        None => path::SERVICES.into(),
    };
    context.show(&path, |screen, services: &Vec<ServiceInfo>| print(screen, services)).await
}

fn print(screen: &mut Screen, services: &[ServiceInfo]) -> io::Result<()> {
    if services.is_empty() {
        return screen.line(&faint("no services"));
    }
    let mut table = Table::new(&[
        words("SERVICE").shrinks(),
        words("ADDRESSES").shrinks(),
        words("PORTS").shrinks(),
        words("ENDPOINTS"),
        words("CHOOSES").expendable(1),
    ]);
    for service in services {
        let ports: Vec<_> = service
            .ports
            .iter()
            .map(|port| match port.target_port {
                0 => port.port.to_string(),
                target if target == port.port => port.port.to_string(),
                target => format!("{}→{target}", port.port),
            })
            .collect();
        let addresses = match service.addresses.as_slice() {
            [] => Cell::styled(FAINT, "headless"),
            addresses => addresses.join(" ").into(),
        };
        table.row([
            short_service(&service.hostname).into(),
            addresses,
            ports.join(" ").into(),
            endpoints(service),
            Cell::styled(FAINT, service.balancing.as_str()),
        ]);
    }
    table.print(screen)
}

/// How many can be chosen, of how many.
fn endpoints(service: &ServiceInfo) -> Cell {
    let all = service.endpoints.len();
    let usable =
        service.endpoints.iter().filter(|endpoint| endpoint.tier.is_some() && !endpoint.ejected).count();
    let style = match usable {
        0 => BAD,
        some if some < all => DUBIOUS,
        _ => GOOD,
    };
    let text = if usable == all { format!("{all} ready") } else { format!("{usable} of {all} ready") };
    Cell::styled(style, text)
}
