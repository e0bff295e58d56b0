//! Has another node become the primary of an account, and sees to it that nodes act on what was decided.
//!
//! The node that is to become the primary does the work: it follows the account, fetches the blobs, has the primary take no
//! writes, and asks the federation to decide. Whoever asks it to may go away at any time; what was not decided then has only
//! to be asked for again. A primary that was asked to take no writes does so for a window of time. When that is over, it has the
//! federation begin another epoch for itself: in it, what was to be decided in the one before cannot be decided any more.

mod surveying;
mod tending;

use std::time::Duration;

use futures_util::future::BoxFuture;
use keppel_federation::Federation;
use keppel_federation::claims::{AccountState, ClaimsError, Member, Outcome, Role};
use keppel_federation::transport::TransportError;
use keppel_federation::vocabulary::{AccountName, NodeId, Region};
use tokio::time::Instant;

use super::messages::{Answer, Question, SuccessionAnswer, SuccessionQuestion, decode, encode};
use super::refusals::reason_of;
use crate::metadata::Cursor;
use crate::registry::{Handover, Readiness, Registry};

pub(super) use tending::{Roles, find_place, tend};

/// For how long a primary takes no writes, beyond the time that leases need.
const WINDOW: Duration = Duration::from_secs(10);
/// How much of that is left at least when the decision is known, if nothing is to be waited for.
const WINDOW_MARGIN: Duration = Duration::from_secs(1);
/// How long one question may take that is answered at once.
const BRIEF_DEADLINE: Duration = Duration::from_secs(10);
/// How long blobs are fetched for one question.
const FETCH_STEP: Duration = Duration::from_secs(8);
/// How long blobs are fetched while no writes are taken.
const LAST_FETCH: Duration = Duration::from_secs(2);
/// How long a question may take that moves an account.
const MOVE_DEADLINE: Duration = Duration::from_secs(70);
/// How often a node is asked again to which there is no connection, or whose connection was closed.
const RECONNECT_TRIES: u32 = 8;
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// Who is to become the primary, and what that would mean.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its region.
    pub region: Region,
    /// The account's epoch now.
    pub epoch: u64,
    /// The region that is primary now.
    pub primary: Region,
    /// Whether the primary answers.
    pub primary_answers: bool,
    /// How much the candidate has.
    pub readiness: Readiness,
}

/// The node of a region that has most of an account, of those that answer.
///
/// # Errors
/// In words: there is no such account or region, the account is there already, or no node there answers.
pub async fn find_candidate(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    region: &Region,
) -> Result<Candidate, String> {
    let state = federation.state();
    let claimed = state.account(account).ok_or_else(|| format!("there is no account {account}"))?;
    if claimed.state == AccountState::Deleting {
        return Err(format!("account {account} is being deleted"));
    }
    let of_region = |member: &Member| member.region == *region && member.role == Role::Full;
    let nodes: Vec<NodeId> = federation.members().into_iter().filter(of_region).map(|member| member.node).collect();
    if nodes.is_empty() {
        return Err(format!("no node of the federation that keeps content is in region {region}"));
    }
    if nodes.contains(&claimed.owner) {
        return Err(format!("region {region} is the primary of account {account} already"));
    }
    let (mut best, mut problems): (Option<(NodeId, Readiness)>, Vec<String>) = (None, Vec::new());
    for node in nodes {
        let question = SuccessionQuestion::Readiness { account: account.clone() };
        match ask(federation, registry, node, question, BRIEF_DEADLINE).await {
            Ok(SuccessionAnswer::Readiness(readiness)) => {
                // One that was whole later is further in the primary's log.
                let whole_since = |it: &Readiness| std::cmp::Reverse(it.behind_ms.unwrap_or(u64::MAX));
                let has = |it: &Readiness| (it.is_complete, whole_since(it), it.manifests, it.blobs - it.missing_blobs);
                if best.as_ref().is_none_or(|(_, known)| has(&readiness) > has(known)) {
                    best = Some((node, readiness));
                }
            }
            Ok(_) => problems.push("its answer does not fit the question".to_owned()),
            Err(problem) => problems.push(problem),
        }
    }
    let Some((node, readiness)) = best else {
        return Err(format!("no node in region {region} answers: {}", problems.join("; ")));
    };
    let question = SuccessionQuestion::Readiness { account: account.clone() };
    let primary_answers = ask(federation, registry, claimed.owner, question, Duration::from_secs(2)).await.is_ok();
    Ok(Candidate {
        node,
        region: region.clone(),
        epoch: claimed.epoch,
        primary: claimed.region.clone(),
        primary_answers,
        readiness,
    })
}

