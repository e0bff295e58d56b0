//! Who should vote: pure.
//!
//! One voter until there are three regions, or two and a witness; then three, or five when there are five regions. Two
//! voters would be worse than one: losing either stops everything.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Role, VoterPolicy};
use crate::vocabulary::{NodeId, Region};

/// A member, seen as one that might vote.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) node: NodeId,
    pub(super) region: Region,
    pub(super) role: Role,
    /// It votes now.
    pub(super) voter: bool,
    /// It is there and follows.
    pub(super) reachable: bool,
}

/// The set of nodes that should vote. Not empty unless there is no candidate.
pub(super) fn choose_voters(candidates: &[Candidate], policy: &VoterPolicy) -> BTreeSet<NodeId> {
    let current: BTreeSet<NodeId> = candidates.iter().filter(|c| c.voter).map(|c| c.node).collect();
    if let VoterPolicy::Fixed(nodes) = policy {
        // A node that was chosen but is not there yet would stop everything: it gets its vote when it has come.
        let fixed: BTreeSet<NodeId> =
            candidates.iter().filter(|c| nodes.contains(&c.node) && (c.voter || c.reachable)).map(|c| c.node).collect();
        return if fixed.is_empty() { current } else { fixed };
    }
    let mut chosen = pick(candidates, wanted_count(candidates));
    // An even number survives no more losses than the odd number below it, and needs one more to agree.
    if chosen.len().is_multiple_of(2) {
        chosen.pop();
    }
    chosen.into_iter().map(|c| c.node).collect()
}

fn wanted_count(candidates: &[Candidate]) -> usize {
    let regions = |role| candidates.iter().filter(|c| c.role == role).map(|c| &c.region).collect::<BTreeSet<_>>();
    let (full, witnesses) = (regions(Role::Full).len(), candidates.iter().filter(|c| c.role == Role::Witness).count());
    match full {
        5.. => 5,
        3 | 4 => 3,
        2 if witnesses > 0 => 3,
        _ => 1,
    }
}

/// The best of each region first, then the next best of each, until there are enough. Only reachable ones are taken
/// beyond the first.
fn pick(candidates: &[Candidate], count: usize) -> Vec<&Candidate> {
    let rank = |c: &Candidate| (!c.reachable, !c.voter, c.role == Role::Witness, c.region.clone(), c.node);
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_by_key(|c| rank(c));
    let mut seen: BTreeMap<&Region, usize> = BTreeMap::new();
    let mut rounds: Vec<(usize, &Candidate)> = sorted
        .into_iter()
        .map(|c| {
            let round = seen.entry(&c.region).or_default();
            *round += 1;
            (*round, c)
        })
        .collect();
    rounds.sort_by_key(|(round, c)| (*round, rank(c)));
    let first = rounds.first().map(|(_, c)| *c);
    let others = rounds.iter().skip(1).map(|(_, c)| *c).filter(|c| c.reachable).take(count.saturating_sub(1));
    first.into_iter().chain(others).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(number: u8, region: &str) -> Candidate {
        Candidate {
            node: NodeId::from_public_key([number; 32]),
            region: Region::parse(region).unwrap(),
            role: Role::Full,
            voter: false,
            reachable: true,
        }
    }

    fn chosen(candidates: &[Candidate]) -> Vec<u8> {
        let voters = choose_voters(candidates, &VoterPolicy::Automatic);
        voters.into_iter().map(|node| node.public_key()[0]).collect()
    }

    fn voting(mut candidates: Vec<Candidate>, numbers: &[u8]) -> Vec<Candidate> {
        for candidate in &mut candidates {
            candidate.voter = numbers.contains(&candidate.node.public_key()[0]);
        }
        candidates
    }

    #[test]
    fn one_region_or_two_have_one_voter_and_it_stays() {
        assert_eq!(chosen(&voting(vec![candidate(1, "eu")], &[1])), [1]);
        let two = vec![candidate(1, "eu"), candidate(2, "us")];
        assert_eq!(chosen(&voting(two.clone(), &[2])), [2]);
        let many = vec![candidate(1, "eu"), candidate(2, "us"), candidate(3, "us"), candidate(4, "eu")];
        assert_eq!(chosen(&voting(many, &[3])), [3]);
    }

    #[test]
    fn three_regions_have_three_voters_one_in_each() {
        let four = vec![candidate(1, "ap"), candidate(2, "ap"), candidate(3, "eu"), candidate(4, "us")];
        assert_eq!(chosen(&voting(four, &[2])), [2, 3, 4]);
    }

    #[test]
    fn two_regions_and_a_witness_have_three_voters() {
        let mut three = vec![candidate(1, "eu"), candidate(2, "us"), candidate(3, "ap")];
        three[2].role = Role::Witness;
        assert_eq!(chosen(&voting(three, &[1])), [1, 2, 3]);
        let mut same_place = vec![candidate(1, "eu"), candidate(2, "us"), candidate(3, "eu")];
        same_place[2].role = Role::Witness;
        assert_eq!(chosen(&voting(same_place, &[1])), [1, 2, 3]);
    }

    #[test]
    fn five_regions_have_five_voters() {
        let regions = ["a", "b", "c", "d", "e", "f", "f"];
        let seven: Vec<_> = (1..=7).map(|n| candidate(n, regions[usize::from(n) - 1])).collect();
        assert_eq!(chosen(&voting(seven, &[7])), [1, 2, 3, 4, 7]);
    }

    #[test]
    fn an_unreachable_voter_is_replaced_by_a_reachable_member() {
        let mut four =
            voting(vec![candidate(1, "ap"), candidate(2, "ap"), candidate(3, "eu"), candidate(4, "us")], &[1, 3, 4]);
        four[0].reachable = false;
        assert_eq!(chosen(&four), [2, 3, 4]);
    }

    #[test]
    fn with_too_few_reachable_members_the_number_stays_odd() {
        let mut three = voting(vec![candidate(1, "ap"), candidate(2, "eu"), candidate(3, "us")], &[2]);
        three[0].reachable = false;
        assert_eq!(chosen(&three), [2]);
    }

    #[test]
    fn an_operators_choice_stands_once_its_nodes_are_there() {
        let mut three = voting(vec![candidate(1, "ap"), candidate(2, "eu"), candidate(3, "us")], &[2]);
        let fixed = VoterPolicy::Fixed([1, 3].map(|n| NodeId::from_public_key([n; 32])).into());
        three[0].reachable = false;
        assert_eq!(choose_voters(&three, &fixed), [NodeId::from_public_key([3; 32])].into());
        three[0].reachable = true;
        assert_eq!(choose_voters(&three, &fixed).len(), 2);
        let nobody = VoterPolicy::Fixed([NodeId::from_public_key([9; 32])].into());
        assert_eq!(choose_voters(&three, &nobody), [NodeId::from_public_key([2; 32])].into());
    }
}
