//! Lists of an account's repositories and manifests with all that is told of them, and sums of what an account has: asked of
//! its primary.

use std::time::Duration;

use keppel_federation::membership::Health;
use keppel_federation::vocabulary::{AccountName, Digest, NodeId, RepositoryName};

use super::messages::{Answer, Question, decode, encode, kind_of};
use super::refusals::{confused, reason_of};
use super::upstream::{FederationUpstream, page_limit};
use crate::metadata::ListedRepository;
use crate::registry::{AccountSums, ManifestEntry, Page, Primary, RegistryError};

/// How long a page may take, the connection being made included.
const DEADLINE: Duration = Duration::from_secs(7);
/// The same for a node that the membership has given up.
const DOWN_DEADLINE: Duration = Duration::from_secs(1);
/// How long sums may take: all of a repository is read for them.
const SUMS_DEADLINE: Duration = Duration::from_secs(45);

impl FederationUpstream {
    /// A page of an account's repositories.
    pub(super) async fn ask_for_account_repositories(
        &self,
        from: &Primary,
        account: &AccountName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<ListedRepository>, RegistryError> {
        let (name, after) = (account.clone(), after.map(str::to_owned));
        let question = Question::ListedRepositories { account: name, after, limit: page_limit(limit) };
        match self.ask_about(account, from, &question, self.list_deadline(from.node)).await? {
            Answer::ListedRepositories { items, more } => Ok(Page { items, more, is_stale: false }),
            _ => Err(odd(account, from)),
        }
    }

    /// A page of a repository's manifests.
    pub(super) async fn ask_for_manifests(
        &self,
        from: &Primary,
        repository: &RepositoryName,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Page<ManifestEntry>, RegistryError> {
        let name = repository.clone();
        let question = Question::ListedManifests { repository: name, after: after.copied(), limit: page_limit(limit) };
        match self.ask(from, repository, &question, self.list_deadline(from.node)).await? {
            Answer::ListedManifests { items, more } => Ok(Page { items, more, is_stale: false }),
            _ => Err(confused(from, repository)),
        }
    }

    /// What an account has, from the repository on that follows a name.
    pub(super) async fn ask_for_sums(
        &self,
        from: &Primary,
        account: &AccountName,
        after: &str,
    ) -> Result<AccountSums, RegistryError> {
        let question = Question::Sums { account: account.clone(), after: after.to_owned() };
        match self.ask_about(account, from, &question, SUMS_DEADLINE).await? {
            Answer::Sums { at, repositories, more } => Ok(AccountSums { at, repositories, more }),
            _ => Err(odd(account, from)),
        }
    }

    /// Puts a question that is about no repository. Whatever the other side refuses, nothing is known then.
    async fn ask_about(
        &self,
        account: &AccountName,
        from: &Primary,
        question: &Question,
        deadline: Duration,
    ) -> Result<Answer, RegistryError> {
        metrics::counter!("keppel_questions_total", "kind" => kind_of(question)).increment(1);
        let unreachable = |reason: String| {
            Err(RegistryError::PrimaryUnreachable { account: account.clone(), region: from.region.clone(), reason })
        };
        let answer = match self.federation.ask(from.node, encode(question), deadline).await {
            Ok(answer) => answer,
            Err(error) => return unreachable(reason_of(&error)),
        };
        match decode(&answer) {
            Ok(Answer::Refused(refusal)) => unreachable(format!("it refuses: {refusal:?}")),
            Ok(answer) => Ok(answer),
            Err(error) => unreachable(error.to_string()),
        }
    }

    fn list_deadline(&self, node: NodeId) -> Duration {
        match self.federation.health_of(node) {
            Some(Health::Down) => DOWN_DEADLINE,
            _ => DEADLINE,
        }
    }
}

/// The other side gave an answer to another question.
fn odd(account: &AccountName, from: &Primary) -> RegistryError {
    let reason = "its answer does not fit the question".to_owned();
    RegistryError::PrimaryUnreachable { account: account.clone(), region: from.region.clone(), reason }
}