/// Has a node follow an account and fetch what it lacks, for a while; gives how much it has then.
///
/// # Errors
/// In words.
pub async fn prepare(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    node: NodeId,
) -> Result<Readiness, String> {
    let question = SuccessionQuestion::Prepare { account: account.clone() };
    match ask(federation, registry, node, question, FETCH_STEP + BRIEF_DEADLINE * 2).await? {
        SuccessionAnswer::Readiness(readiness) => Ok(readiness),
        _ => Err("its answer does not fit the question".to_owned()),
    }
}

/// How an account gets another primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The one that is gives it.
    Move,
    /// Without it, unless another replica may have more.
    FailOver,
    /// Without it, whatever others have.
    FailOverRegardless,
}

/// Has a node become the primary of an account that is in this epoch. Gives the new one.
///
/// # Errors
/// In words.
pub async fn install(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    node: NodeId,
    epoch: u64,
    way: Way,
) -> Result<u64, String> {
    let account = account.clone();
    let question = match way {
        Way::Move => SuccessionQuestion::TakeOver { account, epoch },
        Way::FailOver => SuccessionQuestion::FailOver { account, epoch },
        Way::FailOverRegardless => SuccessionQuestion::FailOverRegardless { account, epoch },
    };
    match ask(federation, registry, node, question, MOVE_DEADLINE).await? {
        SuccessionAnswer::Taken { epoch } => Ok(epoch),
        _ => Err("its answer does not fit the question".to_owned()),
    }
}

/// Asks a node, which may be this one. A refusal is an error.
async fn ask(
    federation: &Federation,
    registry: &Registry,
    node: NodeId,
    question: SuccessionQuestion,
    deadline: Duration,
) -> Result<SuccessionAnswer, String> {
    let answer = match node == federation.node() {
        true => answer_here(federation, registry, node, question).await,
        false => {
            let (question, mut tries) = (encode(&Question::Succession(question)), 0);
            let asked = loop {
                let asked = federation.ask(node, question.clone(), deadline).await;
                // A node that has just started again is behind a connection that is no more. All of these may be asked twice.
                let is_over =
                    matches!(asked, Ok(_) | Err(TransportError::Timeout { .. } | TransportError::Refused { .. }));
                tries += 1;
                if is_over || tries > RECONNECT_TRIES {
                    break asked;
                }
                tokio::time::sleep(RECONNECT_PAUSE).await;
            };
            match decode(&asked.map_err(|error| reason_of(&error))?).map_err(|error| error.to_string())? {
                Answer::Succession(answer) => answer,
                _ => return Err("its answer does not fit the question".to_owned()),
            }
        }
    };
    match answer {
        SuccessionAnswer::Refused(reason) => Err(reason),
        answer => Ok(answer),
    }
}

/// Boxed, since to become the primary this node asks others, of whom one may be itself.
fn answer_here<'a>(
    federation: &'a Federation,
    registry: &'a Registry,
    from: NodeId,
    question: SuccessionQuestion,
) -> BoxFuture<'a, SuccessionAnswer> {
    Box::pin(answer(federation, registry, from, question))
}

/// Answers a question about one primary after another.
pub(super) async fn answer(
    federation: &Federation,
    registry: &Registry,
    from: NodeId,
    question: SuccessionQuestion,
) -> SuccessionAnswer {
    let answer = answer_question(federation, registry, from, question).await;
    answer.unwrap_or_else(SuccessionAnswer::Refused)
}

