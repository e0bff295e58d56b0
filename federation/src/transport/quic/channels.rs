//! What the wire knows of a channel: its number, its size limits, its priority.

use crate::transport::Channel;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

pub(super) struct Limits {
    pub request_bytes: usize,
    pub answer_bytes: usize,
}

/// The number on the wire. Never reused.
pub(super) fn number(channel: Channel) -> u8 {
    match channel {
        Channel::Consensus => 0,
        Channel::Command => 1,
        Channel::Admission => 2,
        Channel::Status => 3,
        Channel::Content => 4,
        Channel::Bulk => 5,
        Channel::Background => 6,
    }
}

pub(super) fn of_number(number: u8) -> Option<Channel> {
    match number {
        0 => Some(Channel::Consensus),
        1 => Some(Channel::Command),
        2 => Some(Channel::Admission),
        3 => Some(Channel::Status),
        4 => Some(Channel::Content),
        5 => Some(Channel::Bulk),
        6 => Some(Channel::Background),
        _ => None,
    }
}

pub(super) fn limits(channel: Channel) -> Limits {
    let (request_bytes, answer_bytes) = match channel {
        // Batches of log entries and pieces of snapshots.
        Channel::Consensus => (16 * MIB, MIB),
        Channel::Command => (4 * MIB, 4 * MIB),
        // Asked by nodes that are not members yet.
        Channel::Admission => (4 * KIB, MIB),
        Channel::Status => (KIB, 64 * KIB),
        // Manifests with what is said about them; the tree of a large blob.
        Channel::Content | Channel::Bulk | Channel::Background => (16 * MIB, 16 * MIB),
    };
    Limits { request_bytes, answer_bytes }
}

/// Streams with a higher one go first where the link is full.
pub(super) fn priority(channel: Channel) -> i32 {
    match channel {
        Channel::Consensus => 30,
        Channel::Command => 20,
        Channel::Admission | Channel::Status => 10,
        Channel::Content => 0,
        Channel::Bulk => -10,
        Channel::Background => -20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_own_number() {
        let small = [Channel::Consensus, Channel::Command, Channel::Admission, Channel::Status];
        for channel in small.into_iter().chain([Channel::Content, Channel::Bulk, Channel::Background]) {
            assert_eq!(of_number(number(channel)), Some(channel));
        }
        assert_eq!(of_number(7), None);
    }
}
