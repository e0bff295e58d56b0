//! What a node does by itself: found a federation of one, take up leadership after a restart, and, while it leads,
//! bring the library's membership in line with the federation's members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{InitializeError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::command::Command;
use super::node::{MajorityContact, Node};
use super::outcome::{ClaimsError, Outcome};
use super::raft::{RaftId, Vote, VoteRequest};
use super::store::LogReader;
use super::submit::{fresh_id, voters};
use super::voters::{Candidate, choose_voters};
use crate::vocabulary::{NodeId, uptime};

/// How long a node that is the only voter may take to lead.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Founds a federation where that is asked for and nothing is there; makes an only voter lead.
pub(super) async fn found_or_resume(node: &Node) -> Result<(), ClaimsError> {
    let fatal = |cause: &dyn std::fmt::Display| ClaimsError::Storage(cause.to_string());
    let initialized = node.raft.is_initialized().await.map_err(|cause| fatal(&cause))?;
    if let (false, Some(_)) = (initialized, &node.options.found) {
        match node.raft.initialize(BTreeMap::from([(RaftId::from(node.id), EmptyNode::new())])).await {
            // Another start got as far as this and no further.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(cause) => return Err(fatal(&cause)),
        }
    }
    if voters(&node.metrics.borrow()) != [node.id] && initialized {
        return Ok(());
    }
    if initialized && node.leader() != Some(node.id) {
        node.raft.trigger().elect().await.map_err(|cause| fatal(&cause))?;
    }
    if !initialized && node.options.found.is_none() {
        return Ok(());
    }
    let ready = async {
        let mut metrics = node.metrics.clone();
        let lead = metrics.wait_for(|metrics| metrics.current_leader == Some(node.id.into())).await;
        lead.map(drop).map_err(|_| ClaimsError::Stopping)?;
        // What the log holds is decided once a majority, this node, has it; a read index waits for that.
        let index = node.read_index().await?;
        node.view.wait_applied(index).await;
        admit_founder(node).await
    };
    tokio::time::timeout(READY_TIMEOUT, ready).await.unwrap_or(Err(ClaimsError::Timeout { after: READY_TIMEOUT }))
}

/// The founder admits itself. It is done again after a crash in between, hence the check.
async fn admit_founder(node: &Node) -> Result<(), ClaimsError> {
    let Some(founder) = &node.options.found else { return Ok(()) };
    if !node.view.members().is_empty() {
        return Ok(());
    }
    match node.decide(fresh_id(), Command::Admit(founder.clone())).await?.outcome {
        Outcome::Refused(refusal) => Err(refusal.into()),
        _ => Ok(()),
    }
}

/// While this node leads: adds admitted members as learners, chooses voters, drops removed members. One change of
/// membership at a time, each waited for.
pub(super) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut changes = node.view.watch_changes();
    let mut leading_since = None;
    loop {
        let wait = async {
            tokio::select! {
                biased;
                () = tokio::time::sleep(node.options.voters_review_interval) => {}
                () = until_members_change(&mut changes) => {}
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = wait => {}
        }
        let change = async {
            if let Err(cause) = review(&node, &mut leading_since).await {
                tracing::debug!(%cause, "the membership was not changed; it is tried again");
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = change => {}
        }
    }
}

async fn until_members_change(changes: &mut super::view::Changes) {
    use super::state::Change;
    use super::view::Notice;
    loop {
        match changes.next().await {
            Some(Notice::Changed { change: Change::Account(_) | Change::Document(..), .. }) => {}
            Some(_) => return,
            None => std::future::pending().await,
        }
    }
}

async fn review(node: &Node, leading_since: &mut Option<Instant>) -> Result<(), ClaimsError> {
    if node.leader() != Some(node.id) {
        *leading_since = None;
        return Ok(());
    }
    let leading_for = leading_since.get_or_insert_with(Instant::now).elapsed();
    let change = plan(node, leading_for);
    let Some(change) = change else { return Ok(()) };
    tracing::info!(?change, "the federation's membership is being changed");
    let timeout = node.options.election_timeout_max.max(node.options.command_timeout);
    match tokio::time::timeout(timeout, node.raft.change_membership(change, true)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(cause)) => Err(ClaimsError::Storage(cause.to_string())),
        Err(_) => Err(ClaimsError::Timeout { after: timeout }),
    }
}

/// The next step towards the membership that should be; none when it is there. `leading_for` is how long this node has
/// led, and so has asked the others: one that has not answered in a shorter time is not absent yet.
fn plan(node: &Node, leading_for: Duration) -> Option<ChangeMembers<RaftId, EmptyNode>> {
    let metrics = node.metrics.borrow().clone();
    let present: BTreeSet<NodeId> = metrics.membership_config.nodes().map(|(id, _)| NodeId::from(*id)).collect();
    let voters: BTreeSet<NodeId> = voters(&metrics).into_iter().collect();
    let joint = metrics.membership_config.membership().get_joint_config().len() > 1;
    let members = node.view.members();
    if members.is_empty() {
        return None;
    }
    let ids: BTreeSet<NodeId> = members.iter().map(|member| member.node).collect();
    let missing = ids.difference(&present).map(|id| (RaftId::from(*id), EmptyNode::new())).collect::<BTreeMap<_, _>>();
    if !missing.is_empty() && !joint {
        return Some(ChangeMembers::AddNodes(missing));
    }
    let caught_up = |id: NodeId| {
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&id.into()).copied().flatten());
        let lag = metrics.last_log_index.unwrap_or(0).saturating_sub(matched.map_or(0, |id| id.index));
        matched.is_some() && lag <= node.options.log_entries_kept
    };
    let recent = node.options.heartbeat_interval * 3;
    let candidates: Vec<Candidate> = members
        .iter()
        .map(|member| {
            let voter = voters.contains(&member.node);
            let silence = node.contacts.silence(member.node);
            // A voter keeps its vote through a short absence; a learner gets one only when it is there and up to date.
            let reachable = member.node == node.id
                || match voter {
                    true => silence.unwrap_or(Duration::MAX).min(leading_for) <= node.options.voter_absence_max,
                    false => silence.is_some_and(|silence| silence <= recent) && caught_up(member.node),
                };
            Candidate { node: member.node, region: member.region.clone(), role: member.role, voter, reachable }
        })
        .collect();
    let wanted = choose_voters(&candidates, &node.view.voter_policy());
    if joint || wanted != voters {
        return Some(ChangeMembers::ReplaceAllVoters(wanted.into_iter().map(RaftId::from).collect()));
    }
    let left: BTreeSet<RaftId> = present.difference(&ids).map(|id| RaftId::from(*id)).collect();
    (!left.is_empty()).then_some(ChangeMembers::RemoveNodes(left))
}

