//! Whether any other replica may have more of an account than this node, which is to become its primary without the one that is.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use keppel_federation::Federation;
use keppel_federation::claims::{Member, Role};
use keppel_federation::vocabulary::{AccountName, NodeId, Region};

use super::{BRIEF_DEADLINE, SuccessionAnswer, SuccessionQuestion, ask, in_words};
use crate::registry::{Progress, Registry};

/// For how long replicas take nothing from a primary that is being replaced: much longer than a decision takes. They go on
/// sooner when it is made, or when it turns out that there will be none.
pub(super) const LASTING: Duration = Duration::from_secs(120);
/// How long replicas are waited for that do not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Refuses to go on where another replica has more, or where so many regions cannot be asked that what was acknowledged may be
/// with them and the primary alone. Otherwise no replica takes anything more from the primary.
pub(super) async fn check_nobody_has_more(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    (owner, epoch): (NodeId, u64),
) -> Result<(), String> {
    let members = federation.members();
    let owner_region = members.iter().find(|member| member.node == owner).map(|member| member.region.clone());
    let is_replica = |member: &&Member| member.role == Role::Full && ![owner, federation.node()].contains(&member.node);
    let others: Vec<&Member> = members.iter().filter(is_replica).collect();
    let checked = compare(federation, registry, account, (owner, epoch), owner_region.as_ref(), &others).await;
    if checked.is_err() {
        registry.end_survey(account);
        let end = |member: &&Member| {
            let question = SuccessionQuestion::EndSurvey { account: account.clone() };
            ask(federation, registry, member.node, question, BRIEF_DEADLINE)
        };
        let _ = tokio::time::timeout(PATIENCE, join_all(others.iter().map(end))).await;
    }
    checked
}

async fn compare(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    (owner, epoch): (NodeId, u64),
    owner_region: Option<&Region>,
    others: &[&Member],
) -> Result<(), String> {
    let lasting_ms = u64::try_from(LASTING.as_millis()).unwrap_or(u64::MAX);
    let survey = |node: NodeId| {
        let question = SuccessionQuestion::Survey { account: account.clone(), primary: owner, epoch, lasting_ms };
        let asking = ask(federation, registry, node, question, PATIENCE);
        async move { tokio::time::timeout(PATIENCE, asking).await.ok().and_then(Result::ok) }
    };
    let answers = join_all(others.iter().map(|member| survey(member.node))).await;
    // Last, so that this node may still have got what the others had.
    let Progress::At(ours) = registry.survey(account, (owner, epoch), LASTING).await.map_err(in_words)? else {
        let region = owner_region.map_or("that is the primary", Region::as_str);
        return Err(format!(
            "this region has not got all of account {account} since region {region} became its primary: choose another, or add --force"
        ));
    };
    let (mut more, mut unclear) = (None, BTreeSet::new());
    for (member, answer) in others.iter().zip(answers) {
        match answer {
            Some(SuccessionAnswer::Surveyed(Progress::At(place))) if place.sequence > ours.sequence => {
                more = Some((member, place.sequence - ours.sequence));
            }
            Some(SuccessionAnswer::Surveyed(Progress::At(_) | Progress::Nothing)) => {}
            _ => {
                unclear.insert(&member.region);
            }
        }
    }
    if let Some((member, changes)) = more {
        return Err(format!(
            "region {} has {changes} changes of account {account} that are not here: fail over to it, or add --force to lose them",
            member.region
        ));
    }
    // A push that was acknowledged is in as many regions; that of the primary is one of them.
    unclear.retain(|region| Some(*region) != owner_region);
    let copies = registry.copies_of(account);
    if copies > 1 && unclear.len() >= usize::from(copies) - 1 {
        let regions: Vec<&str> = unclear.into_iter().map(Region::as_str).collect();
        return Err(format!(
            "account {account} asks for {copies} copies, and whether region {} has more of it cannot be told now: wait, or add \
             --force to lose what only it and the primary have",
            regions.join(", ")
        ));
    }
    Ok(())
}
