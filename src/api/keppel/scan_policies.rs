use serde_json::json;

use super::{Answer, Call, accounts::parse, document};
use crate::{
    model::policy::AccountSettings,
    registry::{AccountError, Requester},
};

/// `GET /keppel/v1/accounts/<name>/security_scan_policies`.
pub(super) fn get(call: &Call<'_>, name: &str) -> Answer {
    let (entry, settings) = call.state.accounts().load(&parse(name)?)?;
    call.require_seen(&entry)?;
    Ok(document(&json!({ "policies": settings.security_scan_policies })))
}

/// `PUT /keppel/v1/accounts/<name>/security_scan_policies`: replaces them.
pub(super) async fn put(call: &Call<'_>, name: &str) -> Answer {
    let (entry, _) = call.state.accounts().load(&parse(name)?)?;
    call.require_changed(&entry, "change the security scan policies of account")?;
    let mut policies = AccountSettings::scan_policies_from_request(call.body()).map_err(AccountError::from)?;
    let username = call.visitor.username().unwrap_or_default();
    for policy in &mut policies {
        policy.resolve_requester(username);
    }
    let requester = Requester { username, is_operator: call.visitor.is_operator() };
    let policies = call.state.accounts().put_scan_policies(&entry.name, policies, requester).await?;
    Ok(document(&json!({ "policies": policies })))
}
