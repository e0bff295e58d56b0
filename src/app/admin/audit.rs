//! What operators did, for the audit log.

use std::time::{SystemTime, UNIX_EPOCH};

use super::{Answer, Request};
use crate::auth::PeopleRequest;
use crate::registry::AuditEvent;

/// What a request is about to change; `None`: it only looks.
pub(super) fn change_of(request: &Request, uid: u32) -> Option<AuditEvent> {
    use PeopleRequest as P;
    let (action, kind, target) = match request {
        Request::Members
        | Request::Invitations
        | Request::Hold { .. }
        | Request::FindCandidate { .. }
        | Request::Prepare { .. }
        | Request::ListDivergent { .. }
        | Request::Status
        | Request::Accounts { .. }
        | Request::JanitorStatus
        | Request::ScrubProgress { .. }
        | Request::JanitorRun { dry_run: true, .. } => return None,
        Request::JanitorRun { task, .. } => ("start", "janitor", task.clone()),
        Request::Scrub { account } => ("start", "scrub", account.to_string()),
        Request::Invite { region, .. } => ("create", "invitation", region.to_string()),
        Request::RevokeInvitation { id } => ("revoke", "invitation", id.clone()),
        Request::Join { .. } => ("create", "membership", String::new()),
        Request::Remove { node } => ("delete", "member", node.clone()),
        Request::SetVoters { nodes } => ("update", "voters", nodes.join(" ")),
        Request::Install { account, by_force: false, .. } => ("move", "account", account.to_string()),
        Request::Install { account, by_force: true, .. } => ("failover", "account", account.to_string()),
        Request::PushDivergent { account } => ("push/divergent", "account", account.to_string()),
        Request::DropDivergent { account } => ("drop/divergent", "account", account.to_string()),
        Request::People { people } => match people {
            P::ListUsers | P::ListRobots | P::ListKeys => return None,
            P::AddUser { name, .. } => ("create", "user", name.clone()),
            P::SetPassword { name, .. } => ("update/password", "user", name.clone()),
            P::SetRole { name, .. } => ("update/role", "user", name.clone()),
            P::SetOperator { name, .. } => ("update/operator", "user", name.clone()),
            P::SetDisabled { name, .. } => ("update/disabled", "user", name.clone()),
            P::AddToken { name, .. } => ("create/token", "user", name.clone()),
            P::RevokeTokens { name, .. } => ("revoke", "user", name.clone()),
            P::RemoveUser { name } => ("delete", "user", name.clone()),
            P::AddRobot { name, .. } => ("create", "robot", name.clone()),
            P::RotateRobot { name, .. } => ("update/secret", "robot", name.clone()),
            P::RevokeRobot { name } => ("revoke", "robot", name.clone()),
            P::RevokeKey { id } => ("revoke", "signing key", id.clone()),
            P::RemoveRobot { name } => ("delete", "robot", name.clone()),
        },
    };
    let detail = match request {
        Request::People { people: P::SetRole { tenant, role, .. } } => format!("{tenant}: {role:?}"),
        Request::People { people: P::SetOperator { operator, .. } } => operator.to_string(),
        Request::People { people: P::SetDisabled { disabled, .. } } => disabled.to_string(),
        _ => String::new(),
    };
    // A robot belongs to a tenant, whose admins may see what became of it.
    let tenant = target.split_once('+').filter(|_| kind == "robot").map(|(tenant, _)| tenant.to_owned());
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Some(AuditEvent {
        id: 0,
        at_ms: i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        tenant,
        actor: format!("operator:uid {uid}"),
        address: "local".to_owned(),
        user_agent: "admin socket".to_owned(),
        request_id: String::new(),
        action: action.to_owned(),
        kind: kind.to_owned(),
        target,
        detail,
        status: 0,
    })
}

/// The event with what came of it.
pub(super) fn finish(event: AuditEvent, answer: &Answer) -> AuditEvent {
    match answer {
        Answer::Refused { reason } => AuditEvent { status: 409, detail: reason.clone(), ..event },
        _ => AuditEvent { status: 200, ..event },
    }
}
