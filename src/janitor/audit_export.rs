//! Sends the events of the audit log on: to a file of JSON lines, or to a webhook.
//!
//! Each sink has a cursor beside the events. It moves on once events have arrived, so that none is left out; after a crash
//! in between, the last ones come twice (their ids tell).

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::policy::Secret;
use crate::registry::{AuditEvent, Registry, RegistryError, to_cadf};

/// Events that are sent at a time.
const BATCH: usize = 200;
/// How long a webhook may take to answer.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a batch is tried before it waits for the next run.
const ATTEMPTS_MAX: u32 = 3;
const FILE: &str = "file";
const WEBHOOK: &str = "webhook";

/// Where events go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AuditExportOptions {
    /// What this registry is called in the events.
    pub observer: String,
    /// A file that events are appended to, one JSON document a line.
    pub file: Option<PathBuf>,
    /// A URL that gets them as a JSON list by POST.
    pub webhook: Option<Webhook>,
}

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The URL.
    pub url: String,
    /// What is sent as `Authorization`.
    pub authorization: Option<Secret>,
}

/// Runs once: sends all that has not arrived yet.
///
/// # Errors
/// Our own trouble. That a sink takes nothing is no error of the task: the events wait.
pub async fn run(registry: Registry, options: AuditExportOptions, http: reqwest::Client) -> Result<(), RegistryError> {
    if let Some(path) = &options.file {
        loop {
            let events = registry.list_audit_for(FILE, BATCH).await?;
            let Some(last) = events.last().map(|event| event.id) else { break };
            let (path, lines) = (path.clone(), lines(&events, &options.observer));
            let written = tokio::task::spawn_blocking(move || append(&path, &lines)).await;
            if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "audit events cannot be written to their file; they wait"
                );
                break;
            }
            registry.put_audit_export(FILE, last).await?;
        }
    }
    let Some(webhook) = &options.webhook else { return Ok(()) };
    loop {
        let events = registry.list_audit_for(WEBHOOK, BATCH).await?;
        let Some(last) = events.last().map(|event| event.id) else { return Ok(()) };
        let documents: Vec<_> = events.iter().map(|event| to_cadf(event, &options.observer)).collect();
        let body = serde_json::Value::from(documents).to_string();
        if !send(&http, webhook, &body).await {
            return Ok(());
        }
        registry.put_audit_export(WEBHOOK, last).await?;
    }
}

fn lines(events: &[AuditEvent], observer: &str) -> String {
    events.iter().map(|event| format!("{}\n", to_cadf(event, observer))).collect()
}

fn append(path: &Path, lines: &str) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(lines.as_bytes())?;
    file.sync_data()
}

/// Whether the webhook took a batch.
async fn send(http: &reqwest::Client, webhook: &Webhook, body: &str) -> bool {
    let mut pause = Duration::from_millis(200);
    for attempt in 1..=ATTEMPTS_MAX {
        let mut request = http.post(&webhook.url).timeout(WEBHOOK_TIMEOUT).header("content-type", "application/json");
        if let Some(authorization) = &webhook.authorization {
            request = request.header("authorization", authorization.reveal());
        }
        let outcome = request.body(body.to_owned()).send().await.and_then(reqwest::Response::error_for_status);
        let Err(error) = outcome else { return true };
        if attempt == ATTEMPTS_MAX {
            let error = &error.without_url() as &dyn std::error::Error;
            tracing::warn!(error, attempts = attempt, "the webhook takes no audit events; they wait");
            metrics::counter!("keppel_audit_webhook_failures_total").increment(1);
            return false;
        }
        tokio::time::sleep(pause + pause.mul_f64(rand::random::<f64>())).await;
        pause *= 4;
    }
    false
}
