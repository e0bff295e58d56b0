//! What nodes ask each other about content, and the answers. Pure: bytes to messages and back.
//!
//! The first byte of a message is its version. A node that does not know a version says so, and the asker treats that
//! as a node that cannot be asked.

use bytes::Bytes;
use keppel_federation::vocabulary::{AccountName, Digest, NodeId, RepositoryName, Tag, UploadId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::external::ExternalError;
use crate::metadata::{Cursor, ListedRepository, ManifestFacts, PulledNames, RepositorySums};
use crate::registry::{FollowAnswer, FollowRequest, ManifestEntry, Progress, Readiness, RemoteBlob};
use crate::storage::GROUP_BYTES;

pub(super) const VERSION: u8 = 1;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Question {
    /// A manifest by tag or digest, without its bytes if it is still `known`.
    Manifest { repository: RepositoryName, reference: String, known: Option<Digest> },
    /// The size of a blob that is stored where the question goes.
    BlobSize { repository: RepositoryName, digest: Digest },
    /// The hashes of such a blob and its first bytes.
    Blob { repository: RepositoryName, digest: Digest, beginning_bytes: u64 },
    /// Some of its bytes.
    BlobPart { repository: RepositoryName, digest: Digest, offset: u64, size_bytes: u64 },
    /// A page of tags.
    Tags { repository: RepositoryName, after: Option<String>, limit: u32 },
    /// A page of referrers.
    Referrers {
        repository: RepositoryName,
        subject: Digest,
        artifact_type: Option<String>,
        after: Option<Digest>,
        limit: u32,
    },
    /// Mount a blob.
    Mount { repository: RepositoryName, digest: Digest, from: Option<RepositoryName> },
    /// Store a manifest that was pushed to the asker.
    PutManifest { repository: RepositoryName, target: Target, media_type: Option<String>, bytes: Vec<u8> },
    /// Delete a manifest.
    DeleteManifest { repository: RepositoryName, digest: Digest },
    /// Delete a tag.
    DeleteTag { repository: RepositoryName, tag: Tag },
    /// Take a blob out of a repository.
    DeleteBlob { repository: RepositoryName, digest: Digest },
    /// What is new in accounts that are followed. A node that is older than this question refuses it, and is asked for
    /// each pull instead.
    Follow(FollowRequest),
    /// Fetch what is missing of an image, and say how much is there.
    Hold { repository: RepositoryName, digest: Digest },
    /// From the primary: fetch these blobs of a manifest that is to come, and hold them for good.
    Keep { repository: RepositoryName, blobs: Vec<Digest> },
    /// What an account has, in digests of sets, from the repository on that follows this full name.
    Sums { account: AccountName, after: String },
    /// The blobs that manifests of a repository need, after a digest.
    NeededBlobs { repository: RepositoryName, after: Option<Digest> },
    /// How many bytes the manifests have together that were put after these places in the logs of accounts.
    Backlog { places: Vec<(AccountName, u64)> },
    /// When manifests and tags were pulled where the question comes from.
    NotePulls { repository: RepositoryName, pulled: PulledNames },
    /// From the primary: ask the registry outside that the account mirrors.
    External { repository: RepositoryName, reference: String, known: Option<Digest> },
    /// About one primary after another.
    Succession(SuccessionQuestion),
    /// What a blob is, and its first bytes; `to_lead`: where it is not there, it is to be fetched. Beginnings that are no
    /// whole groups come with a proof, from nodes that are not older than that.
    OpenBlob { repository: RepositoryName, digest: Digest, beginning_bytes: u64, with_tree: bool, to_lead: bool },
    /// Some of its bytes, which may be on their way: they are waited for.
    FlightPart { repository: RepositoryName, digest: Digest, offset: u64, size_bytes: u64, wait_ms: u32 },
    /// Delete a repository with all that it holds.
    DeleteRepository { repository: RepositoryName },
    /// Which of these blobs are in the repository where the question goes, for a push that refers to them.
    HasBlobs { repository: RepositoryName, blobs: Vec<Digest> },
    /// A page of the catalog, as far as the one that is asked is the primary of the accounts.
    Repositories { within: Option<AccountName>, after: String, limit: u32 },
    /// A page of an account's repositories, with all that is told of them.
    ListedRepositories { account: AccountName, after: Option<String>, limit: u32 },
    /// A page of a repository's manifests, with all that is told of them.
    ListedManifests { repository: RepositoryName, after: Option<Digest>, limit: u32 },
    /// About an upload session that the one who is asked holds.
    Upload { repository: RepositoryName, id: UploadId, what: UploadQuestion },
    /// A write, as a question in bytes: to be done once at most, and begun before its end. Questions within questions would
    /// let a peer choose how deep they are read.
    Write { terms: Terms, question: Vec<u8> },
    /// Which process answers, and what time it has.
    Clock,
}

/// What is to be done with an upload session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UploadQuestion {
    /// Say how far it is.
    Status,
    /// Append, at this place where it is given.
    Append { offset: Option<u64>, bytes: Vec<u8> },
    /// End it.
    Finish { digest: Digest },
    /// Give it up.
    Cancel,
}

