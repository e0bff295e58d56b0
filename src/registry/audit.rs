//! The audit log: gathered in memory, written in batches a moment later, kept for a while.
//!
//! Events are noted by whoever carried out a request, and cost it no write of its own: they ride along with the next
//! commit. What was noted in the last moment before a crash may be lost, the change itself is not.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::{Registry, RegistryError};
use crate::metadata::MetadataError;

pub use crate::metadata::AuditRow as AuditEvent;

/// Events that may wait to be written; those over it are lost, which a metric shows.
const WAITING_MAX: usize = 100_000;
/// Events written in one job.
const BATCH: usize = 500;
/// Events removed in one job.
const EXPIRED_BATCH: usize = 1000;
/// The longest text of an event, in bytes.
const TEXT_BYTES_MAX: usize = 512;

#[derive(Default)]
pub(super) struct AuditLog {
    waiting: Mutex<VecDeque<AuditEvent>>,
}

impl AuditLog {
    fn note(&self, event: AuditEvent) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.len() < WAITING_MAX {
            true => waiting.push_back(event),
            false => metrics::counter!("keppel_audit_dropped_total").increment(1),
        }
    }

    fn take(&self) -> Vec<AuditEvent> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let end = waiting.len().min(BATCH);
        waiting.drain(..end).collect()
    }

    /// Puts events back that could not be written, as the next to be.
    fn put_back(&self, events: Vec<AuditEvent>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events.into_iter().rev() {
            waiting.push_front(event);
        }
    }
}

/// A text that is not longer than an event may hold.
fn shortened(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl Registry {
    /// Notes an event. Never waits.
    pub fn note_audit(&self, mut event: AuditEvent) {
        for text in [&mut event.actor, &mut event.address, &mut event.user_agent, &mut event.target, &mut event.detail]
        {
            *text = shortened(std::mem::take(text));
        }
        self.inner.audit.note(event);
    }

    /// Writes the events noted so far.
    ///
    /// Cancel safety: what was taken to be written is written, or lost with the process.
    ///
    /// # Errors
    /// Our own trouble; then they wait for the next time.
    pub async fn flush_audit(&self) -> Result<(), RegistryError> {
        loop {
            let events = self.inner.audit.take();
            if events.is_empty() {
                return Ok(());
            }
            let batch = events.clone();
            let written = self.inner.metadata.write(move |transaction| transaction.insert_audit(&batch)).await;
            if let Err(error) = written {
                let error: MetadataError = error;
                self.inner.audit.put_back(events);
                return Err(error.into());
            }
        }
    }

    /// The events before an id, of a tenant or of all, the newest first; and whether there are more.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn list_audit(
        &self,
        tenant: Option<String>,
        before: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<AuditEvent>, bool), RegistryError> {
        // Whoever asks sees what they have just done.
        self.flush_audit().await?;
        let limit = limit.clamp(1, self.inner.options.page_size_max);
        let read = self.inner.metadata.read(move |reader| reader.list_audit(tenant.as_deref(), before, limit + 1));
        let mut events: Vec<AuditEvent> = read.await.map_err(|error: MetadataError| RegistryError::from(error))?;
        let truncated = events.len() > limit;
        events.truncate(limit);
        Ok((events, truncated))
    }

    /// The events that have not arrived at a sink, the oldest first.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn list_audit_for(&self, sink: &'static str, limit: usize) -> Result<Vec<AuditEvent>, RegistryError> {
        let read = self.inner.metadata.read(move |reader| reader.list_audit_for(sink, limit));
        read.await.map_err(|error: MetadataError| error.into())
    }

    /// Notes that everything up to an event has arrived at a sink.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn put_audit_export(&self, sink: &'static str, last_id: i64) -> Result<(), RegistryError> {
        let write = self.inner.metadata.write(move |transaction| transaction.put_audit_export(sink, last_id));
        write.await.map_err(|error: MetadataError| error.into())
    }

    /// Removes events that are older than `retention_seconds`.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn expire_audit(&self, retention_seconds: i64) -> Result<(), RegistryError> {
        let before_ms = self.inner.clock.now().saturating_sub(retention_seconds).saturating_mul(1000);
        loop {
            let write =
                self.inner.metadata.write(move |transaction| transaction.expire_audit(before_ms, EXPIRED_BATCH));
            if write.await.map_err(|error: MetadataError| RegistryError::from(error))? < EXPIRED_BATCH {
                return Ok(());
            }
        }
    }
}

/// An event in the form of CADF.
///
/// Source: DMTF DSP0262, "Cloud Auditing Data Federation", section 6.
pub fn to_cadf(event: &AuditEvent, observer: &str) -> serde_json::Value {
    let outcome = if event.status < 400 { "success" } else { "failure" };
    let kind = match event.actor.split_once(':') {
        Some(("user", _)) => "data/security/account/user",
        Some(("robot", _)) => "data/security/account/robot",
        _ => "data/security/account",
    };
    let actor = if event.actor.is_empty() { "unknown" } else { event.actor.as_str() };
    let mut document = serde_json::json!({
        "typeURI": "http://schemas.dmtf.org/cloud/audit/1.0/event",
        "id": event.id.to_string(),
        "eventType": "activity",
        "eventTime": format!("{}.{:03}Z", crate::auth::rfc3339(event.at_ms.div_euclid(1000)).trim_end_matches('Z'), event.at_ms.rem_euclid(1000)),
        "action": event.action,
        "outcome": outcome,
        "reason": { "reasonType": "HTTP", "reasonCode": event.status.to_string() },
        "initiator": {
            "typeURI": kind,
            "id": actor,
            "host": { "address": event.address, "agent": event.user_agent },
        },
        "target": { "typeURI": format!("docker-registry/{}", event.kind), "id": event.target },
        "observer": { "typeURI": "service/docker-registry", "id": observer },
        "attachments": [],
    });
    if let Some(fields) = document.as_object_mut() {
        let mut attachments = vec![
            serde_json::json!({ "name": "request_id", "typeURI": "mime:text/plain", "content": event.request_id }),
        ];
        if !event.detail.is_empty() {
            attachments
                .push(serde_json::json!({ "name": "detail", "typeURI": "mime:text/plain", "content": event.detail }));
        }
        fields.insert("attachments".to_owned(), attachments.into());
        if let Some(tenant) = &event.tenant {
            fields["target"]["project_id"] = tenant.as_str().into();
        }
    }
    document
}
