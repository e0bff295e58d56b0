//! What a node hears of the others: who answers, who speaks, who is silent.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::transport::TransportError;
use crate::vocabulary::NodeId;

/// One other node.
#[derive(Debug, Default, Clone, Copy)]
struct Contact {
    /// When it last answered a question of ours.
    answered: Option<Instant>,
    /// When it last said anything, asked or unasked.
    heard: Option<Instant>,
    /// Since when questions of ours are without an answer.
    waiting_since: Option<Instant>,
    /// Whether its silence was logged.
    reported: bool,
}

/// All other nodes.
#[derive(Debug)]
pub(super) struct Contacts {
    /// Before this nobody could be heard.
    started: Instant,
    all: Mutex<BTreeMap<NodeId, Contact>>,
}

impl Contacts {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), all: Mutex::default() }
    }

    /// A question goes out.
    pub(super) fn asked(&self, node: NodeId) {
        self.lock().entry(node).or_default().waiting_since.get_or_insert_with(Instant::now);
    }

    /// An answer came.
    pub(super) fn answered(&self, node: NodeId) {
        let now = Some(Instant::now());
        let contact = Contact { answered: now, heard: now, ..Contact::default() };
        if self.lock().insert(node, contact).is_some_and(|before| before.reported) {
            tracing::info!(peer = %node, "a member of the federation answers again");
        }
    }

    /// No answer came. Logged once, when it has been so for as long as `patience`.
    pub(super) fn failed(&self, node: NodeId, cause: &TransportError, patience: Duration) {
        let mut all = self.lock();
        let contact = all.entry(node).or_default();
        if contact.reported || contact.waiting_since.is_none_or(|since| since.elapsed() <= patience) {
            return;
        }
        contact.reported = true;
        drop(all);
        tracing::warn!(peer = %node, %cause, "a member of the federation does not answer; it is asked until it does");
    }

    /// It said something by itself.
    pub(super) fn heard(&self, node: NodeId) {
        self.lock().entry(node).or_default().heard = Some(Instant::now());
    }

    /// How long ago a node answered; `None`: never.
    pub(super) fn silence(&self, node: NodeId) -> Option<Duration> {
        self.get(node).answered.map(|at| at.elapsed())
    }

    /// For how long a node has said nothing at all; since this node's start, if ever.
    pub(super) fn unheard(&self, node: NodeId) -> Duration {
        self.get(node).heard.unwrap_or(self.started).elapsed()
    }

    /// For how long a node has left questions without an answer; `None`: it has not.
    pub(super) fn waiting(&self, node: NodeId) -> Option<Duration> {
        self.get(node).waiting_since.map(|since| since.elapsed())
    }

    /// Whether any node has said anything since then.
    pub(super) fn heard_since(&self, since: Instant) -> bool {
        self.lock().values().any(|contact| contact.heard.is_some_and(|at| at > since))
    }

    fn get(&self, node: NodeId) -> Contact {
        self.lock().get(&node).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Contact>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_from_the_first_question_without_an_answer() {
        let (contacts, node) = (Contacts::new(), NodeId::from_public_key([1; 32]));
        let second = Duration::from_secs(1);
        tokio::time::advance(second).await;
        assert_eq!((contacts.silence(node), contacts.unheard(node), contacts.waiting(node)), (None, second, None));
        contacts.asked(node);
        tokio::time::advance(second).await;
        contacts.asked(node);
        assert_eq!(contacts.waiting(node), Some(second));
        contacts.heard(node);
        assert_eq!((contacts.unheard(node), contacts.waiting(node)), (Duration::ZERO, Some(second)));
        contacts.answered(node);
        tokio::time::advance(second).await;
        assert_eq!((contacts.silence(node), contacts.waiting(node)), (Some(second), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_reported_once() {
        let (contacts, node) = (Contacts::new(), NodeId::from_public_key([1; 32]));
        let patience = Duration::from_secs(1);
        let cause = TransportError::Timeout { node, after: patience };
        contacts.asked(node);
        contacts.failed(node, &cause, patience);
        assert!(!contacts.get(node).reported, "it has a moment yet");
        tokio::time::advance(patience * 2).await;
        contacts.failed(node, &cause, patience);
        assert!(contacts.get(node).reported);
        contacts.answered(node);
        assert!(!contacts.get(node).reported);
    }
}