/// How a write that is handed over is told from others, and until when it may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Terms {
    /// The process at the primary that is to do it.
    pub(super) instance: u64,
    /// The write, among those of the asker.
    pub(super) key: u64,
    /// The end, as that process's uptime.
    pub(super) until_ms: u64,
}

/// The word for a question in metrics.
pub(super) fn kind_of(question: &Question) -> &'static str {
    match question {
        Question::Manifest { .. } => "manifest",
        Question::BlobSize { .. } | Question::Blob { .. } => "blob",
        Question::BlobPart { .. } => "blob_part",
        Question::Tags { .. } | Question::Referrers { .. } => "list",
        Question::Mount { .. } | Question::PutManifest { .. } => "push",
        Question::DeleteManifest { .. }
        | Question::DeleteTag { .. }
        | Question::DeleteBlob { .. }
        | Question::DeleteRepository { .. } => "delete",
        Question::Follow(_) => "follow",
        Question::Hold { .. } => "hold",
        Question::Keep { .. } => "keep",
        Question::Sums { .. } | Question::NeededBlobs { .. } => "compare",
        Question::Backlog { .. } => "backlog",
        Question::NotePulls { .. } => "pull_times",
        Question::External { .. } => "external",
        Question::Succession(_) => "succession",
        Question::OpenBlob { .. } => "blob",
        Question::FlightPart { .. } => "blob_part",
        Question::HasBlobs { .. } | Question::Upload { .. } => "push",
        Question::Repositories { .. } | Question::ListedRepositories { .. } | Question::ListedManifests { .. } => {
            "list"
        }
        Question::Write { .. } => "write",
        Question::Clock => "clock",
    }
}

/// What nodes ask each other when the primary of an account changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SuccessionQuestion {
    /// How much of the account is there.
    Readiness { account: AccountName },
    /// Follow it, fetch what is missing for a while, and say how much is there then.
    Prepare { account: AccountName },
    /// Become the primary, with the consent of the one that is.
    TakeOver { account: AccountName, epoch: u64 },
    /// Become the primary without it.
    FailOver { account: AccountName, epoch: u64 },
    /// Take no writes for so long, so that the asker can become the primary.
    HandOver { account: AccountName, epoch: u64, window_ms: u64 },
    /// It did not come to that.
    Keep { account: AccountName, epoch: u64 },
    /// Where in the log of the primary before the node was when it began this epoch.
    Place { account: AccountName, epoch: u64 },
    /// How far the node is in the log of this primary, of which it takes nothing more for so long.
    Survey { account: AccountName, primary: NodeId, epoch: u64, lasting_ms: u64 },
    /// Take what the primary tells again: it is not replaced.
    EndSurvey { account: AccountName },
    /// Become the primary without it, whatever other replicas have.
    FailOverRegardless { account: AccountName, epoch: u64 },
}

