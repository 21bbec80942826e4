//! `echo` and `traffic`.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use mesh_lab::echo::EchoServer;
use mesh_lab::traffic::Load;

use super::labs::print_json;
use super::{OutputFormat, TrafficOptions, TrafficTarget, runtime, stop_on_signal};

const DEFAULT_DURATION: Duration = Duration::from_secs(10);

pub(super) fn echo(name: &str, addresses: &[SocketAddr], udp: bool) -> anyhow::Result<()> {
    let server =
        EchoServer::bind(name, addresses, udp).with_context(|| format!("cannot listen on {addresses:?}"))?;
    for address in addresses {
        println!("{name} listens on {address}");
    }
    runtime()?.block_on(async {
        let stop = stop_on_signal()?;
        server.serve(stop).await.context("cannot serve")
    })
}

/// The exit status tells whether every request succeeded.
pub(super) fn traffic(target: TrafficTarget) -> anyhow::Result<ExitCode> {
    let (load, options) = match target {
        TrafficTarget::Tcp { address, options } => (Load::tcp(&address)?, options),
        TrafficTarget::Http { url, http2, header, options } => {
            let mut load = Load::http(&url)?;
            for header in header {
                let (name, value) =
                    header.split_once(':').context("a header has the form \"name: value\"")?;
                load = load.header(name.trim(), value.trim())?;
            }
            (if http2 { load.http2() } else { load }, options)
        }
    };
    let load = limited(load, &options);
    let report = runtime()?.block_on(async {
        let stop = stop_on_signal()?;
        if let Some(patience) = options.wait {
            load.clone().wait_for_an_answer(stop.clone(), patience).await?;
        }
        if options.follow {
            anyhow::Ok(load.run_with_progress(stop, options.interval, say).await)
        } else {
            Ok(load.run(stop).await)
        }
    })?;
    match options.format.output {
        OutputFormat::Json if options.follow => say(serde_json::json!({ "report": report })),
        OutputFormat::Json => print_json(&report)?,
        OutputFormat::Table => print!("{report}"),
    }
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn limited(mut load: Load, options: &TrafficOptions) -> Load {
    load = load.connections(options.connections).timeout(options.timeout);
    if let Some(rate) = options.rate {
        load = load.rate(rate);
    }
    if options.new_connection_per_request {
        load = load.new_connection_per_request();
    }
    load = match options.requests {
        Some(requests) => load.requests(requests),
        None => load.duration(DEFAULT_DURATION),
    };
    match options.duration {
        Some(duration) => load.duration(duration),
        None => load,
    }
}

/// A line of JSON. When nobody reads it any more, the load still runs to its end.
fn say(value: impl serde::Serialize) {
    let mut out = std::io::stdout().lock();
    if let Ok(line) = serde_json::to_string(&value) {
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}
