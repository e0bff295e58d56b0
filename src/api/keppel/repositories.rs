use axum::response::IntoResponse as _;
use http::StatusCode;
use keppel_federation::vocabulary::RepositoryName;
use serde_json::{Value, json};

use super::{Answer, Call, Refusal, accounts::parse, page};
use crate::{
    auth::{Action, Right},
    metadata::ListedRepository,
    registry::AccountError,
};

/// `GET /keppel/v1/accounts/<name>/repositories`: those of an account, page by page.
pub(super) async fn list(call: &Call<'_>, account: &str) -> Answer {
    let (entry, _) = call.state.accounts().load(&parse(account)?)?;
    call.require_seen(&entry)?;
    let (after, limit) = (call.query("marker"), call.limit()?);
    let found = call.state.registry().list_account_repositories(&entry.name, after.as_deref(), limit).await?;
    Ok(page("repositories", &found, show))
}

/// `DELETE /keppel/v1/accounts/<name>/repositories/<repository>`: with all that it holds.
pub(super) async fn delete(call: &Call<'_>, account: &str, repository: &str) -> Answer {
    let repository = load(call, account, repository, Action::Delete)?;
    call.state.registry().delete_repository(&repository).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn show(repository: &ListedRepository) -> Value {
    let name = repository.full_name.split_once('/').map_or("", |(_, path)| path);
    json!({
        "name": name,
        "manifest_count": repository.manifest_count,
        "tag_count": repository.tag_count,
        "size_bytes": repository.size_bytes,
        // Blobs alone make a repository; then no manifest was ever pushed.
        "pushed_at": (repository.pushed_at != 0).then_some(repository.pushed_at),
    })
}

/// A repository in which the caller may do something. Whoever may not even see it is told what those are told who ask for
/// one that is not there: that there is no such account, or, who sees the account, that there is no such repository.
pub(super) fn load(
    call: &Call<'_>,
    account: &str,
    repository: &str,
    action: Action,
) -> Result<RepositoryName, Refusal> {
    let account = parse(account)?;
    let name = RepositoryName::parse(&format!("{account}/{repository}"));
    let (entry, name) = match (call.state.accounts().load(&account), name) {
        (Ok((entry, _)), Ok(name)) => (entry, name),
        (Ok((entry, _)), Err(_)) if call.visitor.has(Right::ViewAccount, &entry.tenant) => {
            return Err(Refusal::plain(StatusCode::NOT_FOUND, format!("no such repository: {account}/{repository}")));
        }
        _ => return Err(AccountError::Unknown.into()),
    };
    let access = call.visitor.api_access(&name);
    let sees_account = call.visitor.has(Right::ViewAccount, &entry.tenant);
    match (access.allows(action), access.allows(Action::Pull) || sees_account) {
        (true, _) => Ok(name),
        (false, true) => {
            let what = match action {
                Action::Pull => "see what is",
                Action::Push => "push",
                Action::Delete => "delete anything",
            };
            Err(Refusal::forbidden(&format_args!("{what} in repository {name}")))
        }
        (false, false) => Err(AccountError::Unknown.into()),
    }
}
