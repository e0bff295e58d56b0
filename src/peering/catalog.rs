//! The catalog's part that is in other regions: whose accounts there are, and what their primaries list.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keppel_federation::membership::Health;
use keppel_federation::vocabulary::{AccountName, NodeId};

use super::messages::{Answer, Question, decode, encode, kind_of};
use super::refusals::reason_of;
use super::upstream::FederationUpstream;
use crate::registry::{AccountsElsewhere, Page, Primary};

/// How long a page may take, the connection being made included.
const DEADLINE: Duration = Duration::from_secs(7);
/// The same for a node that the membership has given up.
const DOWN_DEADLINE: Duration = Duration::from_secs(1);
/// Accounts that are looked at under one lock.
const STEP: usize = 10_000;

impl FederationUpstream {
    /// The accounts of each other node that is a primary; `within`: no other account than that.
    pub(super) fn accounts_elsewhere(&self, within: Option<&AccountName>) -> Vec<AccountsElsewhere> {
        let (view, us) = (self.federation.state(), self.federation.node());
        let mut found: BTreeMap<NodeId, (String, BTreeSet<AccountName>)> = BTreeMap::new();
        let mut after: Option<AccountName> = None;
        loop {
            let accounts = match within {
                Some(account) => view.account(account).into_iter().collect(),
                None => view.accounts_after(after.as_ref(), STEP),
            };
            let is_last = within.is_some() || accounts.len() < STEP;
            after = accounts.last().map(|account| account.name.clone());
            for account in accounts.into_iter().filter(|account| account.owner != us) {
                let (_, names) =
                    found.entry(account.owner).or_insert_with(|| (account.region.to_string(), BTreeSet::new()));
                names.insert(account.name.clone());
            }
            if is_last {
                break;
            }
        }
        let elsewhere = |(node, (region, accounts))| AccountsElsewhere { primary: Primary { node, region }, accounts };
        found.into_iter().map(elsewhere).collect()
    }

    /// A page of the catalog from the primary of these accounts.
    ///
    /// # Errors
    /// What is in the way.
    pub(super) async fn ask_for_repositories(
        &self,
        from: &Primary,
        within: Option<&AccountName>,
        after: &str,
        limit: u32,
    ) -> Result<Page<String>, String> {
        let question = Question::Repositories { within: within.cloned(), after: after.to_owned(), limit };
        metrics::counter!("keppel_questions_total", "kind" => kind_of(&question)).increment(1);
        let deadline = match self.federation.health_of(from.node) {
            Some(Health::Down) => DOWN_DEADLINE,
            _ => DEADLINE,
        };
        let answer = self.federation.ask(from.node, encode(&question), deadline).await;
        let answer = answer.map_err(|error| reason_of(&error))?;
        match decode(&answer) {
            Ok(Answer::Repositories { items, more }) => Ok(Page { items, more, is_stale: false }),
            Ok(Answer::Refused(refusal)) => Err(format!("it refuses: {refusal:?}")),
            Ok(_) => Err("its answer does not fit the question".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}
