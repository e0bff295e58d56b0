//! From any node to a decision: find the leader, ask it, ask again until the deadline.

use std::time::Duration;

use tokio::time::Instant;

use super::command::{Command, Request};
use super::node::Node;
use super::outcome::{ClaimsError, Decision, QuorumLoss, Refusal};
use super::raft::RaftMetrics;
use super::wire::{self, CommandReply, CommandRequest};
use crate::transport::{Channel, TransportError};
use crate::vocabulary::{NodeId, RequestId};

/// How long to wait before asking again, at first.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// How long at most.
const PAUSE_MAX: Duration = Duration::from_millis(320);
/// How much less time the leader gets than the asker has, so that its answer arrives before the asker gives up.
const HEAD_START: Duration = Duration::from_millis(100);

/// What one attempt led to.
enum Attempt {
    Answer(CommandReply),
    /// Nobody was reached.
    Unsent,
    /// The leader may have got the request, but nothing came back.
    Silence,
}

impl Node {
    pub(super) async fn decide(&self, id: RequestId, command: Command) -> Result<Decision, ClaimsError> {
        command.check()?;
        if matches!(command, Command::KeepOnly { .. } | Command::KeepOnlyV1 { .. }) {
            return Err(Refusal::RecoveryOnly.into());
        }
        let request = CommandRequest::Decide(Request { id, command });
        match self.ask_leader(&request).await? {
            CommandReply::Decided(decision) => Ok(decision),
            _ => Err(ClaimsError::Timeout { after: self.options.command_timeout }),
        }
    }

    /// A log index that holds everything decided before the call.
    pub(super) async fn read_index(&self) -> Result<u64, ClaimsError> {
        match self.ask_leader(&CommandRequest::ReadIndex).await? {
            CommandReply::ReadIndex(index) => Ok(index),
            _ => Err(ClaimsError::Timeout { after: self.options.command_timeout }),
        }
    }