/// Under which name a manifest is pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Target {
    Tag(Tag),
    Digest { digest: Digest, tags: Vec<Tag> },
}

/// An answer to the question of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Manifest {
        digest: Digest,
        media_type: String,
        bytes: Option<Vec<u8>>,
    },
    BlobSize(u64),
    Blob {
        size_bytes: u64,
        blake3: [u8; 32],
        outboard: Vec<u8>,
        beginning: Vec<u8>,
    },
    BlobPart(#[serde(with = "super::parts::form")] Bytes),
    Tags {
        items: Vec<String>,
        more: bool,
    },
    Referrers {
        items: Vec<ReferrerItem>,
        more: bool,
    },
    Mount(bool),
    PutManifest {
        digest: Digest,
        subject: Option<Digest>,
        tags: Vec<Tag>,
    },
    Deleted,
    /// No.
    Refused(Refusal),
    /// Like `Manifest`, where it may have been replaced: by a primary that cannot reach the registry that the account
    /// mirrors, or does not know whether it still is the primary.
    StaleManifest {
        digest: Digest,
        media_type: String,
        bytes: Vec<u8>,
    },
    /// What is new.
    Followed(FollowAnswer),
    /// How much of an image is there.
    Held {
        manifests: u64,
        blobs: u64,
        missing: u64,
    },
    /// Whether all that is to be kept is on disk there; it may be asked again.
    Kept(bool),
    Sums {
        at: Cursor,
        repositories: Vec<RepositorySums>,
        more: bool,
    },
    NeededBlobs {
        items: Vec<(Digest, u64)>,
        more: bool,
    },
    /// For each account asked about, in the same order.
    Backlog(Vec<u64>),
    /// It is on disk.
    Noted,
    External(ExternalAnswer),
    /// About one primary after another.
    Succession(SuccessionAnswer),
    /// What a blob is, its tree where that was asked for, and other nodes that may have it.
    OpenedBlob {
        size_bytes: u64,
        blake3: [u8; 32],
        outboard: Vec<u8>,
        beginning: Vec<u8>,
        holders: Vec<NodeId>,
    },
    HasBlobs(Vec<Digest>),
    Repositories {
        items: Vec<String>,
        more: bool,
    },
    /// Like `OpenedBlob` with a beginning that is no whole group, and what proves it.
    OpenedWithProof {
        size_bytes: u64,
        blake3: [u8; 32],
        outboard: Vec<u8>,
        beginning: Vec<u8>,
        proof: Vec<[u8; 32]>,
        holders: Vec<NodeId>,
    },
    /// A manifest with what its bytes do not say. Those facts come with the bytes only.
    DescribedManifest {
        digest: Digest,
        media_type: String,
        bytes: Option<Vec<u8>>,
        is_stale: bool,
        layers_created_at: Option<(i64, i64)>,
        facts: Option<ManifestFacts>,
    },
    /// Like `PutManifest`, with what the manifest's bytes do not say.
    PutDescribed {
        digest: Digest,
        subject: Option<Digest>,
        tags: Vec<Tag>,
        facts: Option<ManifestFacts>,
    },
    ListedRepositories {
        items: Vec<ListedRepository>,
        more: bool,
    },
    ListedManifests {
        items: Vec<ManifestEntry>,
        more: bool,
    },
    /// How far an upload is, unless it has ended.
    Upload(Option<u64>),
    /// The write is being worked on: ask again, under the same key.
    AtWork,
    /// Which process answers, and its uptime.
    Clock {
        instance: u64,
        now_ms: u64,
    },
}

