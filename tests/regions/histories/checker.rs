//! Whether some order of what clients did with a tag explains what they saw.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// The digest that a tag names; none where there is no such tag.
pub type Value = Option<String>;

#[derive(Debug, Clone)]
pub enum What {
    Read(Value),
    Write(Value),
}

/// Something that a client did with a tag; without an end it is open whether it happened.
#[derive(Debug, Clone)]
pub struct Operation {
    pub what: What,
    pub begin: Instant,
    pub end: Option<Instant>,
    pub by: String,
}

pub type Histories = BTreeMap<String, Vec<Operation>>;

/// Whether some order of the operations, each at a moment between its begin and end, explains what was read.
pub fn is_linearizable(operations: &[Operation]) -> bool {
    // What perhaps happened and was never seen may as well have happened at the very end.
    let read: HashSet<&Value> = operations.iter().filter_map(Operation::read).collect();
    let matters = |it: &&Operation| match &it.what {
        What::Write(Some(_)) if it.end.is_none() => matches!(&it.what, What::Write(written) if read.contains(written)),
        _ => true,
    };
    let operations: Vec<&Operation> = operations.iter().filter(matters).collect();
    assert!(operations.len() <= 128, "a history of {} operations is too long", operations.len());
    let all_ended = operations.iter().enumerate().filter(|(_, it)| it.end.is_some());
    let required = all_ended.fold(0u128, |set, (at, _)| set | 1 << at);
    let (mut seen, mut stack) = (HashSet::new(), vec![(0u128, Value::None)]);
    while let Some((done, value)) = stack.pop() {
        if done & required == required {
            return true;
        }
        if !seen.insert((done, value.clone())) {
            continue;
        }
        let left = || operations.iter().enumerate().filter(|(at, _)| done & (1 << at) == 0);
        // Nothing that begins after another has ended comes before it.
        let latest = left().filter_map(|(_, it)| it.end).min();
        for (at, operation) in left().filter(|(_, it)| latest.is_none_or(|end| it.begin <= end)) {
            match &operation.what {
                What::Read(read) if *read == value => stack.push((done | 1 << at, value.clone())),
                What::Read(_) => {}
                What::Write(written) => stack.push((done | 1 << at, written.clone())),
            }
        }
    }
    false
}

impl Operation {
    fn read(&self) -> Option<&Value> {
        match &self.what {
            What::Read(value) => Some(value),
            What::Write(_) => None,
        }
    }
}

/// Fails unless there is an order for each tag.
pub fn assert_linearizable(histories: &Histories) {
    for (tag, operations) in histories {
        if is_linearizable(operations) {
            continue;
        }
        let mut told = operations.clone();
        told.sort_by_key(|operation| operation.begin);
        let first = told[0].begin;
        let lines = told.iter().map(|it| {
            let end = it.end.map_or("?".to_owned(), |end| format!("{:?}", end - first));
            format!("{:?} to {end}: {:?} in {}", it.begin - first, it.what, it.by)
        });
        panic!("no order explains what happened to {tag}:\n{}", lines.collect::<Vec<_>>().join("\n"));
    }
}

#[test]
fn histories_without_an_order_are_told_from_those_with_one() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let operation =
        |what, begin, end: Option<u64>| Operation { what, begin: at(begin), end: end.map(at), by: String::new() };
    let write = |value: &str, begin, end| operation(What::Write(Some(value.to_owned())), begin, end);
    let read = |value: Option<&str>, begin, end| operation(What::Read(value.map(str::to_owned)), begin, Some(end));
    let old_after_new = [write("a", 0, Some(1)), write("b", 2, Some(3)), read(Some("a"), 4, 5)];
    assert!(!is_linearizable(&old_after_new));
    let lost = [write("a", 0, Some(1)), read(None, 2, 3)];
    assert!(!is_linearizable(&lost));
    let at_once = [write("a", 0, Some(1)), write("b", 2, Some(9)), read(Some("a"), 4, 5), read(Some("b"), 6, 7)];
    assert!(is_linearizable(&at_once));
    let there_and_back = [write("a", 0, Some(1)), write("b", 2, None), read(Some("b"), 4, 5), read(Some("a"), 6, 7)];
    assert!(!is_linearizable(&there_and_back));
    let late = [write("a", 0, Some(1)), write("b", 2, None), read(Some("a"), 4, 5), read(Some("b"), 6, 7)];
    assert!(is_linearizable(&late));
    let never_seen = [write("a", 0, Some(1)), write("b", 2, None), read(Some("a"), 4, 5), read(Some("a"), 6, 7)];
    assert!(is_linearizable(&never_seen));
}
