//! How the federation fares, for people and for programs.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::{Federation, Inner, on_disk};
use crate::claims::{ClaimsStatus, Member, View};
use crate::membership::Health;
use crate::transport::{Channel, TransportError};
use crate::vocabulary::{NodeId, Region, uptime};

const VERSION: u8 = 1;

/// The federation as one node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FederationStatus {
    /// The node that looks.
    pub node: NodeId,
    /// Its region.
    pub region: Region,
    /// Its part in deciding: `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub part: String,
    /// Whether it is a member.
    pub member: bool,
    /// The node that leads, as far as is known.
    pub leader: Option<NodeId>,
    /// Counts the elections.
    pub term: u64,
    /// The nodes that decide.
    pub voters: Vec<NodeId>,
    /// Whether decisions can be taken.
    pub quorum: QuorumStatus,
    /// The last log entry this node has applied.
    pub applied: u64,
    /// What this node holds of all that was agreed on.
    #[serde(default)]
    pub state: StateStatus,
    /// How many accounts are claimed.
    pub accounts: usize,
    /// All members.
    pub members: Vec<MemberStatus>,
}

/// What a node holds of all that was agreed on. Nodes that have applied the same entry have the same hash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateStatus {
    /// The log entry it had applied when the hash was taken.
    pub applied: u64,
    /// The hash of all that was agreed on up to there, in hexadecimal digits.
    pub hash: String,
    /// Entries up to this one are no longer in its log: who needs them gets the whole state instead.
    pub compacted: u64,
    /// How often it got the whole state from another node since it started.
    pub snapshots_installed: u64,
}

/// Whether decisions can be taken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QuorumStatus {
    /// Whether a majority of the voters answers.
    pub healthy: bool,
    /// What is wrong and what to do, where something is.
    pub explanation: Option<String>,
}

/// One member.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its identity.
    pub node: NodeId,
    /// Where it runs.
    pub region: Region,
    /// `full` or `witness`.
    pub role: String,
    /// How it fares.
    pub health: Health,
    /// Whether it is the node that looks.
    pub this: bool,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// How long a packet to it and back takes.
    pub round_trip_ms: Option<f64>,
    /// The version of its program.
    pub version: Option<String>,
    /// The last log entry it has applied.
    pub applied: Option<u64>,
    /// The last log entry it holds.
    pub last_log: Option<u64>,
    /// How long it has been running.
    pub uptime_s: Option<u64>,
    /// Where other nodes reach it.
    pub addresses: Vec<SocketAddr>,
    /// Where clients reach its API; empty for a witness.
    pub api_url: String,
    /// Why it did not answer, where it did not.
    pub problem: Option<String>,
}

/// What a node says when it is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answer {
    version: String,
    applied: u64,
    last_log: u64,
    uptime_s: u64,
}

impl Federation {
    /// How the federation fares. Asks all members that may live, each for at most
    /// [`FederationOptions::status_timeout`](super::FederationOptions::status_timeout).
    pub async fn status(&self) -> FederationStatus {
        let inner = &self.inner;
        let claims = inner.claims();
        let seen = claims.status();
        let state = claims.state();
        let members = state.members();
        let asked = claims.majority_asked_at();
        let quorum =
            quorum(&seen, asked.map(|at| uptime().saturating_sub(at)), inner.options.claims.heartbeat_interval * 10);
        let described = members.iter().map(|member| describe(inner, member, &seen));
        let described: Vec<Described> = join_all(described).await;
        // Whom all others that answer call a stranger was removed, and cannot have heard of it.
        let disowned = described.iter().any(|member| member.disowns)
            && described.iter().all(|member| member.disowns || member.status.this || member.status.uptime_s.is_none());
        let quorum = if disowned { QuorumStatus::disowned() } else { quorum };
        let accounts = state.accounts_len();
        let held = held(state.clone(), &seen).await;
        FederationStatus {
            node: seen.node,
            region: inner.options.region.clone(),
            part: seen.part.as_str().to_owned(),
            member: state.member(seen.node).is_some() && !disowned,
            leader: seen.leader,
            term: seen.term,
            voters: seen.voters.iter().copied().collect(),
            quorum,
            applied: seen.applied,
            state: held,
            accounts,
            members: described.into_iter().map(|member| member.status).collect(),
        }
    }
}

