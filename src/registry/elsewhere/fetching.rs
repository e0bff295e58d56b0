//! Parts of a blob, fetched from all who have it and checked, in order.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _, stream};
use keppel_federation::vocabulary::NodeId;
use tokio::time::Instant;

use super::board::{Board, Failure, Layout, Ticket};
use super::flight::Flight;
use super::standing::Fault;
use super::upstream::Primary;
use crate::registry::RegistryError;

/// How often sources are looked at while none says anything.
const TICK: Duration = Duration::from_millis(100);
/// What was heard of a node within this time counts for all transfers.
const TURN: Duration = Duration::from_secs(2);
/// How often others are looked for while no source can be asked.
const SEARCH_INTERVAL: Duration = Duration::from_secs(5);

/// A node that may give parts of a blob.
#[derive(Debug, Clone)]
pub(super) struct Giver {
    pub(super) node: Primary,
    /// Whether it is in this node's own region.
    pub(super) is_near: bool,
    /// How long it may wait for a part that is on its way there.
    pub(super) wait: Duration,
}

enum Event {
    Answer(Ticket, Result<Bytes, RegistryError>),
    Found(Vec<Giver>),
}

/// One transfer of consecutive parts. Its time stands still while nobody waits for a part, so that a slow reader is not
/// taken for a slow source.
struct Fetcher {
    flight: Arc<Flight>,
    layout: Layout,
    board: Board,
    givers: Vec<Giver>,
    under_way: FuturesUnordered<BoxFuture<'static, Event>>,
    searched_at: Option<Duration>,
    is_searching: bool,
    error: Option<RegistryError>,
    waited: Duration,
}

/// All parts that `range` touches, in order, each with its place; several are fetched ahead, `ahead` at most.
pub(super) fn parts(
    flight: Arc<Flight>,
    range: Range<u64>,
    ahead: u64,
) -> impl Stream<Item = Result<(u64, Bytes), RegistryError>> + Send + 'static {
    let layout = Layout { size_bytes: flight.size_bytes() };
    let mut fetcher = Fetcher {
        board: Board::new(layout.parts_of(&range), ahead),
        layout,
        givers: Vec::new(),
        under_way: FuturesUnordered::new(),
        searched_at: None,
        is_searching: false,
        error: None,
        waited: Duration::ZERO,
        flight,
    };
    for giver in fetcher.flight.givers() {
        fetcher.add(giver, Duration::ZERO);
    }
    stream::try_unfold(fetcher, |mut fetcher| async move { Ok(fetcher.next().await?.map(|part| (part, fetcher))) })
}

impl Fetcher {
    async fn next(&mut self) -> Result<Option<(u64, Bytes)>, RegistryError> {
        let (since, before) = (Instant::now(), self.waited);
        let part = self.wait_for_part(since, before).await;
        self.waited = before + since.elapsed();
        part
    }

