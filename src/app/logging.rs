//! Log lines, to standard error: text for people or JSON for programs.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// The consensus library tells its own story, and with every question that a node leaves unanswered, which the federation
/// says once. Who wants to hear it names it in the filter.
const QUIET: &str = "openraft=error,openraft::replication=off,openraft::core::raft_core=off";

/// Sends this process's log lines where `options` say. Only the first call does anything: a process has one log.
pub fn install(options: &Log) {
    // The configuration was checked; a filter that is no filter cannot come here, and would mean the default.
    let filter = EnvFilter::try_new(format!("{QUIET},{}", options.filter)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed = match options.format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    if installed.is_err() {
        tracing::debug!("the log was set up before; it stays as it is");
    }
}
