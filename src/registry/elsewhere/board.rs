//! Which part of a blob is asked for where. Pure: it is told what happened and when, and says what to do next.
//!
//! Every source has a window of parts that it may be asked for at a time, and takes the lowest part that is still
//! wanted whenever there is room in it; so the fastest gives most. Sources near by are used alone while there is one that
//! works. One that lies, has nothing, falls silent or cannot be reached loses its parts to the others. Parts come in
//! any order and are handed on in order; no more than a window of them is ever ahead.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use crate::storage::GROUP_BYTES;

/// The first part is smaller, so that a client has its first bytes sooner.
pub(super) const FIRST_PART_BYTES: u64 = GROUP_BYTES;
/// What is asked for at a time: whole groups, so that it can be checked by itself.
pub(super) const PART_BYTES: u64 = 2 * GROUP_BYTES;

/// Parts that a source is asked for at first, and at most: 1 Gbit/s over 130 ms.
const WINDOW_START: usize = 8;
const WINDOW_MAX: usize = 32;
/// A part that takes longer than this waited in a queue: fewer are asked for.
const PACE_MAX: Duration = Duration::from_secs(2);
/// How long a source may say nothing while others could give.
const SILENCE_MIN: Duration = Duration::from_secs(4);
/// How long sources that have nothing yet are waited for while others could give.
const BARREN_MAX: Duration = Duration::from_secs(15);
/// How long one that fell silent is left alone.
const SILENT_REST: Duration = Duration::from_secs(20);
/// A part that everybody waits for is asked for a second time after this.
const HEDGE_MIN: Duration = Duration::from_millis(300);
/// How long a part is asked for again while no source can be reached.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a source may give a wrong part that there is no other for.
const WRONG_MAX: u32 = 3;
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How a blob is cut into parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) size_bytes: u64,
}

impl Layout {
    /// The part that the byte at `offset` is in.
    pub(super) fn part_at(self, offset: u64) -> u64 {
        match offset.checked_sub(FIRST_PART_BYTES) {
            None => 0,
            Some(after) => 1 + after / PART_BYTES,
        }
    }

    /// The bytes of a part.
    pub(super) fn bytes_of(self, part: u64) -> Range<u64> {
        let start = |part: u64| match part {
            0 => 0,
            part => FIRST_PART_BYTES + (part - 1) * PART_BYTES,
        };
        start(part)..start(part + 1).min(self.size_bytes)
    }

    /// The parts that `range` touches.
    pub(super) fn parts_of(self, range: &Range<u64>) -> Range<u64> {
        match range.is_empty() {
            true => 0..0,
            false => self.part_at(range.start)..self.part_at(range.end - 1) + 1,
        }
    }
}

/// Why a part did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// What came is not what was asked for.
    Wrong,
    /// The source does not have the blob.
    Absent,
    /// The source does not have the part yet.
    NotYet,
    /// The source could not be asked.
    Unreachable,
}

/// One question for a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    /// Whom to ask.
    pub(super) source: usize,
    /// For which part.
    pub(super) part: u64,
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Live,
    /// It has nothing new yet; its part is not given to others for that.
    WaitingUntil(Duration),
    /// Others take its part.
    RestingUntil(Duration),
    Dropped,
}

#[derive(Debug)]
struct Source {
    is_near: bool,
    /// Nobody else decides about the blob: it is not dropped for one mistake.
    is_primary: bool,
    state: State,
    window: usize,
    outstanding: usize,
    /// How long a part takes: at first a guess.
    pace: Duration,
    heard_at: Duration,
    pause: Duration,
    wrong: u32,
}

impl Source {
    fn works(&self) -> bool {
        matches!(self.state, State::Live | State::WaitingUntil(_))
    }
}

/// Where the parts of one transfer are.
pub(super) struct Board {
    ahead: u64,
    fresh: Range<u64>,
    again: BTreeSet<u64>,
    asked: BTreeMap<u64, Vec<(Ticket, Duration)>>,
    arrived: BTreeMap<u64, Bytes>,
    next: u64,
    sources: Vec<Source>,
    tickets: u64,
    progress_at: Duration,
}

impl Board {
    /// A board for these parts, of which at most `ahead` are asked for or waiting at a time.
    pub(super) fn new(parts: Range<u64>, ahead: u64) -> Self {
        Self {
            ahead,
            next: parts.start,
            fresh: parts,
            again: BTreeSet::new(),
            asked: BTreeMap::new(),
            arrived: BTreeMap::new(),
            sources: Vec::new(),
            tickets: 0,
            progress_at: Duration::ZERO,
        }
    }

