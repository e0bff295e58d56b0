//! Answering requests: one task per connection, one per stream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{Shared, channels, metrics};
use crate::transport::Channel;
use crate::vocabulary::NodeId;
use crate::wire::{Answer, RequestDecoder, VersionRange};

/// Bodies up to this size do not count against the memory for bodies.
const SMALL_BODY_BYTES: usize = 16 << 10;
const PIECE_BYTES: usize = 64 << 10;

/// Serves a member's connection until it ends.
pub(super) async fn connection(shared: Arc<Shared>, node: NodeId, connection: Connection) {
    let bodies = Arc::new(Semaphore::new(shared.options.request_bodies_bytes_max as usize));
    loop {
        tokio::select! {
            stream = connection.accept_bi() => {
                let Ok((send, receive)) = stream else { break };
                let (task_shared, bodies) = (shared.clone(), bodies.clone());
                shared.spawn(async move { request_within(&task_shared, node, send, receive, |_| true, &bodies).await });
            }
            datagram = connection.read_datagram() => {
                let Ok(datagram) = datagram else { break };
                if let Some(handler) = shared.handler.get() {
                    handler.handle_datagram(node, datagram);
                }
            }
        }
    }
}

/// Answers one request of a node, on the channels allowed to it.
pub(super) async fn request(
    shared: &Shared,
    node: NodeId,
    send: SendStream,
    receive: RecvStream,
    allowed: fn(Channel) -> bool,
) {
    let bodies = Arc::new(Semaphore::new(SMALL_BODY_BYTES));
    request_within(shared, node, send, receive, allowed, &bodies).await;
}

async fn request_within(
    shared: &Shared,
    node: NodeId,
    mut send: SendStream,
    receive: RecvStream,
    allowed: fn(Channel) -> bool,
    bodies: &Arc<Semaphore>,
) {
    let mut priority = None;
    let answer = match receive_request(shared, receive, allowed, bodies).await {
        Ok(Request { channel, body, _memory }) => {
            priority = Some(channels::priority(channel));
            _ = send.set_priority(channels::priority(channel));
            tokio::select! {
                answer = answer_to(shared, node, channel, body) => answer,
                // The caller has hung up.
                _ = send.stopped() => return,
            }
        }
        Err(Failed::Gone) => return,
        Err(Failed::Refuse(reason)) => {
            metrics::request_refused();
            tracing::debug!(peer = %node, "a request was refused: {reason}");
            Answer::Refused(reason)
        }
    };
    let mut pieces = answer.encode(VersionRange::OURS.max);
    let time = shared.options.time_for(pieces.iter().map(Bytes::len).sum());
    if !matches!(timeout(time, send.write_all_chunks(&mut pieces)).await, Ok(Ok(()))) {
        _ = send.reset(VarInt::from_u32(0));
    }
    _ = send.finish();
    // What of it gets lost goes before answers that have not begun: somebody waits for what follows it.
    if let Some(priority) = priority {
        _ = send.set_priority(priority + 1);
    }
}

async fn answer_to(shared: &Shared, node: NodeId, channel: Channel, body: Bytes) -> Answer {
    let Some(handler) = shared.handler.get() else {
        return Answer::Refused("this node is starting".into());
    };
    let limit = channels::limits(channel).answer_bytes;
    let time: Duration = shared.options.handle_timeout;
    match timeout(time, handler.handle(node, channel, body)).await {
        Ok(Ok(answer)) if answer.size_bytes() > limit => {
            Answer::Refused(format!("the answer of {} bytes is over the limit of {limit}", answer.size_bytes()))
        }
        Ok(Ok(answer)) => Answer::Accepted(answer),
        Ok(Err(reason)) => Answer::Refused(reason),
        Err(_) => Answer::Refused(format!("no answer was found within {time:?}")),
    }
}

struct Request {
    channel: Channel,
    body: Bytes,
    _memory: Option<OwnedSemaphorePermit>,
}

enum Failed {
    /// There is nobody to tell.
    Gone,
    Refuse(String),
}

async fn receive_request(
    shared: &Shared,
    mut receive: RecvStream,
    allowed: fn(Channel) -> bool,
    bodies: &Arc<Semaphore>,
) -> Result<Request, Failed> {
    let outcome = receive_from(shared, &mut receive, allowed, bodies).await;
    if outcome.is_err() {
        _ = receive.stop(VarInt::from_u32(0));
    }
    outcome
}

async fn receive_from(
    shared: &Shared,
    receive: &mut RecvStream,
    allowed: fn(Channel) -> bool,
    bodies: &Arc<Semaphore>,
) -> Result<Request, Failed> {
    let refuse = |e: crate::wire::WireError| Failed::Refuse(e.to_string());
    let limit_of = |number| Some(channels::limits(channels::of_number(number)?).request_bytes);
    let mut decoder = RequestDecoder::new(shared.versions, limit_of);
    let start = Instant::now();
    let mut deadline = start + shared.options.receive_timeout;
    let mut memory = None;
    loop {
        let slow = |_| Failed::Refuse(format!("the request did not arrive within {:?}", deadline - start));
        let piece = timeout_at(deadline, receive.read_chunk(PIECE_BYTES, true)).await.map_err(slow)?;
        let Some(piece) = piece.map_err(|_| Failed::Gone)? else { break };
        decoder.push(&piece.bytes).map_err(refuse)?;
        let Some(size) = decoder.body_bytes().filter(|size| memory.is_none() && *size > SMALL_BODY_BYTES) else {
            continue;
        };
        deadline = start + shared.options.time_for(size);
        let permits = u32::try_from(size).unwrap_or(u32::MAX).min(shared.options.request_bodies_bytes_max);
        let room = bodies.clone().acquire_many_owned(permits);
        let busy = |_| Failed::Refuse("too many large requests at a time".into());
        memory = Some(timeout_at(deadline, room).await.map_err(busy)?.map_err(|_| Failed::Gone)?);
    }
    let (hello, body) = decoder.finish().map_err(refuse)?;
    match channels::of_number(hello.channel).filter(|channel| allowed(*channel)) {
        Some(channel) => Ok(Request { channel, body, _memory: memory }),
        None => Err(Failed::Refuse("only members may ask this".into())),
    }
}

/// Closes a surplus connection after a while, unless it has become the one that is used.
pub(super) async fn close_if_surplus(shared: Arc<Shared>, node: NodeId, connection: Connection) {
    tokio::select! {
        () = sleep(shared.options.duplicate_window) => {}
        _ = connection.closed() => return,
    }
    if !shared.peers.is_used(node, &connection) {
        super::failure::Close::Duplicate.connection(&connection);
    }
}
