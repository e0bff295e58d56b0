//! One request and its answer on a stream of their own.

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, WriteError};

use super::failure::request_error;
use super::{PIECE_BYTES, Shared, channels};
use crate::transport::{Channel, TransportError};
use crate::vocabulary::NodeId;
use crate::wire::{Answer, AnswerDecoder, Hello, WireError, encode_request_head};

impl Shared {
    /// Sends a request and reads its answer.
    pub(super) async fn exchange(
        &self,
        node: NodeId,
        mut send: SendStream,
        mut receive: RecvStream,
        channel: Channel,
        request: &[u8],
    ) -> Result<Bytes, TransportError> {
        let unreachable = |cause: String| TransportError::Unreachable { node, cause };
        _ = send.set_priority(channels::priority(channel));
        let hello = Hello { versions: self.versions, channel: channels::number(channel) };
        let write = async {
            send.write_all(&encode_request_head(&hello, request.len())).await?;
            send.write_all(request).await
        };
        match write.await {
            Ok(()) => _ = send.finish(),
            // It has seen enough to answer.
            Err(WriteError::Stopped(_)) => {}
            Err(WriteError::ConnectionLost(e)) => return Err(request_error(node, &e)),
            Err(e) => return Err(unreachable(e.to_string())),
        }
        let mut decoder = AnswerDecoder::new(channels::limits(channel).answer_bytes);
        loop {
            match receive.read_chunk(PIECE_BYTES, true).await {
                Ok(Some(piece)) => decoder.push(&piece.bytes).map_err(|e| answer_error(node, e))?,
                Ok(None) => break,
                Err(ReadError::ConnectionLost(e)) => return Err(request_error(node, &e)),
                Err(e) => return Err(unreachable(e.to_string())),
            }
        }
        match decoder.finish().map_err(|e| answer_error(node, e))? {
            Answer::Accepted(body) => Ok(body.into_bytes()),
            Answer::Refused(reason) => Err(TransportError::Refused { node, reason }),
        }
    }
}

fn answer_error(node: NodeId, error: WireError) -> TransportError {
    match error {
        WireError::TooLarge { size_bytes, limit_bytes } => TransportError::TooLarge { size_bytes, limit_bytes },
        other => TransportError::Unreachable { node, cause: format!("its answer is not valid: {other}") },
    }
}
