//! What the agent says about itself, on stderr, with a filter that can be changed while it runs.

use std::env;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object per line.
    Json,
}

/// Why the filter could not be set.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter does not parse.
    #[error(
        "log filter {filter:?}: {source} (a level such as \"debug\", or directives such as \"info,h2=trace\")"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Something else logs already in this process.
    #[error("logging is set up twice: {0}")]
    Installed(#[from] TryInitError),
    /// The subscriber is gone.
    #[error("log filter: {0}")]
    Reload(#[from] reload::Error),
}

/// Changes the filter of a running agent.
#[derive(Debug)]
pub struct LogControl {
    filter: reload::Handle<EnvFilter, Registry>,
    /// As it was given, for people.
    current: Mutex<String>,
}

/// Starts logging.
pub fn init(filter: &str, format: LogFormat) -> Result<LogControl, LogError> {
    let (control, subscriber) = subscriber(filter, format)?;
    subscriber.try_init()?;
    Ok(control)
}

fn subscriber(filter: &str, format: LogFormat) -> Result<(LogControl, impl SubscriberInitExt), LogError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let lines = fmt::layer().with_writer(io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match format {
        LogFormat::Text => lines.with_ansi(wants_colour()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let control = LogControl { filter: handle, current: Mutex::new(filter.into()) };
    Ok((control, Registry::default().with(layer).with(lines)))
}

/// <https://no-color.org>
fn wants_colour() -> bool {
    io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A bare level is about the mesh's own code: whoever says `debug` does not want every HTTP/2 frame.
fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let directives = match filter.trim().parse::<LevelFilter>() {
        Ok(level) => {
            let others = level.min(LevelFilter::WARN);
            format!("{others},mesh_agent={level},mesh_xds={level}")
        }
        Err(_) => filter.into(),
    };
    EnvFilter::builder()
        .parse(directives)
        .map_err(|source| LogError::Filter { filter: filter.into(), source })
}

impl LogControl {
    /// The filter as it was given.
    pub fn current(&self) -> String {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the filter.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        let parsed = parse(filter)?;
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.filter.reload(parsed)?;
        *current = filter.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_about_the_mesh_and_directives_are_taken_as_they_are() {
        assert_eq!(parse("debug").unwrap().to_string(), "mesh_agent=debug,mesh_xds=debug,warn");
        assert_eq!(parse("error").unwrap().to_string(), "mesh_agent=error,mesh_xds=error,error");
        assert_eq!(parse("info,h2=trace").unwrap().to_string(), "h2=trace,info");
        let error = parse("mesh_agent=loud").unwrap_err().to_string();
        assert!(error.contains("mesh_agent=loud"), "{error}");
    }

    #[test]
    fn the_filter_changes_while_it_is_used_and_a_bad_one_changes_nothing() {
        let (control, subscriber) = subscriber("warn", LogFormat::Text).unwrap();
        let _guard = subscriber.set_default();
        assert!(!tracing::enabled!(target: "mesh_agent::test", tracing::Level::DEBUG));
        control.set("debug").unwrap();
        assert!(tracing::enabled!(target: "mesh_agent::test", tracing::Level::DEBUG));
        assert!(control.set("mesh_agent=loud").is_err());
        assert_eq!(control.current(), "debug");
    }
}
