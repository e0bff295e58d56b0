//! Parts of blobs as messages: what is large is neither copied nor taken byte by byte.

use bytes::Bytes;
use keppel_federation::wire::Body;

use super::messages::{Answer, MessageError, decode, encode};

/// How a part of a blob is written: like any list of bytes, but not byte by byte.
pub(super) mod form {
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in crate::peering) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(in crate::peering) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Bytes::copy_from_slice)
    }
}

/// The answer that is a part of a blob, as bytes. The pieces of the part are not copied.
pub(super) fn encode_part(pieces: Vec<Bytes>) -> Body {
    let size_bytes: usize = pieces.iter().map(Bytes::len).sum();
    let mut head = encode(&Answer::BlobPart(Bytes::new())).to_vec();
    // The length is the last of it.
    head.pop();
    let head = postcard::to_extend(&size_bytes, head).expect("a number serialises");
    std::iter::once(Bytes::from(head)).chain(pieces).collect()
}

/// Reads an answer. A part of a blob stays where it is in memory.
pub(super) fn decode_answer(bytes: &Bytes) -> Result<Answer, MessageError> {
    let head = encode(&Answer::BlobPart(Bytes::new()));
    let kind = &head[..head.len() - 1];
    if let Some(body) = bytes.strip_prefix(kind) {
        let (size_bytes, part) = postcard::take_from_bytes::<usize>(body).map_err(|_| MessageError::Unreadable)?;
        return match part.len() == size_bytes {
            true => Ok(Answer::BlobPart(bytes.slice_ref(part))),
            false => Err(MessageError::Unreadable),
        };
    }
    decode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peering::messages::VERSION;

    #[test]
    fn a_part_of_a_blob_is_written_like_a_list_of_bytes_and_read_without_a_copy() {
        for size in [0, 1, 127, 128, 300, 70_000] {
            let part = Bytes::from((0..size).map(|number| number as u8).collect::<Vec<_>>());
            let at = size / 3;
            let body = encode_part(vec![part.slice(..at), part.slice(at..)]).into_bytes();
            assert_eq!(body, encode(&Answer::BlobPart(part.clone())), "{size}");
            // What older nodes read and write.
            let kind = body[1];
            assert_eq!(body[..], postcard::to_extend(&part.to_vec(), vec![VERSION, kind]).unwrap(), "{size}");
            assert_eq!(decode::<Answer>(&body), Ok(Answer::BlobPart(part.clone())));
            let Ok(Answer::BlobPart(read)) = decode_answer(&body) else { panic!("{size}") };
            assert_eq!(read, part);
            assert!(size == 0 || read.as_ptr() == body[body.len() - size..].as_ptr(), "it was copied");
            for cut in 0..body.len().min(200) {
                assert!(decode_answer(&body.slice(..cut)).is_err(), "{size} {cut}");
            }
            let longer = Bytes::from([&body[..], b"x"].concat());
            assert_eq!(decode_answer(&longer), Err(MessageError::Unreadable));
        }
    }
}