impl Answer {
    /// What it says of a blob, where that was asked.
    pub(super) fn into_blob(self) -> Option<RemoteBlob> {
        let (size_bytes, root, outboard, beginning, proof, holders) = match self {
            Self::OpenedWithProof { size_bytes, blake3, outboard, beginning, proof, holders } => {
                (size_bytes, blake3, outboard, beginning, proof, holders)
            }
            Self::OpenedBlob { size_bytes, blake3, outboard, mut beginning, holders } => {
                // An older node does not prove what is no whole group.
                if beginning.len() as u64 != size_bytes && !(beginning.len() as u64).is_multiple_of(GROUP_BYTES) {
                    beginning.clear();
                }
                (size_bytes, blake3, outboard, beginning, Vec::new(), holders)
            }
            _ => return None,
        };
        Some(RemoteBlob { size_bytes, root, tree: outboard.into(), beginning: beginning.into(), proof, holders })
    }
}

/// What a registry outside said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ExternalAnswer {
    Absent,
    Same,
    Found { digest: Option<Digest>, media_type: String, bytes: Vec<u8> },
}

/// The answer to a question about that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum SuccessionAnswer {
    Readiness(Readiness),
    /// No writes are taken, and this is the end of the log.
    HandingOver {
        head: Cursor,
    },
    /// The node is the primary, with this epoch.
    Taken {
        epoch: u64,
    },
    Noted,
    /// There; or the node knows nothing of that epoch.
    Place(Option<Cursor>),
    /// Why not, in words for the operator.
    Refused(String),
    /// How far it is.
    Surveyed(Progress),
}

/// A referrer in a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReferrerItem {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) artifact_type: Option<String>,
    pub(super) annotations: Vec<(String, String)>,
}

/// Why not, so that the asker's client can be told the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// The node is not the primary of the account.
    NotPrimary,
    ManifestInvalid {
        reason: String,
    },
    ManifestTooLarge {
        limit_bytes: u64,
    },
    ManifestBlobsUnknown {
        digests: Vec<Digest>,
    },
    DigestMismatch {
        expected: Digest,
        actual: Digest,
    },
    AccountUnknown,
    RepositoryUnknown,
    ManifestUnknown,
    BlobUnknown {
        digest: Digest,
    },
    ManifestHasParent {
        digest: Digest,
        parent: Digest,
    },
    BlobInUse {
        digest: Digest,
        manifest: Digest,
    },
    StorageFull,
    /// A rule of the account, in words for the client.
    Denied {
        reason: String,
    },
    /// The node's own trouble, which its log has.
    Trouble,
    /// The registry that the account mirrors gave nothing.
    External {
        upstream: String,
        error: ExternalError,
    },
    /// A blob that is still being fetched from there: ask again.
    OnTheWay {
        digest: Digest,
    },
    /// The account mirrors that registry and takes no pushes.
    ExternalReplica {
        upstream: String,
    },
    /// Too few regions hold what was pushed.
    CopiesMissing {
        wanted: u8,
        held: u8,
        reason: String,
    },
    /// The account is on its way to another node: ask again, there perhaps.
    Moving,
    /// What was written was recorded, and whether it lasts is not known.
    Unconfirmed,
    /// Why nothing became of what was to be done with an upload session.
    Upload(UploadRefusal),
    /// The write was not begun before its end, and will not be.
    Overdue,
}

/// Why nothing became of what was to be done with an upload session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum UploadRefusal {
    Unknown,
    Busy,
    TooMany { limit: u64 },
    OutOfOrder { size_bytes: u64 },
    TooLarge { limit_bytes: u64 },
    StorageFull,
}

/// Bytes are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum MessageError {
    #[error("messages about content of version {0} are not known here, only version {VERSION}")]
    Version(u8),
    #[error("the message about content cannot be read")]
    Unreadable,
}

/// The message as bytes.
pub(super) fn encode(message: &impl Serialize) -> Bytes {
    postcard::to_extend(message, vec![VERSION]).expect("plain data serialises").into()
}

/// Reads a message.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, MessageError> {
    match bytes {
        [VERSION, body @ ..] => postcard::from_bytes(body).map_err(|_| MessageError::Unreadable),
        [other, ..] => Err(MessageError::Version(*other)),
        [] => Err(MessageError::Unreadable),
    }
}

#[cfg(test)]
mod tests;