    /// One more source; gives its number.
    pub(super) fn add(&mut self, is_near: bool, is_primary: bool, round_trip: Duration, now: Duration) -> usize {
        self.sources.push(Source {
            is_near,
            is_primary,
            state: State::Live,
            window: WINDOW_START,
            outstanding: 0,
            pace: round_trip,
            heard_at: now,
            pause: PAUSE_MIN,
            wrong: 0,
        });
        self.sources.len() - 1
    }

    /// Whether all parts were handed on.
    pub(super) fn is_complete(&self) -> bool {
        self.next == self.fresh.end
    }

    /// The next question to ask, if one is to be asked now.
    pub(super) fn next_question(&mut self, now: Duration) -> Option<Ticket> {
        for source in &mut self.sources {
            let is_over = match source.state {
                State::WaitingUntil(until) | State::RestingUntil(until) => until <= now,
                State::Live | State::Dropped => false,
            };
            if is_over {
                source.state = State::Live;
                source.heard_at = now;
            }
        }
        let is_live = |source: &Source| source.state == State::Live;
        let near_only = self.sources.iter().any(|source| source.works() && source.is_near);
        let usable = |source: &Source| is_live(source) && (source.is_near || !near_only);
        let mut candidates: Vec<usize> = (0..self.sources.len()).filter(|at| usable(&self.sources[*at])).collect();
        candidates.sort_by_key(|at| self.sources[*at].pace);
        for source in candidates {
            if self.sources[source].outstanding >= self.sources[source].window {
                continue;
            }
            if let Some(part) = self.wanted_part().or_else(|| self.late_part(source, now)) {
                return Some(self.ask(source, part, now));
            }
        }
        None
    }

    /// The lowest part that nobody is asked for.
    fn wanted_part(&mut self) -> Option<u64> {
        if let Some(part) = self.again.pop_first() {
            return Some(part);
        }
        let is_within = self.fresh.start < self.next + self.ahead;
        if is_within { self.fresh.next() } else { None }
    }

    /// A part that another source takes too long for, where this one has nothing else to do.
    fn late_part(&self, source: usize, now: Duration) -> Option<u64> {
        let idle = &self.sources[source];
        if idle.outstanding > 0 {
            return None;
        }
        let patience = HEDGE_MIN.max(idle.pace * 3);
        let is_late = |(part, asked): &(&u64, &Vec<(Ticket, Duration)>)| match &asked[..] {
            [(ticket, at)] if !self.arrived.contains_key(part) && **part >= self.next => {
                ticket.source != source && now.saturating_sub(*at) > patience
            }
            _ => false,
        };
        self.asked.iter().find(is_late).map(|(part, _)| *part)
    }

