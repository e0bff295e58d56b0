//! The front door: what happens to a connection attempt before it is a member's connection.
//!
//! Every stage has a bounded number of places. An attempt whose address may be forged gets one of a few places; when
//! they are taken it is asked to come again with a token (which costs us no memory). Whoever comes with a token has a
//! real address, gets one of other places, and only some per address. So a flood with forged addresses takes no place
//! from members.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::failure::Close;
use super::tls::{Purpose, peer_of, purpose_of};
use super::{Shared, metrics, serve};
use crate::transport::Channel;
use crate::vocabulary::NodeId;
use crate::wire::{VersionRange, Welcome};

/// The places of the front door.
#[derive(Debug)]
pub(super) struct FrontDoor {
    unvalidated: Arc<Semaphore>,
    validated: Arc<Semaphore>,
    joiners: Arc<Semaphore>,
    sources: Arc<Sources>,
    join_budget: Mutex<Budget>,
}

impl FrontDoor {
    pub fn new(options: &super::QuicOptions) -> Self {
        Self {
            unvalidated: Arc::new(Semaphore::new(options.handshakes_unvalidated_max)),
            validated: Arc::new(Semaphore::new(options.handshakes_validated_max)),
            joiners: Arc::new(Semaphore::new(options.joiners_max)),
            sources: Arc::new(Sources { counts: Mutex::default(), max: options.handshakes_per_source_max }),
            join_budget: Mutex::new(Budget::new(options.joins_per_second)),
        }
    }
}

/// Takes connections from an endpoint until it is closed.
pub(super) async fn run(shared: Arc<Shared>, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let Some((incoming, place)) = assign_place(&shared.door, incoming) else { continue };
        let handshake = handshake(shared.clone(), incoming, place);
        shared.spawn(handshake);
    }
}

struct Place {
    _permit: OwnedSemaphorePermit,
    _source: Option<SourcePlace>,
}

fn assign_place(door: &FrontDoor, incoming: Incoming) -> Option<(Incoming, Place)> {
    if !incoming.remote_address_validated() {
        if let Ok(permit) = door.unvalidated.clone().try_acquire_owned() {
            return Some((incoming, Place { _permit: permit, _source: None }));
        }
        metrics::handshake_refused("address not validated");
        match incoming.may_retry() {
            true => _ = incoming.retry(),
            false => incoming.ignore(),
        }
        return None;
    }
    let source = door.sources.enter(incoming.remote_address().ip());
    let permit = door.validated.clone().try_acquire_owned().ok();
    if let (Some(source), Some(permit)) = (source, permit) {
        return Some((incoming, Place { _permit: permit, _source: Some(source) }));
    }
    metrics::handshake_refused("overload");
    incoming.refuse();
    None
}

async fn handshake(shared: Arc<Shared>, incoming: Incoming, place: Place) {
    let remote = incoming.remote_address();
    let Ok(connecting) = incoming.accept() else {
        return metrics::handshake_refused("malformed");
    };
    let connection = match timeout(shared.options.handshake_timeout, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(e)) => {
            metrics::handshake_refused("failed");
            return tracing::debug!(%remote, "a handshake failed: {e}");
        }
        Err(_) => return metrics::handshake_refused("too slow"),
    };
    drop(place);
    match (peer_of(&connection), purpose_of(&connection)) {
        (Some(node), Some(Purpose::Member)) => welcome_member(shared, node, connection).await,
        (Some(node), Some(Purpose::Join)) => serve_joiner(&shared, node, &connection).await,
        _ => Close::NotAMember.connection(&connection),
    }
}

async fn welcome_member(shared: Arc<Shared>, node: NodeId, connection: Connection) {
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(shared.options.streams_max));
    connection.set_receive_window(VarInt::from_u32(shared.options.receive_window_bytes));
    let welcome = async {
        let mut stream = connection.open_uni().await.ok()?;
        stream.write_all(&Welcome { versions: VersionRange::OURS }.encode()).await.ok()?;
        stream.finish().ok()
    };
    if let Ok(Some(())) = timeout(shared.options.handshake_timeout, welcome).await {
        shared.adopt(node, &connection, node);
    }
}

/// A node that wants to become a member gets one request on one channel, a little time, and nothing else.
async fn serve_joiner(shared: &Shared, node: NodeId, connection: &Connection) {
    let permit = shared.door.joiners.clone().try_acquire_owned();
    let in_budget = shared.door.join_budget.lock().unwrap_or_else(PoisonError::into_inner).take();
    if permit.is_err() || !in_budget {
        metrics::handshake_refused("too many joiners");
        return Close::Overloaded.connection(connection);
    }
    let one_request = async {
        let (send, receive) = connection.accept_bi().await.ok()?;
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(0));
        serve::request(shared, node, send, receive, |channel| channel == Channel::Admission).await;
        // The joiner closes when it has the answer.
        connection.closed().await;
        Some(())
    };
    let _ = timeout(shared.options.join_timeout, one_request).await;
    Close::Done.connection(connection);
}

/// How many handshakes run from which source.
#[derive(Debug)]
struct Sources {
    counts: Mutex<HashMap<IpAddr, usize>>,
    max: usize,
}

struct SourcePlace {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    fn enter(self: &Arc<Self>, ip: IpAddr) -> Option<SourcePlace> {
        let source = network_of(ip);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(SourcePlace { sources: self.clone(), source })
    }
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        let mut counts = self.sources.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

/// One IPv4 address, or the /64 network of an IPv6 address, of which one customer has all.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) & !u128::from(u64::MAX)).to_be_bytes()),
        v4 => v4,
    }
}

/// So many per second, with as many at once.
#[derive(Debug)]
struct Budget {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, left: per_second, at: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let elapsed: Duration = self.at.elapsed();
        self.at += elapsed;
        self.left = (self.left + elapsed.as_secs_f64() * self.per_second).min(self.per_second);
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_budget_refills_with_time() {
        let mut budget = Budget::new(2);
        assert_eq!([budget.take(), budget.take(), budget.take()], [true, true, false]);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!([budget.take(), budget.take()], [true, false]);
    }

    #[test]
    fn a_source_has_so_many_places_and_gets_them_back() {
        let sources = Arc::new(Sources { counts: Mutex::default(), max: 1 });
        let first = sources.enter("2001:db8::1".parse().unwrap());
        assert!(first.is_some());
        assert!(sources.enter("2001:db8::2".parse().unwrap()).is_none(), "the same /64");
        assert!(sources.enter("192.0.2.1".parse().unwrap()).is_some());
        drop(first);
        assert!(sources.enter("2001:db8::2".parse().unwrap()).is_some());
        assert!(sources.counts.lock().unwrap().is_empty());
    }
}
