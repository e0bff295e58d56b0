use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::vocabulary::{NodeId, Region};

/// The format of cards. A newer one is skipped by older nodes.
const VERSION: u8 = 1;
/// The largest encoded card: it has to fit into a datagram beside the rest.
pub(super) const CARD_BYTES_MAX: usize = 800;
const ADDRESSES_MAX: usize = 8;
const API_URL_BYTES_MAX: usize = 256;
const WORD_BYTES_MAX: usize = 32;
const CAPABILITIES_MAX: usize = 4;

/// What a node says of itself. Gossip carries it; nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// The node.
    pub node: NodeId,
    /// Grows with every change: the newest card counts.
    pub revision: u64,
    /// Where the node runs.
    pub region: Region,
    /// Where other nodes reach it; 8 at most.
    pub addresses: Vec<SocketAddr>,
    /// Where clients reach its API; empty when it has none.
    pub api_url: String,
    /// The version of its program.
    pub version: String,
    /// What it can do beyond what every node can; 4 at most.
    pub capabilities: Vec<String>,
    /// How busy it is.
    pub load: Load,
}

/// How busy a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Load {
    /// From 0, idle, to 1000, at its limit.
    pub busy_permille: u16,
    /// Free space of its storage, where that has an end.
    pub free_bytes: Option<u64>,
}

impl Card {
    /// The card as bytes, shortened to what a datagram holds.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut card = self.clone();
        card.addresses.truncate(ADDRESSES_MAX);
        card.capabilities.truncate(CAPABILITIES_MAX);
        card.capabilities.retain(|word| word.len() <= WORD_BYTES_MAX);
        card.version.truncate(card.version.floor_char_boundary(WORD_BYTES_MAX));
        if card.api_url.len() > API_URL_BYTES_MAX {
            // Half a URL would be wrong. The full one stands in the replicated member list.
            card.api_url.clear();
        }
        postcard::to_extend(&card, vec![VERSION]).expect("plain data serialises")
    }

    /// Reads a card; none when it is of a newer format or not valid.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [VERSION, body @ ..] if bytes.len() <= CARD_BYTES_MAX => postcard::from_bytes(body).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_fullest_card_fits_and_comes_back() {
        let card = Card {
            node: NodeId::from_public_key([7; 32]),
            revision: u64::MAX,
            region: Region::parse(&"r".repeat(32)).unwrap(),
            addresses: vec!["[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(); 20],
            api_url: "u".repeat(API_URL_BYTES_MAX),
            version: "v".repeat(200),
            capabilities: vec!["c".repeat(WORD_BYTES_MAX); 9],
            load: Load { busy_permille: 1000, free_bytes: Some(u64::MAX) },
        };
        let bytes = card.encode();
        assert!(bytes.len() <= CARD_BYTES_MAX, "{}", bytes.len());
        let back = Card::decode(&bytes).unwrap();
        assert_eq!((back.node, &back.api_url, back.addresses.len()), (card.node, &card.api_url, ADDRESSES_MAX));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_card_panic(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
            let _ = Card::decode(&bytes);
        }
    }
}
