use http::StatusCode;
use keppel_federation::vocabulary::TenantId;
use serde_json::{Value, json};

use super::{Answer, Call, Refusal, document};
use crate::{auth::Right, registry::to_cadf};

/// How many events a page has where none is asked for.
const PAGE: usize = 100;

/// `GET /keppel/v1/audit`: what was changed and by whom, the newest first. Operators see all; admins see their tenant's,
/// which they name.
pub(super) async fn list(call: &Call<'_>) -> Answer {
    let tenant = match call.query("tenant") {
        Some(text) => {
            let tenant = TenantId::parse(&text);
            Some(tenant.map_err(|error| Refusal::plain(StatusCode::UNPROCESSABLE_ENTITY, format!("tenant: {error}")))?)
        }
        None => None,
    };
    let allowed = match &tenant {
        Some(tenant) => call.visitor.has(Right::EditAccount, tenant),
        None => call.visitor.is_operator(),
    };
    if let (false, Some(tenant)) = (allowed, &tenant) {
        return Err(Refusal::forbidden(&format_args!("see the events of auth tenant {tenant}")));
    }
    if !allowed {
        let reason = "only operators see all events; an admin names the tenant with ?tenant=";
        return Err(Refusal::plain(StatusCode::FORBIDDEN, reason));
    }
    let before = match call.query("marker") {
        Some(text) => Some(text.parse().map_err(|_| Refusal::invalid("marker", "must be the id of an event"))?),
        None => None,
    };
    let limit = if call.query("limit").is_some() { call.limit()? } else { PAGE };
    let tenant = tenant.map(|tenant| tenant.to_string());
    let (events, truncated) = call.state.registry().list_audit(tenant, before, limit).await?;
    let observer = &call.state.auth().tokens().options().service;
    let events: Vec<Value> = events.iter().map(|event| to_cadf(event, observer)).collect();
    Ok(document(&json!({ "events": events, "truncated": truncated })))
}
