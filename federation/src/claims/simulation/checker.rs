//! Whether a history can be explained: is there one order of all operations, each between its call and its return, in
//! which every answer is right? (The search of Wing and Gong, one name at a time, with memory of dead ends.)

use std::collections::{BTreeMap, HashSet};

use super::client::{Answer, Operation, Owner, Question};
use crate::vocabulary::NodeId;

/// How many states are looked at before the search gives up, which counts as a failure.
const STATES_MAX: usize = 3_000_000;

/// Why a history is wrong.
#[derive(Debug)]
#[expect(dead_code, reason = "read by people, through Debug")]
pub(super) enum Violation {
    /// One epoch of a name was seen with two owners.
    TwoOwners { name: u64, epoch: u64, owners: [NodeId; 2] },
    /// No order explains the answers.
    NotLinearizable { name: u64, operations: Vec<Operation> },
    /// The search was given up.
    TooHard { name: u64, operations: usize },
}

/// Checks the history of all names.
pub(super) fn check(history: &[Operation]) -> Result<(), Violation> {
    let mut names: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        names.entry(operation.name).or_default().push(operation.clone());
    }
    for (name, mut operations) in names {
        one_owner_per_epoch(name, &operations)?;
        operations.sort_by_key(|operation| operation.order.0);
        match Search::new(&operations).run() {
            Some(true) => {}
            Some(false) => return Err(Violation::NotLinearizable { name, operations }),
            None => return Err(Violation::TooHard { name, operations: operations.len() }),
        }
    }
    Ok(())
}

fn one_owner_per_epoch(name: u64, operations: &[Operation]) -> Result<(), Violation> {
    let mut owners: BTreeMap<u64, NodeId> = BTreeMap::new();
    for operation in operations {
        let seen = match (&operation.question, operation.returned.as_ref().map(|(_, answer)| answer)) {
            (Question::Claim { owner }, Some(Answer::Won(epoch) | Answer::Held(epoch))) => Some((*owner, *epoch)),
            (Question::Move { to, .. }, Some(Answer::Moved(epoch))) => Some((*to, *epoch)),
            (_, Some(Answer::Stands(owner))) => *owner,
            _ => None,
        };
        let Some((owner, epoch)) = seen else { continue };
        let first = *owners.entry(epoch).or_insert(owner);
        if first != owner {
            return Err(Violation::TwoOwners { name, epoch, owners: [first, owner] });
        }
    }
    Ok(())
}

/// The name's state in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Register {
    /// The owner; its epoch is not known yet when nobody saw the answer of its claim.
    owner: Option<(NodeId, Option<u64>)>,
    /// The highest epoch there has been; a new claim gets a higher one.
    highest: u64,
}

impl Register {
    /// The state, when it is as was seen; an epoch that was not known is so now.
    fn seen(self, owner: Owner) -> Option<Self> {
        match (self.owner, owner) {
            (None, None) => Some(self),
            (Some((mine, known)), Some((node, epoch))) if mine == node => match known {
                Some(known) => (known == epoch).then_some(self),
                None => (epoch > self.highest).then_some(Self { owner: Some((node, Some(epoch))), highest: epoch }),
            },
            _ => None,
        }
    }

    /// The state, when it is in this epoch.
    fn in_epoch(self, epoch: u64) -> Option<Self> {
        let (node, _) = self.owner?;
        self.seen(Some((node, epoch)))
    }

    /// The state after an operation; `None`: its answer would be wrong here, or, where the answer is not known, it
    /// would change nothing.
    fn after(self, operation: &Operation) -> Option<Self> {
        let claimed = |owner, epoch| (self.owner.is_none()).then_some(Self { owner: Some((owner, epoch)), ..self });
        let freed = |state: Self| Self { owner: None, ..state };
        let moved =
            |state: Self, to, epoch: u64| Self { owner: Some((to, Some(epoch))), highest: state.highest.max(epoch) };
        match (&operation.question, operation.returned.as_ref().map(|(_, answer)| answer)) {
            (Question::Claim { owner }, None) => claimed(*owner, None),
            (Question::Claim { owner }, Some(Answer::Won(epoch))) if *epoch > self.highest => {
                claimed(*owner, Some(*epoch)).map(|state| Self { highest: *epoch, ..state })
            }
            (Question::Claim { owner }, Some(Answer::Held(epoch))) => self.seen(Some((*owner, *epoch))),
            (Question::Claim { owner }, Some(Answer::Stands(Some((node, epoch))))) if node != owner => {
                self.seen(Some((*node, *epoch)))
            }
            (Question::Forfeit { epoch }, None | Some(Answer::Forfeited)) => self.in_epoch(*epoch).map(freed),
            (Question::Move { to, epoch }, None) => self.in_epoch(*epoch).map(|state| moved(state, *to, epoch + 1)),
            (Question::Move { to, epoch }, Some(Answer::Moved(new))) if *new == epoch + 1 => {
                self.in_epoch(*epoch).map(|state| moved(state, *to, *new))
            }
            (Question::Forfeit { epoch } | Question::Move { epoch, .. }, Some(Answer::Stands(owner))) => {
                if owner.is_some_and(|(_, seen)| seen == *epoch) {
                    return None;
                }
                self.seen(*owner)
            }
            (Question::Read, Some(Answer::Stands(owner))) => self.seen(*owner),
            _ => None,
        }
    }
}