    fn ask(&mut self, source: usize, part: u64, now: Duration) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket { source, part, number: self.tickets };
        let asked = &mut self.sources[source];
        if asked.outstanding == 0 {
            asked.heard_at = now;
        }
        asked.outstanding += 1;
        self.asked.entry(part).or_default().push((ticket, now));
        ticket
    }

    /// Takes a question back; gives when it was asked, unless it was taken back before.
    fn settle(&mut self, ticket: Ticket) -> Option<Duration> {
        let asked = self.asked.get_mut(&ticket.part)?;
        let at = asked.iter().position(|(other, _)| *other == ticket)?;
        let (_, asked_at) = asked.swap_remove(at);
        if asked.is_empty() {
            self.asked.remove(&ticket.part);
        }
        self.sources[ticket.source].outstanding -= 1;
        Some(asked_at)
    }

    /// A part has come and is right.
    pub(super) fn arrived(&mut self, ticket: Ticket, bytes: Bytes, now: Duration) {
        let asked_at = self.settle(ticket);
        let source = &mut self.sources[ticket.source];
        (source.heard_at, source.pause, source.wrong) = (now, PAUSE_MIN, 0);
        if let Some(asked_at) = asked_at {
            let took = now.saturating_sub(asked_at);
            source.pace = (source.pace * 3 + took) / 4;
            source.window = match took > PACE_MAX {
                true => source.window.saturating_sub(1).max(1),
                false => (source.window + 1).min(WINDOW_MAX),
            };
        }
        let part = ticket.part;
        if part < self.next || self.arrived.contains_key(&part) {
            metrics::counter!("keppel_transfer_doubled_bytes_total").increment(bytes.len() as u64);
            return;
        }
        self.progress_at = now;
        self.again.remove(&part);
        self.arrived.insert(part, bytes);
    }

    /// The sources that were asked for a part before the one that gave it, and have not given it.
    pub(super) fn overtaken(&self, given: Ticket) -> impl Iterator<Item = usize> {
        let asked = self.asked.get(&given.part).into_iter().flatten();
        asked.filter(move |(ticket, _)| ticket.number < given.number).map(|(ticket, _)| ticket.source)
    }

    /// A source has said something, here or to another transfer.
    pub(super) fn heard(&mut self, source: usize, now: Duration) {
        self.sources[source].heard_at = now;
    }

    /// The next part in order, once it is there.
    pub(super) fn take(&mut self) -> Option<(u64, Bytes)> {
        let bytes = self.arrived.remove(&self.next)?;
        self.next += 1;
        Some((self.next - 1, bytes))
    }

    /// A question came to nothing; gives whether that was the last of its source.
    pub(super) fn failed(&mut self, ticket: Ticket, failure: Failure, now: Duration) -> bool {
        if self.settle(ticket).is_none() {
            return false;
        }
        self.want_again(ticket.part);
        let source = &mut self.sources[ticket.source];
        if source.state == State::Dropped {
            return false;
        }
        let rest = match failure {
            Failure::Wrong => {
                // What was asked before the first mistake belongs to it.
                source.wrong += u32::from(source.state == State::Live);
                (source.is_primary && source.wrong < WRONG_MAX).then_some(source.pause)
            }
            Failure::Absent => None,
            Failure::NotYet => {
                source.heard_at = now;
                Some(PAUSE_MIN)
            }
            Failure::Unreachable => {
                source.window = (source.window / 2).max(1);
                Some(source.pause)
            }
        };
        if failure != Failure::NotYet && source.state == State::Live {
            source.pause = (source.pause * 2).min(PAUSE_MAX);
        }
        match rest {
            // One that rests already failed a moment ago, in the same way.
            Some(_) if source.state != State::Live => false,
            Some(rest) => {
                source.state = match failure {
                    Failure::NotYet => State::WaitingUntil(now + rest),
                    _ => State::RestingUntil(now + rest),
                };
                false
            }
            None => {
                source.state = State::Dropped;
                self.take_back_all(ticket.source);
                true
            }
        }
    }

    /// Sources that have said nothing for too long, though asked, while there are others: they lose their parts.
    pub(super) fn silent(&mut self, now: Duration) -> Vec<usize> {
        let others = self.sources.iter().filter(|source| source.state != State::Dropped).count();
        let is_silent = |source: &Source| {
            let limit = SILENCE_MIN.max(source.pace * 4);
            let is_barren = now.saturating_sub(self.progress_at) > BARREN_MAX;
            let is_asked = match source.state {
                State::Live => source.outstanding > 0,
                State::WaitingUntil(_) => true,
                State::RestingUntil(_) | State::Dropped => false,
            };
            is_asked && (is_barren || now.saturating_sub(source.heard_at) > limit)
        };
        let silent: Vec<usize> = match others {
            0 | 1 => Vec::new(),
            _ => (0..self.sources.len()).filter(|at| is_silent(&self.sources[*at])).collect(),
        };
        for source in &silent {
            self.sources[*source].state = State::RestingUntil(now + SILENT_REST);
            self.take_back_all(*source);
        }
        silent
    }

    /// Whether there is nothing to be hoped for any more.
    pub(super) fn is_hopeless(&self, now: Duration) -> bool {
        let is_over = |source: &Source| source.state == State::Dropped;
        !self.is_complete() && (self.sources.iter().all(is_over) || now.saturating_sub(self.progress_at) > PATIENCE)
    }

    /// Whether no source can be asked at the moment.
    pub(super) fn is_stuck(&self) -> bool {
        !self.sources.iter().any(Source::works)
    }

    fn want_again(&mut self, part: u64) {
        let is_asked = self.asked.contains_key(&part);
        if part >= self.next && !self.arrived.contains_key(&part) && !is_asked {
            self.again.insert(part);
        }
    }

    fn take_back_all(&mut self, source: usize) {
        let tickets: Vec<Ticket> =
            self.asked.values().flatten().map(|(ticket, _)| *ticket).filter(|ticket| ticket.source == source).collect();
        for ticket in tickets {
            self.settle(ticket);
            self.want_again(ticket.part);
        }
    }
}

#[cfg(test)]
mod tests;
