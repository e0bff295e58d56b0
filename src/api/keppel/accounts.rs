use axum::response::{IntoResponse, Response};
use http::StatusCode;
use keppel_federation::vocabulary::{AccountName, TenantId};
use serde_json::{Map, Value, json};

use super::{Answer, Call, Refusal, document};
use crate::{
    auth::Right,
    model::policy::{AccountSettings, Replication, SettingsError},
    registry::{AccountEntry, AccountError},
};

/// Lets a replica be made; the primary issues it.
const SUBLEASE_TOKEN: &str = "x-keppel-sublease-token";

/// `GET /keppel/v1/accounts`: those that the caller may see.
pub(super) fn list(call: &Call<'_>) -> Response {
    let accounts = call.state.accounts().list(|entry| call.visitor.has(Right::ViewAccount, &entry.tenant));
    let shown: Vec<Value> = accounts.iter().map(|(entry, settings)| show(call, entry, settings)).collect();
    document(&json!({ "accounts": shown }))
}

/// `GET /keppel/v1/accounts/<name>`.
pub(super) fn get(call: &Call<'_>, name: &str) -> Answer {
    let (entry, settings) = call.state.accounts().load(&parse(name)?)?;
    call.require_seen(&entry)?;
    Ok(document(&json!({ "account": show(call, &entry, &settings) })))
}

/// `PUT /keppel/v1/accounts/<name>`: makes an account, or changes it.
pub(super) async fn put(call: &Call<'_>, name: &str) -> Answer {
    let name = AccountName::parse(name)
        .map_err(|error| Refusal::plain(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?;
    let known = call.state.accounts().load(&name).ok();
    let is_mirror = call.state.accounts().is_mirror(&name);
    // What cannot be changed need not be said again.
    let replication = known.as_ref().and_then(|(_, settings)| settings.replication.clone());
    let (tenant, settings) = read(call.body(), replication, is_mirror).map_err(AccountError::from)?;
    if !call.visitor.has(Right::EditAccount, &tenant) {
        return Err(Refusal::forbidden(&format_args!("make or change accounts of auth tenant {tenant}")));
    }
    if let Some((entry, _)) = known
        && entry.tenant != tenant
        && call.visitor.has(Right::ViewAccount, &entry.tenant)
    {
        let reason = "cannot be changed after the account was made";
        return Err(AccountError::from(SettingsError::new("account.auth_tenant_id", reason)).into());
    }
    let sublease = call.parts.headers.get(SUBLEASE_TOKEN).and_then(|token| token.to_str().ok());
    let (entry, settings) = call.state.accounts().put(&name, &tenant, settings, sublease).await?;
    Ok(document(&json!({ "account": show(call, &entry, &settings) })))
}

/// `DELETE /keppel/v1/accounts/<name>`: begins its deletion.
pub(super) async fn delete(call: &Call<'_>, name: &str) -> Answer {
    let (entry, _) = call.state.accounts().load(&parse(name)?)?;
    call.require_changed(&entry, "delete account")?;
    call.state.accounts().delete(&entry.name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /keppel/v1/accounts/<name>/sublease`: a one-time token for a replica in another region.
pub(super) async fn post_sublease(call: &Call<'_>, name: &str) -> Answer {
    let (entry, _) = call.state.accounts().load(&parse(name)?)?;
    call.require_changed(&entry, "issue sublease tokens for account")?;
    let token = call.state.accounts().issue_sublease(&entry.name).await?;
    Ok(document(&json!({ "sublease_token": token })))
}

/// What is no name names no account.
pub(super) fn parse(name: &str) -> Result<AccountName, AccountError> {
    AccountName::parse(name).map_err(|_| AccountError::Unknown)
}

/// Reads `{"account": {…}}`. Where it does not say where the content comes from, that stays as it is.
fn read(
    mut body: Value,
    replication: Option<Replication>,
    is_mirror: bool,
) -> Result<(TenantId, AccountSettings), SettingsError> {
    let mut fields = match body.get_mut("account").map(Value::take) {
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(SettingsError::new("account", "must be an object")),
        None => return Err(SettingsError::new("account", "is missing")),
    };
    if let Some(stranger) = body.as_object().and_then(|body| body.keys().find(|key| *key != "account")) {
        return Err(SettingsError::new(stranger, "is not a field that is known here"));
    }
    if fields.contains_key("name") {
        return Err(SettingsError::new("account.name", "is not allowed here: the name is in the path"));
    }
    if fields.remove("state").is_some_and(|state| !matches!(state.as_str(), Some("")) && !state.is_null()) {
        return Err(SettingsError::new("account.state", "cannot be set"));
    }
    // What was read may be written back.
    fields.remove("replica");
    let tenant = match fields.remove("auth_tenant_id") {
        Some(Value::String(tenant)) => {
            TenantId::parse(&tenant).map_err(|error| SettingsError::new("account.auth_tenant_id", error.to_string()))?
        }
        Some(_) => return Err(SettingsError::new("account.auth_tenant_id", "must be a text")),
        None => return Err(SettingsError::new("account.auth_tenant_id", "is missing")),
    };
    if let (None | Some(Value::Null), Some(replication)) = (fields.get("replication"), replication) {
        fields.insert("replication".into(), serde_json::to_value(replication).unwrap_or_default());
    }
    Ok((tenant, AccountSettings::from_request_about(Value::Object(fields), is_mirror)?))
}

/// An account as the contract shows it.
fn show(call: &Call<'_>, entry: &AccountEntry, settings: &AccountSettings) -> Value {
    let mut fields = Map::new();
    fields.insert("name".into(), entry.name.as_str().into());
    fields.insert("auth_tenant_id".into(), entry.tenant.as_str().into());
    if entry.deleting {
        fields.insert("state".into(), "deleting".into());
    }
    if let Ok(Value::Object(settings)) = serde_json::to_value(settings) {
        fields.extend(settings);
    }
    if let Some(status) = call.state.accounts().registry().backfill_status(&entry.name) {
        let replica = json!({
            "counted": status.is_counted,
            "missing_blobs": status.missing_blobs,
            "missing_bytes": status.missing_bytes,
            "proven_seconds_ago": status.proven.map(|proven| proven.as_secs()),
        });
        fields.insert("replica".into(), replica);
    }
    Value::Object(fields)
}
