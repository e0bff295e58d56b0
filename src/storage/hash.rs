//! The hashes of bytes that arrive piece by piece: the digest that names them and their BLAKE3 tree.

use keppel_federation::vocabulary::{Algorithm, Digest};
use sha2::Digest as _;

use super::tree::TreeHasher;

/// A digest under way.
pub(super) enum DigestHasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl DigestHasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Digest {
        let algorithm = self.algorithm();
        let digest = match self {
            Self::Sha256(hasher) => Digest::from_hash(algorithm, &hasher.finalize()),
            Self::Sha512(hasher) => Digest::from_hash(algorithm, &hasher.finalize()),
        };
        digest.expect("a hasher's output has the length of its algorithm")
    }
}

/// Digest and tree under way, over the same bytes.
pub(super) struct BlobHasher {
    digest: DigestHasher,
    tree: TreeHasher,
}

/// What a [`BlobHasher`] found.
pub(super) struct BlobHashes {
    pub(super) digest: Digest,
    pub(super) blake3: [u8; 32],
    pub(super) outboard: Vec<u8>,
}

impl BlobHasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        Self { digest: DigestHasher::new(algorithm), tree: TreeHasher::new() }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        // Both hashes take their turn on bytes that are still in the cache.
        for part in bytes.chunks(64 * 1024) {
            self.digest.update(part);
            self.tree.update(part);
        }
    }

    pub(super) fn finish(self) -> BlobHashes {
        let (blake3, outboard) = self.tree.finish();
        BlobHashes { digest: self.digest.finish(), blake3, outboard }
    }
}