struct Search<'a> {
    operations: &'a [Operation],
    dead_ends: HashSet<(Vec<u64>, Register)>,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        Self { operations, dead_ends: HashSet::new() }
    }

    /// Whether there is an order; `None`: too many states.
    fn run(&mut self) -> Option<bool> {
        let mut stack = vec![(vec![0u64; self.operations.len() / 64 + 1], Register { owner: None, highest: 0 })];
        while let Some((done, register)) = stack.pop() {
            // The next operation must have been called before any other that is left has returned.
            let left = || (0..self.operations.len()).filter(|at| done[at / 64] & (1 << (at % 64)) == 0);
            let returns = |at: usize| match self.operations[at].returned {
                Some(_) => self.operations[at].order.1,
                None => u64::MAX,
            };
            let horizon = left().map(returns).min().unwrap_or(u64::MAX);
            if horizon == u64::MAX {
                // Only operations whose answer nobody saw are left: they need not have happened.
                return Some(true);
            }
            if !self.dead_ends.insert((done.clone(), register)) {
                continue;
            }
            if self.dead_ends.len() > STATES_MAX {
                return None;
            }
            // Those whose answer is known are tried first: they come last onto the stack.
            let mut next: Vec<usize> = left().filter(|at| self.operations[*at].order.0 < horizon).collect();
            next.sort_by_key(|at| std::cmp::Reverse(returns(*at)));
            for at in next {
                if let Some(after) = register.after(&self.operations[at]) {
                    let mut done = done.clone();
                    done[at / 64] |= 1 << (at % 64);
                    stack.push((done, after));
                }
            }
        }
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId::from_public_key([number; 32])
    }

    /// A question, when it was asked, and when it got which answer.
    type Line = (Question, u64, Option<(u64, Answer)>);

    fn history(operations: &[Line]) -> Vec<Operation> {
        operations
            .iter()
            .map(|(question, called, returned)| Operation {
                name: 0,
                question: question.clone(),
                called: *called,
                returned: returned.clone(),
                order: (*called, returned.as_ref().map_or(u64::MAX, |(at, _)| *at)),
            })
            .collect()
    }

    fn claim(owner: u8) -> Question {
        Question::Claim { owner: node(owner) }
    }

    #[test]
    fn an_orderly_history_is_accepted() {
        let good = history(&[
            (claim(1), 1, Some((4, Answer::Won(10)))),
            (claim(2), 2, Some((6, Answer::Stands(Some((node(1), 10)))))),
            (Question::Read, 3, Some((5, Answer::Stands(None)))),
            (Question::Move { to: node(2), epoch: 10 }, 7, Some((8, Answer::Moved(11)))),
            (Question::Read, 9, Some((12, Answer::Stands(Some((node(2), 11)))))),
            (Question::Forfeit { epoch: 11 }, 13, None),
            (Question::Read, 14, Some((15, Answer::Stands(None)))),
            (claim(3), 16, None),
            (Question::Read, 17, Some((18, Answer::Stands(Some((node(3), 20)))))),
        ]);
        check(&good).unwrap();
    }

    #[test]
    fn a_lost_claim_is_noticed() {
        let lost =
            history(&[(claim(1), 1, Some((2, Answer::Won(10)))), (Question::Read, 3, Some((4, Answer::Stands(None))))]);
        assert!(matches!(check(&lost), Err(Violation::NotLinearizable { .. })));
    }

    #[test]
    fn a_stale_read_is_noticed() {
        let stale = history(&[
            (claim(1), 1, Some((2, Answer::Won(10)))),
            (Question::Move { to: node(2), epoch: 10 }, 3, Some((4, Answer::Moved(11)))),
            (Question::Read, 5, Some((6, Answer::Stands(Some((node(1), 10)))))),
        ]);
        assert!(matches!(check(&stale), Err(Violation::NotLinearizable { .. })));
    }

    #[test]
    fn two_owners_in_one_epoch_are_noticed() {
        let twice = history(&[(claim(1), 1, Some((2, Answer::Won(10)))), (claim(2), 3, Some((4, Answer::Won(10))))]);
        assert!(matches!(check(&twice), Err(Violation::TwoOwners { .. })));
    }

    #[test]
    fn an_epoch_that_comes_again_is_noticed() {
        let again = history(&[
            (claim(1), 1, Some((2, Answer::Won(10)))),
            (Question::Forfeit { epoch: 10 }, 3, Some((4, Answer::Forfeited))),
            (claim(1), 5, Some((6, Answer::Won(10)))),
        ]);
        assert!(matches!(check(&again), Err(Violation::NotLinearizable { .. })));
    }
}