    async fn wait_for_part(&mut self, since: Instant, before: Duration) -> Result<Option<(u64, Bytes)>, RegistryError> {
        loop {
            if let Some((part, bytes)) = self.board.take() {
                return Ok(Some((self.layout.bytes_of(part).start, bytes)));
            }
            if self.board.is_complete() {
                return Ok(None);
            }
            self.flight.refuse_if_wrong()?;
            let now = before + since.elapsed();
            self.listen(now);
            for silent in self.board.silent(now) {
                self.flight.blame(&self.givers[silent].node, Fault::Silent);
            }
            while let Some(ticket) = self.board.next_question(now) {
                self.under_way.push(self.question(ticket));
            }
            self.search_if_stuck(now);
            if self.board.is_hopeless(now) && !self.is_searching {
                return Err(self.error.take().unwrap_or(RegistryError::Interrupted));
            }
            tokio::select! {
                Some(event) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.happened(event, before + since.elapsed());
                }
                () = tokio::time::sleep(TICK) => {}
            }
        }
    }

    /// Whoever answers another transfer is not silent: this one waits for its turn.
    fn listen(&mut self, now: Duration) {
        for (source, giver) in self.givers.iter().enumerate() {
            if self.flight.links.was_heard_within(giver.node.node, TURN) {
                self.board.heard(source, now);
            }
        }
    }

    fn question(&self, ticket: Ticket) -> BoxFuture<'static, Event> {
        let (flight, giver) = (self.flight.clone(), self.givers[ticket.source].clone());
        let range = self.layout.bytes_of(ticket.part);
        async move { Event::Answer(ticket, flight.fetch_from(&giver, range).await) }.boxed()
    }

    fn happened(&mut self, event: Event, now: Duration) {
        let (ticket, answer) = match event {
            Event::Answer(ticket, answer) => (ticket, answer),
            Event::Found(givers) => {
                self.is_searching = false;
                givers.into_iter().for_each(|giver| self.add(giver, now));
                return;
            }
        };
        let range = self.layout.bytes_of(ticket.part);
        let source = self.givers[ticket.source].node.clone();
        let is_right = |part: &Bytes| {
            part.len() as u64 == range.end - range.start
                && self.flight.verifier().is_ok_and(|verifier| verifier.is_part(range.start, part))
        };
        let (failure, error) = match answer {
            Ok(part) if is_right(&part) => {
                self.flight.links.heard(source.node);
                let labels = [("region", source.region)];
                metrics::counter!("keppel_transfer_received_bytes_total", &labels).increment(part.len() as u64);
                self.board.arrived(ticket, part, now);
                for late in self.board.overtaken(ticket) {
                    let late = &self.givers[late].node;
                    let labels = [("region", late.region.clone()), ("peer", late.node.short().to_string())];
                    metrics::counter!("keppel_transfer_late_parts_total", &labels).increment(1);
                }
                return;
            }
            Ok(_) => {
                let labels = [("region", source.region.clone()), ("peer", source.node.short().to_string())];
                metrics::counter!("keppel_transfer_wrong_parts_total", &labels).increment(1);
                self.flight.blame(&source, Fault::Wrong);
                let error = self.flight.unusable(&source, "a part of a blob does not fit its hashes");
                (Failure::Wrong, error)
            }
            Err(error @ RegistryError::PrimaryUnreachable { .. }) => {
                self.flight.blame(&source, Fault::Unreachable);
                (Failure::Unreachable, error)
            }
            Err(error @ RegistryError::BlobOnTheWay { .. }) => (Failure::NotYet, error),
            Err(error) => (Failure::Absent, error),
        };
        tracing::debug!(%error, peer = %source.node, digest = %self.flight.digest, "a part of a blob did not come");
        // What one without the blob says is of less interest than what the others said.
        if failure != Failure::Absent || self.error.is_none() {
            self.error = Some(error);
        }
        self.board.failed(ticket, failure, now);
    }

    fn add(&mut self, giver: Giver, now: Duration) {
        let source = &self.flight.source;
        let is_primary = giver.node.node == source.primary.node;
        let round_trip = source.upstream.round_trip(giver.node.node).unwrap_or(Duration::from_millis(200));
        self.board.add(giver.is_near, is_primary, round_trip, now);
        self.givers.push(giver);
    }

    /// Looks for other nodes that have the blob while none of those that are known can be asked.
    fn search_if_stuck(&mut self, now: Duration) {
        let is_due = self.searched_at.is_none_or(|at| now.saturating_sub(at) > SEARCH_INTERVAL);
        if !self.board.is_stuck() || self.is_searching || !is_due || !self.flight.is_open_to_all() {
            return;
        }
        (self.searched_at, self.is_searching) = (Some(now), true);
        let flight = self.flight.clone();
        let known: BTreeSet<NodeId> = self.givers.iter().map(|giver| giver.node.node).collect();
        self.under_way.push(async move { Event::Found(flight.search(&known).await) }.boxed());
    }
}