/// For how many of the longest election timeouts a leader that made way stands back, if it hears nobody.
const STANDING_BACK_MAX: u32 = 12;

/// While this node leads: makes way when no majority has answered for four heartbeats. Its own heartbeats may still
/// arrive where no answer comes back from, and keep the others from electing a leader that is heard. For the same reason
/// it then stands for no election until it has heard another node: its requests for votes would only stop theirs. One
/// that elected it has never made way since, so somebody always stands.
pub(super) async fn make_way(node: Arc<Node>, stop: CancellationToken) {
    let config = node.raft.runtime_config();
    let mut made_way: Option<Instant> = None;
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(node.options.heartbeat_interval) => {}
        }
        if let Some(since) = made_way {
            let enough = node.options.election_timeout_max * STANDING_BACK_MAX;
            if node.contacts.heard_since(since) || since.elapsed() > enough {
                config.elect(true);
                made_way = None;
            }
            continue;
        }
        if node.leader() != Some(node.id) || !node.without_quorum_for(node.options.heartbeat_interval * 4) {
            continue;
        }
        // The library has no word for stepping down. It follows from a vote given in the next term; this one goes to
        // nobody, so it helps no one to win, and this node may stand for election in the term after it.
        let vote = Vote::new(node.metrics.borrow().current_term + 1, RaftId::default());
        let last_log_id = node.raft.data_metrics().borrow().last_log;
        config.elect(false);
        let voted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            voted = node.raft.vote(VoteRequest::new(vote, last_log_id)) => voted,
        };
        match voted.is_ok_and(|response| response.vote_granted) {
            true => {
                tracing::warn!("this node led, but no majority answers it any more: it makes way for another leader");
                made_way = Some(Instant::now());
            }
            false => config.elect(true),
        }
    }
}

/// How many new entries make it worth while to look at the size of the log again.
const LOG_LOOK_INTERVAL_ENTRIES: u64 = 64;

/// Compacts the log early when its entries are large.
pub(super) async fn keep_log_small(node: Arc<Node>, log: LogReader, stop: CancellationToken) {
    let mut looked_at = 0;
    loop {
        let look = async {
            tokio::time::sleep(node.options.voters_review_interval).await;
            let last = node.metrics.borrow().last_log_index.unwrap_or(0);
            if last >= looked_at + LOG_LOOK_INTERVAL_ENTRIES {
                looked_at = last;
                compact_if_large(&node, &log).await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = look => {}
        }
    }
}

async fn compact_if_large(node: &Node, log: &LogReader) {
    let Ok((size, middle)) = log.size().await else { return };
    if size <= node.options.log_size_max_bytes {
        return;
    }
    let applied = node.view.applied();
    if node.raft.trigger().snapshot().await.is_err() {
        return;
    }
    let built = node.raft.wait(Some(node.options.snapshot_piece_timeout));
    let built = built.metrics(|metrics| metrics.snapshot.is_some_and(|id| id.index >= applied), "a snapshot").await;
    if built.is_ok() {
        let _ = node.raft.trigger().purge_log(middle.min(applied)).await;
        tracing::info!(size_bytes = size, upto = middle.min(applied), "the federation's log was compacted early");
    }
}

/// Asks for a read index, which a majority confirms, and remembers when the question was asked. Gives that, as uptime.
pub(super) async fn contact_majority(node: &Node) -> Result<Duration, ClaimsError> {
    let (asked, asked_uptime) = (Instant::now(), uptime());
    let index = node.read_index().await?;
    let timeout = node.options.command_timeout;
    tokio::time::timeout(timeout, node.view.wait_applied(index))
        .await
        .map_err(|_| ClaimsError::Timeout { after: timeout })?;
    let mut contact = node.majority_contact.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if contact.is_none_or(|contact| contact.asked_uptime < asked_uptime) {
        *contact = Some(MajorityContact { asked, asked_uptime });
    }
    Ok(asked_uptime)
}

/// Renews the contact with the majority at intervals.
pub(super) async fn keep_majority_contact(node: Arc<Node>, stop: CancellationToken) {
    let interval = node.options.majority_contact_interval;
    if interval.is_zero() {
        return;
    }
    loop {
        let contact = async {
            if let Err(cause) = contact_majority(&node).await {
                tracing::debug!(%cause, "no majority of the voters is in contact");
            }
            tokio::time::sleep(interval).await;
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = contact => {}
        }
    }
}
