//! What a region that follows asks, and what it is told. Plain data, also on the wire: fields are only ever added as new
//! variants of new messages.

use keppel_federation::vocabulary::{AccountName, Digest};
use serde::{Deserialize, Serialize};

use crate::metadata::{Cursor, ManifestCopy, TagCopy};

/// Asks for what is new in accounts; also says how far the asker is, and renews its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowRequest {
    /// The asker's session; a later one has a larger number.
    pub session: u64,
    /// Whether the session begins with it. All that was promised in former ones is void, and was before this was sent.
    pub is_first: bool,
    /// How long to wait for news, in milliseconds.
    pub wait_ms: u32,
    /// Where the asker is in accounts: in the first request all of them, then those where that has changed.
    pub places: Vec<(AccountName, Place)>,
    /// Accounts that are no longer followed.
    pub dropped: Vec<AccountName>,
}

/// How much of an account is there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Everything up to this place in the log is on the asker's disk.
    At(Cursor),
    /// The account is to be listed from here on.
    Listing(ListPlace),
}

/// A place in the listing of an account: repositories by name, of each the manifests, then the tags.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListPlace {
    /// The repository that follows this full name.
    Next {
        /// That name; empty at the beginning.
        after: String,
    },
    /// Manifests of a repository.
    Manifests {
        /// Its full name.
        repository: String,
        /// Those that follow this digest.
        after: Option<Digest>,
    },
    /// Tags of a repository.
    Tags {
        /// Its full name.
        repository: String,
        /// Those that follow this tag.
        after: String,
    },
}

impl ListPlace {
    /// The beginning of a listing.
    pub(crate) fn beginning() -> Self {
        Self::Next { after: String::new() }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FollowAnswer {
    /// The session is not known or has run out: begin another.
    UnknownSession,
    /// What is new.
    News {
        /// How long the asker holds the lease, from the moment it sent its request, in milliseconds; 0: as long as
        /// before.
        lease_ms: u32,
        /// About accounts, each once at most.
        news: Vec<News>,
    },
}

/// What is new in an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct News {
    /// The account.
    pub account: AccountName,
    /// What.
    pub what: NewsKind,
}

/// What is new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewsKind {
    /// What happened after the asker's place, perhaps nothing.
    Events {
        /// In order.
        changes: Vec<Change>,
        /// The asker's place once it has applied them.
        upto: Cursor,
        /// The newest event there is.
        head: u64,
        /// Only for who holds the lease: no region answers with anything older than this event. Whoever is just there
        /// has all that was acknowledged, and will be waited for.
        confirmed: Option<u64>,
    },
    /// A part of a listing.
    Page {
        /// What there is.
        slices: Vec<Slice>,
        /// Where the listing goes on; `None`: this was all.
        next: Option<ListPlace>,
        /// The end of the log when the page was made. Events after that of the first page make the listing exact.
        base: Cursor,
    },
    /// The asker's place is in no log that is here: it is to ask for a listing.
    Resync,
    /// The node is not the primary.
    NotPrimary,
}

/// A change of an account's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The full name of the repository.
    pub repository: String,
    /// When, in UNIX seconds.
    pub at: i64,
    /// What happened there.
    pub kind: ChangeKind,
}

/// What happened in a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// It was made.
    RepositoryMade,
    /// It was deleted, with all that was in it.
    RepositoryGone,
    /// A manifest was pushed. Left out where it was deleted since: that comes as a later change.
    ManifestPut(ManifestCopy),
    /// A manifest was deleted.
    ManifestGone(Digest),
    /// A tag names this manifest. Where there is no such manifest, a later change says what became of the tag.
    TagSet(String, Digest),
    /// A tag was deleted.
    TagGone(String),
    /// A blob was taken out.
    BlobGone(Digest),
}

/// A part of a listing: all there is between two places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slice {
    /// This repository is the next after that name, or there is none.
    Repository {
        /// The name before; empty at the beginning.
        after: String,
        /// The full name.
        name: Option<String>,
    },
    /// These are the manifests of a repository between two digests.
    Manifests {
        /// Its full name.
        repository: String,
        /// Those that follow this digest.
        after: Option<Digest>,
        /// In the order of their digests.
        manifests: Vec<ManifestCopy>,
        /// Up to this one; `None`: the last.
        upto: Option<Digest>,
    },
    /// These are the tags of a repository between two tags.
    Tags {
        /// Its full name.
        repository: String,
        /// Those that follow this tag.
        after: String,
        /// In bytewise order.
        tags: Vec<TagCopy>,
        /// Up to this one; `None`: the last.
        upto: Option<String>,
    },
}
