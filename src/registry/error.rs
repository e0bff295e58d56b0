use keppel_federation::vocabulary::{AccountName, Digest, Reference, RepositoryName, TenantId, UploadId};

use super::TagChange;
use crate::external::ExternalError;
use crate::metadata::MetadataError;
use crate::storage::StorageError;

/// Why a client's body broke off.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// The connection went away.
    #[error("the connection was lost: {0}")]
    Disconnected(String),
    /// Nothing came for too long.
    #[error("no data arrived in time")]
    Timeout,
}

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    // The caller's fault.
    /// The bytes are not a manifest that can be served.
    #[error("{reason}")]
    ManifestInvalid {
        /// What is wrong, naming the field.
        reason: String,
    },
    /// The manifest is over the limit.
    #[error("the manifest is larger than {limit_bytes} bytes")]
    ManifestTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// The manifest refers to content that the repository does not hold.
    #[error("the manifest refers to content that the repository does not hold")]
    ManifestBlobsUnknown {
        /// All that is missing.
        digests: Vec<Digest>,
    },
    /// The content is not what its digest says.
    #[error("the content has the digest {actual}, not {expected}")]
    DigestMismatch {
        /// What the client announced.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },
    /// The blob is over the limit.
    #[error("the blob is larger than {limit_bytes} bytes")]
    BlobTooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// More or less arrived than was announced.
    #[error("{declared} bytes were announced, but {received} arrived")]
    SizeMismatch {
        /// What the client announced.
        declared: u64,
        /// What arrived.
        received: u64,
    },
    /// A chunk does not begin where the upload ends.
    #[error("the upload has {size_bytes} bytes: the next chunk must begin there")]
    RangeOutOfOrder {
        /// The upload.
        id: UploadId,
        /// What it has.
        size_bytes: u64,
    },
    /// The body broke off; what arrived of it stays in the upload.
    #[error("the request body broke off")]
    BodyBroken {
        /// How.
        #[source]
        cause: BodyError,
    },

    // Absence.
    /// No such repository.
    #[error("repository {repository} is not known")]
    RepositoryUnknown {
        /// Its name.
        repository: RepositoryName,
    },
    /// No such manifest or tag.
    #[error("{} {reference} is not known in {repository}", kind_of(reference))]
    ManifestUnknown {
        /// Where it was looked for.
        repository: RepositoryName,
        /// What was looked for.
        reference: Reference,
    },
    /// No such blob.
    #[error("blob {digest} is not known")]
    BlobUnknown {
        /// What was looked for.
        digest: Digest,
    },
    /// No such upload session, or it has ended.
    #[error("upload {id} is not known: start a new one")]
    UploadUnknown {
        /// Its name.
        id: UploadId,
    },
    /// No such account, and pushing does not make one.
    #[error("account {account} does not exist")]
    AccountUnknown {
        /// Its name.
        account: AccountName,
    },

    /// The blob is being fetched from the registry that the account mirrors.
    #[error("blob {digest} is still on its way here: ask again")]
    BlobOnTheWay {
        /// What was looked for.
        digest: Digest,
    },

    // Refusal.
    /// Another region is primary for the account.
    #[error("account {account} belongs to region {region}: ask there")]
    AccountElsewhere {
        /// Its name.
        account: AccountName,
        /// The region that is primary.
        region: String,
    },
    /// The region that decides about the account cannot be asked, or gave no answer that can be used.
    #[error("region {region}, which has account {account}, cannot be asked now: {reason}")]
    PrimaryUnreachable {
        /// The account's name.
        account: AccountName,
        /// The region that is primary.
        region: String,
        /// What is in the way.
        reason: String,
    },
    /// The account is on its way from one region to another, so that nothing can be said or done about it for a moment.
    #[error("account {account} is on its way between regions: {reason}")]
    AccountMoving {
        /// Its name.
        account: AccountName,
        /// How.
        reason: String,
    },
    /// What was written was recorded by a primary that then got a successor, and whether that has it is not known. To write it
    /// again is for the client to decide: it may have been seen, and replaced, in the meantime.
    #[error("account {account} got another primary before this was acknowledged: it may have been lost, send it again")]
    Unconfirmed {
        /// The account's name.
        account: AccountName,
    },
    /// A write that another region handed over, and that was not begun while that waited for it. It is not done.
    #[error("account {account} was not changed: this came too late to be begun")]
    Overdue {
        /// The account's name.
        account: AccountName,
    },
    /// The region that decides about the account refuses, for a reason of its own.
    #[error("{reason}")]
    RefusedElsewhere {
        /// Its words.
        reason: String,
    },
    /// Whose the account is could not be decided now.
    #[error("account {account} cannot be claimed now: {reason}")]
    ClaimUndecided {
        /// Its name.
        account: AccountName,
        /// What is in the way and what to do.
        reason: String,
    },
    /// Too few regions hold what was pushed. It may be visible, but is not acknowledged; pushing it again completes it.
    #[error(
        "account {account} asks for {wanted} copies of what is pushed, and {held} of them could be had in time: push \
         again later; {reason}"
    )]
    CopiesMissing {
        /// The account's name.
        account: AccountName,
        /// How many regions have to hold it, the primary's among them.
        wanted: u8,
        /// How many do.
        held: u8,
        /// What is in the way.
        reason: String,
    },
    /// The account is being deleted.
    #[error("account {account} is being deleted")]
    AccountDeleting {
        /// Its name.
        account: AccountName,
    },
    /// The account's content comes from another registry.
    #[error("account {account} is a replica of {upstream}: push there")]
    ExternalReplica {
        /// Its name.
        account: AccountName,
        /// That registry.
        upstream: String,
    },
    /// The registry that the account mirrors gave nothing.
    #[error("registry {upstream}, which account {account} mirrors, {error}")]
    External {
        /// The account's name.
        account: AccountName,
        /// That registry.
        upstream: String,
        /// Why it gave nothing.
        error: ExternalError,
    },
    /// Only those who have logged in may have something fetched that was not pulled before.
    #[error("this is not here yet in {repository}, and only those who have logged in may have it fetched")]
    FirstPullRefused {
        /// Where it was looked for.
        repository: RepositoryName,
    },
    /// A later version wrote the account's policies, or they are damaged.
    #[error("the policies of account {account} cannot be used by this version, so nothing can be pushed or deleted")]
    PoliciesUnusable {
        /// Its name.
        account: AccountName,
    },
    /// A policy of the account guards the tag.
    #[error("tag {tag} is protected: account.tag_policies[{policy}] sets {}", .from.field())]
    TagProtected {
        /// The tag.
        tag: String,
        /// The place of the policy.
        policy: usize,
        /// What it is protected from.
        from: TagChange,
    },
    /// The account's tenant may hold no more.
    #[error("the quota of auth tenant {tenant} is used up: {what} (quota = {quota}, usage = {usage})")]
    QuotaExceeded {
        /// The tenant.
        tenant: TenantId,
        /// `manifests` or `bytes`.
        what: &'static str,
        /// The most there may be.
        quota: u64,
        /// What there is.
        usage: u64,
    },
    /// An index lists the manifest.
    #[error("manifest {digest} is part of {parent}: delete that first")]
    ManifestHasParent {
        /// What was to be deleted.
        digest: Digest,
        /// An index that lists it.
        parent: Digest,
    },
    /// A manifest refers to the blob.
    #[error("blob {digest} is in use by manifest {manifest}: delete that first")]
    BlobInUse {
        /// What was to be deleted.
        digest: Digest,
        /// A manifest that refers to it.
        manifest: Digest,
    },
    /// Another request is writing to the upload.
    #[error("another request is writing to upload {id}: wait for it to end")]
    UploadBusy {
        /// The upload.
        id: UploadId,
    },
    /// The node that holds the upload cannot be asked, or gave no answer that can be used.
    #[error("region {region}, where upload {id} began, cannot be asked now: {reason}")]
    UploadOutOfReach {
        /// The upload.
        id: UploadId,
        /// Where that node is.
        region: String,
        /// What is in the way.
        reason: String,
    },
    /// As many uploads are open as may be.
    #[error("{limit} uploads are open already: try again later")]
    TooManyUploads {
        /// The limit.
        limit: usize,
    },

    /// As many blobs of other regions are on their way here as may be, and as many clients wait for others.
    #[error("too many blobs of account {account} are being fetched from other regions at a time: try again later")]
    TooManyTransfers {
        /// The account's name.
        account: AccountName,
    },

    // Our own trouble.
    /// The storage is full.
    #[error("the registry's storage is full")]
    StorageFull,
    /// The metadata failed.
    #[error("the metadata could not be used")]
    Metadata(#[source] MetadataError),
    /// The storage failed.
    #[error("the storage could not be used")]
    Storage(#[source] StorageError),
    /// Work in the background ended without an answer.
    #[error("the work ended without an answer")]
    Interrupted,
}

/// What a reference names, for people.
fn kind_of(reference: &Reference) -> &'static str {
    match reference {
        Reference::Tag(_) => "tag",
        Reference::Digest(_) => "manifest",
    }
}

impl From<MetadataError> for RegistryError {
    fn from(error: MetadataError) -> Self {
        match error {
            MetadataError::Full => Self::StorageFull,
            other => Self::Metadata(other),
        }
    }
}

impl From<StorageError> for RegistryError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full => Self::StorageFull,
            StorageError::UploadBusy(id) => Self::UploadBusy { id },
            StorageError::UploadMissing(id) => Self::UploadUnknown { id },
            other => Self::Storage(other),
        }
    }
}