async fn answer_question(
    federation: &Federation,
    registry: &Registry,
    from: NodeId,
    question: SuccessionQuestion,
) -> Result<SuccessionAnswer, String> {
    use SuccessionAnswer as A;
    use SuccessionQuestion as Q;
    match question {
        Q::Readiness { account } => Ok(A::Readiness(registry.readiness(&account).await.map_err(in_words)?)),
        Q::Prepare { account } => {
            if let Some(upstream) = registry.mirrored(&account) {
                return Err(format!(
                    "account {account} mirrors {upstream} and cannot be moved, since what was pulled there is not copied between \
                     regions: make another mirror of it here; should the account's region be lost, fail it over with --force, \
                     and what is pulled from then on is fetched anew"
                ));
            }
            registry.want_copy(&account);
            let deadline = Instant::now() + FETCH_STEP;
            while !registry.has_copy(&account) && Instant::now() < deadline {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            Ok(A::Readiness(registry.fetch_missing_of(&account, left).await.map_err(in_words)?))
        }
        Q::TakeOver { account, epoch } => {
            let (federation, registry) = (federation.clone(), registry.clone());
            // Whoever asked may go away, and ask again; what has begun comes to its end.
            let work = tokio::spawn(async move {
                let taken = take_over(&federation, &registry, &account, epoch).await;
                taken.or_else(|reason| taken_before(&federation, &account, epoch).ok_or(reason))
            });
            Ok(A::Taken { epoch: work.await.map_err(|_| "it ended unexpectedly")?? })
        }
        Q::FailOver { account, epoch } => fail_over(federation, registry, account, epoch, false).await,
        Q::FailOverRegardless { account, epoch } => fail_over(federation, registry, account, epoch, true).await,
        Q::Survey { account, primary, epoch, lasting_ms } => {
            let lasting = Duration::from_millis(lasting_ms).min(surveying::LASTING);
            Ok(A::Surveyed(registry.survey(&account, (primary, epoch), lasting).await.map_err(in_words)?))
        }
        Q::EndSurvey { account } => {
            registry.end_survey(&account);
            Ok(A::Noted)
        }
        Q::HandOver { account, epoch, window_ms } => {
            let window = Duration::from_millis(window_ms).min(registry.options().lease * 4 + WINDOW);
            let head = registry.hand_account_over(&account, epoch, window).await.map_err(in_words)?;
            tracing::info!(%account, peer = %from, "an account is handed over");
            Ok(A::HandingOver { head })
        }
        Q::Keep { account, epoch } => {
            registry.end_handing_over(&account, epoch);
            Ok(A::Noted)
        }
        Q::Place { account, .. } if registry.is_coming(&account) => {
            Err(format!("account {account} is just being taken over: ask again"))
        }
        Q::Place { account, epoch } => Ok(A::Place(registry.succession(&account, epoch).await.map_err(in_words)?)),
    }
}

/// Becomes the primary with the consent of the one that is: nothing that it acknowledged is missing here afterwards.
async fn take_over(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    epoch: u64,
) -> Result<u64, String> {
    let owner = check_claim(federation, account, epoch).await?;
    let (lease, sent) = (registry.options().lease, Instant::now());
    let window = lease * 3 + WINDOW;
    let window_ms = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
    let question = SuccessionQuestion::HandOver { account: account.clone(), epoch, window_ms };
    let head = match ask(federation, registry, owner, question, lease * 2 + BRIEF_DEADLINE).await {
        Ok(SuccessionAnswer::HandingOver { head }) => head,
        Ok(_) => return Err("the primary's answer does not fit the question".to_owned()),
        Err(reason) => return Err(format!("the primary does not hand account {account} over: {reason}")),
    };
    let outcome = take_over_at(federation, registry, account, epoch, head, sent + window).await;
    if outcome.is_err() {
        // It asks the federation first: should it have been decided after all, it does not go on.
        let question = SuccessionQuestion::Keep { account: account.clone(), epoch };
        let _ = ask(federation, registry, owner, question, BRIEF_DEADLINE).await;
    }
    outcome
}

async fn take_over_at(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    epoch: u64,
    head: Cursor,
    until: Instant,
) -> Result<u64, String> {
    while !registry.has_reached(account, head) {
        if Instant::now() + WINDOW_MARGIN * 3 > until {
            return Err(format!("this region did not catch up with account {account} in time: try again"));
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    // The last ones were pushed while the others came. What does not come now is fetched afterwards.
    if let Err(error) = registry.fetch_missing_of(account, LAST_FETCH).await {
        tracing::warn!(%account, %error, "blobs are fetched once this node is the primary");
    }
    let next = decide(federation, registry, account, epoch).await?;
    let in_time = Instant::now() + WINDOW_MARGIN < until;
    let how = if in_time { Handover::Given } else { Handover::Seized };
    registry.take_account(account, how).await.map_err(in_words)?;
    Ok(next)
}

/// The epoch that this node has begun when it was asked the same before.
fn taken_before(federation: &Federation, account: &AccountName, epoch: u64) -> Option<u64> {
    let claimed = federation.state().account(account)?;
    (claimed.owner == federation.node() && claimed.epoch == epoch + 1).then_some(claimed.epoch)
}

async fn fail_over(
    federation: &Federation,
    registry: &Registry,
    account: AccountName,
    epoch: u64,
    regardless: bool,
) -> Result<SuccessionAnswer, String> {
    let (federation, registry) = (federation.clone(), registry.clone());
    // Whoever asked may go away, and ask again; what has begun comes to its end.
    let work = tokio::spawn(async move {
        let taken = seize(&federation, &registry, &account, epoch, regardless).await;
        taken.or_else(|reason| taken_before(&federation, &account, epoch).ok_or(reason))
    });
    Ok(SuccessionAnswer::Taken { epoch: work.await.map_err(|_| "it ended unexpectedly")?? })
}

/// Becomes the primary without the one that is; unless `regardless`, only where no other replica may have more.
async fn seize(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    epoch: u64,
    regardless: bool,
) -> Result<u64, String> {
    let owner = check_claim(federation, account, epoch).await?;
    if !regardless {
        surveying::check_nobody_has_more(federation, registry, account, (owner, epoch)).await?;
    }
    let next = decide(federation, registry, account, epoch).await?;
    registry.take_account(account, Handover::Seized).await.map_err(in_words)?;
    Ok(next)
}

/// The primary of an account that a majority knows to be in this epoch, and not to be this node's.
async fn check_claim(federation: &Federation, account: &AccountName, epoch: u64) -> Result<NodeId, String> {
    let state = federation.linearize().await.map_err(in_words)?;
    let claimed = state.account(account).ok_or_else(|| format!("there is no account {account}"))?;
    if claimed.epoch != epoch {
        return Err(format!("account {account} got another primary in the meantime: region {}", claimed.region));
    }
    if claimed.owner == federation.node() {
        return Err(format!("this region is the primary of account {account} already"));
    }
    Ok(claimed.owner)
}

/// Has the federation decide that this node is the primary, and waits until that shows here.
async fn decide(
    federation: &Federation,
    registry: &Registry,
    account: &AccountName,
    epoch: u64,
) -> Result<u64, String> {
    registry.expect_account(account, epoch + 1).await.map_err(in_words)?;
    let decided = federation.move_primary(account.clone(), federation.node(), epoch).await;
    let decision = match decided {
        Ok(decision) => decision,
        Err(error @ ClaimsError::Timeout { .. }) => {
            return Err(format!("{}; `keppel federation accounts` shows what came of it", in_words(error)));
        }
        Err(error) => return Err(in_words(error)),
    };
    match decision.outcome {
        Outcome::Moved { epoch } => {
            federation.state().wait_applied(decision.applied).await;
            Ok(epoch)
        }
        Outcome::StaleEpoch { .. } => Err(format!("account {account} got another primary in the meantime")),
        Outcome::NotFound => Err(format!("there is no account {account}")),
        Outcome::Refused(refusal) => Err(refusal.to_string()),
        other => Err(format!("the federation answered {other:?}")),
    }
}

/// An error with all its causes.
fn in_words(error: impl std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = error.source();
    }
    words
}