impl QuorumStatus {
    fn disowned() -> Self {
        let words = "the other members do not know this node any more: it was removed from the federation; \
                     to let it join again, stop it and run `federation reset-identity`";
        Self { healthy: false, explanation: Some(words.to_owned()) }
    }
}

/// Takes the hash aside: it takes time in proportion to the state.
async fn held(state: View, seen: &ClaimsStatus) -> StateStatus {
    let (compacted, snapshots_installed) = (seen.purged, state.snapshots_installed());
    let (applied, hash) = on_disk(move || Ok::<_, std::convert::Infallible>(state.hash())).await.unwrap_or_default();
    StateStatus { applied, hash, compacted, snapshots_installed }
}

/// What is known of a member, and whether it calls this node a stranger.
struct Described {
    status: MemberStatus,
    disowns: bool,
}

/// A majority was heard of lately, or it was not.
fn quorum(seen: &ClaimsStatus, contact_age: Option<Duration>, patience: Duration) -> QuorumStatus {
    let healthy = seen.leader.is_some() && contact_age.is_some_and(|age| age <= patience);
    let explanation = (!healthy).then(|| match seen.voters.is_empty() {
        true => "this node has not heard from the federation yet".to_owned(),
        false => seen.quorum.to_string(),
    });
    QuorumStatus { healthy, explanation }
}

async fn describe(inner: &Inner, member: &Member, seen: &ClaimsStatus) -> Described {
    let this = member.node == seen.node;
    let peer = inner.membership.get_peer(member.node);
    let health = if this { Health::Alive } else { peer.as_ref().map_or(Health::Unknown, |peer| peer.health) };
    let card = peer.and_then(|peer| peer.card);
    let asked = match (this, health) {
        (true, _) => Ok(own_answer(inner, seen)),
        (false, Health::Down) => Err(None),
        (false, _) => ask(inner, member.node).await.map_err(Some),
    };
    let disowns = matches!(&asked, Err(Some(TransportError::Refused { reason, .. })) if reason.contains("member"));
    let (answer, problem) = match asked {
        Ok(answer) => (Some(answer), None),
        Err(problem) => (None, problem.map(|e| e.to_string())),
    };
    let status = MemberStatus {
        node: member.node,
        region: member.region.clone(),
        role: member.role.as_str().to_owned(),
        health,
        this,
        voter: seen.voters.contains(&member.node),
        leader: seen.leader == Some(member.node),
        round_trip_ms: inner.transport.round_trip_time(member.node).map(|time| time.as_secs_f64() * 1000.0),
        version: answer
            .as_ref()
            .map(|answer| answer.version.clone())
            .or(card.as_ref().map(|card| card.version.clone())),
        applied: answer.as_ref().map(|answer| answer.applied),
        last_log: answer.as_ref().map(|answer| answer.last_log),
        uptime_s: answer.as_ref().map(|answer| answer.uptime_s),
        addresses: card.map_or_else(|| member.addresses.clone(), |card| card.addresses),
        api_url: member.api_url.clone(),
        problem,
    };
    Described { status, disowns }
}

async fn ask(inner: &Inner, node: NodeId) -> Result<Answer, TransportError> {
    let asked =
        inner.transport.request(node, Channel::Status, Bytes::from_static(&[VERSION]), inner.options.status_timeout);
    let refused = |reason: &str| TransportError::Refused { node, reason: reason.into() };
    match &asked.await?[..] {
        [VERSION, body @ ..] => postcard::from_bytes(body).map_err(|_| refused("its status cannot be read")),
        _ => Err(refused("its status is of another version")),
    }
}

fn own_answer(inner: &Inner, seen: &ClaimsStatus) -> Answer {
    Answer {
        version: inner.options.version.clone(),
        applied: seen.applied,
        last_log: seen.last_log,
        uptime_s: inner.started.elapsed().as_secs(),
    }
}

/// Answers another member.
pub(super) fn answer(inner: &Inner) -> Result<Bytes, String> {
    let answer = own_answer(inner, &inner.claims().status());
    postcard::to_extend(&answer, vec![VERSION]).map(Bytes::from).map_err(|e| e.to_string())
}
