//! What of a request goes into the audit log.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, StatusCode, header::USER_AGENT};
use keppel_federation::vocabulary::{AccountName, TenantId};

use super::service::ApiState;
use crate::registry::AuditEvent;

/// A change that a request is about to make.
pub(super) struct Change {
    pub(super) action: &'static str,
    /// Of what is changed.
    pub(super) kind: &'static str,
    /// What is changed.
    pub(super) target: String,
    /// In which account.
    pub(super) account: Option<AccountName>,
    /// The tenant, where it is none of an account.
    pub(super) tenant: Option<TenantId>,
}

/// A change under way, with who makes it.
pub(super) struct Pending<'a> {
    state: &'a ApiState,
    change: Change,
    tenant: Option<String>,
    actor: String,
    address: String,
    user_agent: String,
    request_id: String,
}

impl<'a> Pending<'a> {
    /// Takes down who is about to change what.
    pub(super) fn begin(
        state: &'a ApiState,
        change: Change,
        actor: String,
        address: String,
        headers: &HeaderMap,
        request_id: &HeaderValue,
    ) -> Self {
        let text = |value: Option<&HeaderValue>| {
            value.map_or_else(String::new, |v| String::from_utf8_lossy(v.as_bytes()).into_owned())
        };
        let tenant = tenant_of(state, &change);
        let (user_agent, request_id) = (text(headers.get(USER_AGENT)), text(Some(request_id)));
        Self { state, change, tenant, actor, address, user_agent, request_id }
    }

    /// Notes what came of it. A stranger who was refused leaves a line in the access log only.
    pub(super) fn finish(self, status: StatusCode, detail: String) {
        if self.actor.is_empty() && status.as_u16() >= 400 {
            return;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let tenant = self.tenant.or_else(|| tenant_of(self.state, &self.change));
        self.state.registry().note_audit(AuditEvent {
            id: 0,
            at_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            tenant,
            actor: self.actor,
            address: self.address,
            user_agent: self.user_agent,
            request_id: self.request_id,
            action: self.change.action.to_owned(),
            kind: self.change.kind.to_owned(),
            target: self.change.target,
            detail,
            status: status.as_u16(),
        });
    }
}

fn tenant_of(state: &ApiState, change: &Change) -> Option<String> {
    if let Some(tenant) = &change.tenant {
        return Some(tenant.to_string());
    }
    let account = change.account.as_ref()?;
    Some(state.accounts().tenant_of(account)?.to_string())
}
