use http::StatusCode;
use keppel_federation::vocabulary::TenantId;
use serde_json::{Value, json};

use super::{Answer, Call, Refusal, document};
use crate::{
    auth::Right,
    registry::{QuotaChange, QuotaReport},
};

/// The largest quota: what a number has room for everywhere it is kept.
const QUOTA_MAX: u64 = i64::MAX as u64;

/// `GET /keppel/v1/quotas/<tenant>`: how much the accounts of a tenant may hold, and hold in this region.
pub(super) async fn get(call: &Call<'_>, tenant: &str) -> Answer {
    let tenant = authorize(call, tenant, Right::ViewQuota)?;
    Ok(document(&show(&call.state.accounts().load_quota(&tenant).await?)))
}

/// `PUT /keppel/v1/quotas/<tenant>`: changes it. What is not named stays as it is; `null` is no limit.
pub(super) async fn put(call: &Call<'_>, tenant: &str) -> Answer {
    let tenant = authorize(call, tenant, Right::EditQuota)?;
    let change = read(&call.body())?;
    Ok(document(&show(&call.state.accounts().put_quota(&tenant, change).await?)))
}

/// A tenant that may not be seen is refused like one that nobody has mentioned.
fn authorize(call: &Call<'_>, tenant: &str, right: Right) -> Result<TenantId, Refusal> {
    let tenant = TenantId::parse(tenant).map_err(|error| Refusal::invalid("auth_tenant_id", &error))?;
    match call.visitor.has(right, &tenant) {
        true => Ok(tenant),
        false => {
            let what = if right == Right::EditQuota { "change" } else { "see" };
            Err(Refusal::forbidden(&format_args!("{what} the quota of auth tenant {tenant}")))
        }
    }
}

fn read(body: &Value) -> Result<QuotaChange, Refusal> {
    let Some(fields) = body.as_object() else { return Err(Refusal::invalid("body", "must be an object")) };
    let mut change = QuotaChange::default();
    for (name, value) in fields {
        let target = match name.as_str() {
            "manifests" => &mut change.manifests,
            "bytes" => &mut change.size_bytes,
            stranger => return Err(Refusal::invalid(stranger, "is not a field that is known here")),
        };
        *target = Some(read_one(name, value)?);
    }
    match change == QuotaChange::default() {
        true => Err(Refusal::invalid("manifests", "is missing, and so is bytes")),
        false => Ok(change),
    }
}

fn read_one(name: &str, value: &Value) -> Result<Option<u64>, Refusal> {
    let Some(fields) = value.as_object() else { return Err(Refusal::invalid(name, "must be an object")) };
    if let Some(stranger) = fields.keys().find(|field| *field != "quota") {
        let reason = match stranger.as_str() {
            "usage" => "cannot be set",
            _ => "is not a field that is known here",
        };
        return Err(Refusal::invalid(&format!("{name}.{stranger}"), reason));
    }
    match fields.get("quota") {
        Some(Value::Null) => Ok(None),
        Some(quota) => match quota.as_u64().filter(|quota| *quota <= QUOTA_MAX) {
            Some(quota) => Ok(Some(quota)),
            None => Err(Refusal::invalid(&format!("{name}.quota"), "must be 0, a positive whole number, or null")),
        },
        None => Err(Refusal::invalid(&format!("{name}.quota"), "is missing")),
    }
}

fn show(report: &QuotaReport) -> Value {
    let QuotaReport { quota, usage } = report;
    json!({
        "manifests": { "quota": quota.manifests, "usage": usage.manifests },
        "bytes": { "quota": quota.size_bytes, "usage": usage.size_bytes },
    })
}

impl Refusal {
    /// A field or parameter that is not valid.
    pub(super) fn invalid(field: &str, reason: &(impl std::fmt::Display + ?Sized)) -> Self {
        Self::plain(StatusCode::UNPROCESSABLE_ENTITY, format!("{field}: {reason}"))
    }
}