    async fn ask_leader(&self, request: &CommandRequest) -> Result<CommandReply, ClaimsError> {
        let _permit = self.permits.try_acquire().map_err(|_| ClaimsError::Overloaded)?;
        let asked = Instant::now();
        let deadline = asked + self.options.command_timeout;
        let leader_awaited_until = asked + self.patience();
        let mut loss: Option<QuorumLoss> = None;
        let mut maybe_done = false;
        let mut hint = None;
        let mut pause = PAUSE_MIN;
        loop {
            self.check_alive()?;
            let leader = hint.take().or_else(|| self.living_leader());
            let attempt = match leader {
                Some(leader) => self.attempt(leader, request, deadline).await,
                None => Attempt::Unsent,
            };
            match attempt {
                Attempt::Answer(reply @ (CommandReply::Decided(_) | CommandReply::ReadIndex(_))) => return Ok(reply),
                Attempt::Answer(CommandReply::NotMember) => return Err(ClaimsError::NotMember),
                Attempt::Answer(CommandReply::NoQuorum(found)) if !maybe_done => {
                    return Err(ClaimsError::NoQuorum(found));
                }
                Attempt::Answer(CommandReply::NoQuorum(found)) => loss = Some(found),
                Attempt::Answer(CommandReply::NotLeader(other)) => hint = other.filter(|other| leader != Some(*other)),
                Attempt::Answer(CommandReply::Unknown) | Attempt::Silence => maybe_done = true,
                Attempt::Answer(CommandReply::Overloaded) | Attempt::Unsent => {}
            }
            let end = if leader.is_some() { deadline } else { leader_awaited_until };
            let left = end.saturating_duration_since(Instant::now());
            if left <= PAUSE_MIN {
                let read_only = matches!(request, CommandRequest::ReadIndex);
                return Err(match maybe_done && !read_only {
                    true => ClaimsError::Timeout { after: self.options.command_timeout },
                    false => ClaimsError::NoQuorum(loss.unwrap_or_else(|| self.quorum_loss())),
                });
            }
            if hint.is_none() {
                self.wait_for_leader_change(leader, pause.min(left)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    async fn attempt(&self, leader: NodeId, request: &CommandRequest, deadline: Instant) -> Attempt {
        let left = deadline.saturating_duration_since(Instant::now());
        if leader == self.id {
            return match tokio::time::timeout(left, self.answer(request.clone(), left)).await {
                Ok(reply) => Attempt::Answer(reply),
                Err(_) => Attempt::Silence,
            };
        }
        match self.transport.request(leader, Channel::Command, wire::encode(request), left).await {
            Ok(answer) => match wire::decode(&answer) {
                Ok(reply) => Attempt::Answer(reply),
                Err(cause) => {
                    tracing::warn!(peer = %leader, %cause, "the leader's answer cannot be read");
                    Attempt::Silence
                }
            },
            Err(
                TransportError::UnknownNode(_)
                | TransportError::NotConnected { .. }
                | TransportError::TooLarge { .. }
                | TransportError::Refused { .. },
            ) => Attempt::Unsent,
            Err(TransportError::Unreachable { .. } | TransportError::Timeout { .. }) => Attempt::Silence,
        }
    }

    /// Answers as the leader; does not pass the question on, so that it cannot go round in circles.
    pub(super) async fn answer(&self, request: CommandRequest, within: Duration) -> CommandReply {
        if self.leader() != Some(self.id) {
            return CommandReply::NotLeader(self.leader());
        }
        if let Some(loss) = self.lost_quorum() {
            return CommandReply::NoQuorum(loss);
        }
        let within = within.saturating_sub(HEAD_START).max(PAUSE_MIN);
        match request {
            CommandRequest::Decide(request) => match self.proposer.queue(request) {
                Ok(told) => match tokio::time::timeout(within, told).await {
                    Ok(Ok(reply)) => reply,
                    Ok(Err(_)) | Err(_) => CommandReply::Unknown,
                },
                Err(reply) => reply,
            },
            CommandRequest::ReadIndex => self.leader_read_index(within).await,
        }
    }

    async fn leader_read_index(&self, within: Duration) -> CommandReply {
        #[cfg(test)]
        if self.options.defect == Some(super::simulation::Defect::UnconfirmedReads) {
            return CommandReply::ReadIndex(self.view.applied());
        }
        match tokio::time::timeout(within, self.raft.get_read_log_id()).await {
            Ok(Ok((read, _applied))) => {
                let decided = read.map_or(0, |id| id.index);
                let vote = self.metrics.borrow().vote;
                let floor = self.started_with.filter(|(elected, _)| *elected == vote).map_or(0, |(_, last)| last);
                CommandReply::ReadIndex(decided.max(floor))
            }
            Ok(Err(openraft::error::RaftError::APIError(openraft::error::CheckIsLeaderError::ForwardToLeader(
                forward,
            )))) => CommandReply::NotLeader(forward.leader_id.map(NodeId::from)),
            Ok(Err(_)) | Err(_) => CommandReply::Unknown,
        }
    }

    /// The node that leads, as far as this one knows.
    pub(super) fn leader(&self) -> Option<NodeId> {
        self.metrics.borrow().current_leader.map(NodeId::from)
    }

    /// The leader, unless it is another node that has been silent for several heartbeats: what is sent to such a one may
    /// arrive, so nobody could say any more that it was not done.
    fn living_leader(&self) -> Option<NodeId> {
        self.leader().filter(|leader| *leader == self.id || self.contacts.unheard(*leader) <= self.silence_max())
    }

    /// A node that says nothing for so long is missing.
    fn silence_max(&self) -> Duration {
        self.options.heartbeat_interval * 3
    }

    /// How long to wait for a leader. That is of use while an election may bring one; after that it only keeps the asker
    /// from the answer that there is none.
    fn patience(&self) -> Duration {
        let contact = *self.majority_contact.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match contact.is_some_and(|contact| contact.asked.elapsed() > self.options.election_timeout_max * 2) {
            true => self.options.command_timeout / 3,
            false => self.options.command_timeout,
        }
    }

    /// On a leader: whether the majority has been silent for too long to promise anything.
    fn lost_quorum(&self) -> Option<QuorumLoss> {
        self.without_quorum_for(self.silence_max()).then(|| self.quorum_loss())
    }

    /// On a leader: whether no majority has answered for longer than this.
    pub(super) fn without_quorum_for(&self, time: Duration) -> bool {
        let metrics = self.metrics.borrow();
        let silent = metrics.millis_since_quorum_ack.is_some_and(|ms| Duration::from_millis(ms) > time);
        silent && voters(&metrics) != [self.id]
    }

    /// Who votes, and which of them are missing: for a leader, who does not answer it; for others, a leader that says
    /// nothing, or, while there is none, who does not answer this node's request for a vote.
    pub(super) fn quorum_loss(&self) -> QuorumLoss {
        let voters = voters(&self.metrics.borrow());
        let (leader, patience) = (self.leader(), self.silence_max());
        let is_missing = |voter: NodeId| match leader {
            Some(leader) if leader == self.id => self.contacts.silence(voter).is_none_or(|silence| silence > patience),
            Some(leader) => leader == voter && self.contacts.unheard(voter) > patience,
            None => self.contacts.waiting(voter).is_some_and(|waiting| waiting > patience),
        };
        let missing = voters.iter().copied().filter(|voter| *voter != self.id && is_missing(*voter)).collect();
        QuorumLoss { voters, missing }
    }

    /// Looks again and again rather than being told: several commands that wait would be told in random order, and a
    /// simulation could not be repeated.
    async fn wait_for_leader_change(&self, known: Option<NodeId>, at_most: Duration) {
        let end = Instant::now() + at_most;
        while Instant::now() < end {
            tokio::time::sleep(PAUSE_MIN.min(end - Instant::now())).await;
            if self.living_leader().is_some_and(|leader| known != Some(leader)) {
                return;
            }
        }
    }
}

/// An id that no other request has.
pub(super) fn fresh_id() -> RequestId {
    #[cfg(test)]
    if let Some(simulated) = super::simulation::simulated_request_id() {
        return simulated;
    }
    RequestId::random()
}

/// The voters of the membership in force, in order.
pub(super) fn voters(metrics: &RaftMetrics) -> Vec<NodeId> {
    metrics.membership_config.voter_ids().map(NodeId::from).collect()
}
