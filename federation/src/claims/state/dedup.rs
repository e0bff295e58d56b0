//! The memory of answered requests: a request that arrives twice gets its first answer again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::super::outcome::Outcome;
use crate::vocabulary::RequestId;

/// How many answers are remembered. Part of the replicated rules: equal on every node.
pub(super) const ANSWERS_MAX: usize = 10_000;

/// The answer a request got, and the log index at which it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    pub(super) applied: u64,
}

/// The latest answers, in the order they were given.
#[derive(Debug, Clone, Default)]
pub(super) struct Answered {
    answers: BTreeMap<RequestId, (u64, Answer)>,
    order: BTreeMap<u64, RequestId>,
}

impl Answered {
    pub(super) fn get(&self, request: &RequestId) -> Option<&Answer> {
        self.answers.get(request).map(|(_, answer)| answer)
    }

    /// Remembers an answer; gives its place in the order and the request that is forgotten for it.
    pub(super) fn record(&mut self, request: RequestId, answer: Answer) -> (u64, Option<RequestId>) {
        let order = self.order.last_key_value().map_or(0, |(last, _)| last + 1);
        self.load(request, order, answer);
        let forgotten = if self.order.len() > ANSWERS_MAX { self.order.pop_first() } else { None };
        let forgotten = forgotten.map(|(_, request)| request);
        if let Some(request) = &forgotten {
            self.answers.remove(request);
        }
        (order, forgotten)
    }

    pub(super) fn load(&mut self, request: RequestId, order: u64, answer: Answer) {
        self.order.insert(order, request.clone());
        self.answers.insert(request, (order, answer));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&RequestId, u64, &Answer)> {
        self.answers.iter().map(|(request, (order, answer))| (request, *order, answer))
    }
}
