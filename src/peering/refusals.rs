//! What the words of other nodes mean when they do not give what was asked for. The other direction, from our errors to those
//! words, is in `content`.

use keppel_federation::transport::TransportError;
use keppel_federation::vocabulary::{Reference, RepositoryName};

use super::messages::{Question, Refusal, UploadRefusal};
use crate::registry::{Primary, RegistryError};

/// What is in the way, without the names of nodes, which say nothing to a client.
pub(super) fn reason_of(error: &TransportError) -> String {
    match error {
        TransportError::Timeout { after, .. } => format!("no answer within {after:?}"),
        TransportError::Refused { reason, .. } => reason.clone(),
        TransportError::UnknownNode(_) => "its address is not known".into(),
        TransportError::NotConnected { cause, .. } | TransportError::Unreachable { cause, .. } => cause.clone(),
        TransportError::TooLarge { .. } => error.to_string(),
    }
}

/// The other side gave an answer to another question.
pub(super) fn confused(whom: &Primary, repository: &RepositoryName) -> RegistryError {
    let reason = "its answer does not fit the question".to_owned();
    RegistryError::PrimaryUnreachable { account: repository.account(), region: whom.region.clone(), reason }
}

/// What a refusal by another node comes to here. `unreachable` makes the error for a node that cannot answer now.
pub(super) fn refused(
    refusal: Refusal,
    repository: &RepositoryName,
    question: &Question,
    unreachable: &dyn Fn(String) -> RegistryError,
) -> RegistryError {
    use RegistryError as E;
    let repository = repository.clone();
    let moving = |reason: &str| E::AccountMoving { account: repository.account(), reason: reason.to_owned() };
    match refusal {
        // Whoever writes asks again: by then it is known here, too, where the account is.
        Refusal::NotPrimary if is_write(question) => moving("the region that is asked is not its primary by now"),
        Refusal::Moving if is_write(question) => moving("it is being moved to another region"),
        Refusal::NotPrimary | Refusal::Moving => unreachable("it says that it is not the primary".into()),
        Refusal::ManifestInvalid { reason } => E::ManifestInvalid { reason },
        Refusal::ManifestTooLarge { limit_bytes } => E::ManifestTooLarge { limit_bytes },
        Refusal::ManifestBlobsUnknown { digests } => E::ManifestBlobsUnknown { digests },
        Refusal::DigestMismatch { expected, actual } => E::DigestMismatch { expected, actual },
        Refusal::AccountUnknown => E::AccountUnknown { account: repository.account() },
        Refusal::RepositoryUnknown => E::RepositoryUnknown { repository },
        Refusal::ManifestUnknown => match reference_of(question) {
            Some(reference) => E::ManifestUnknown { repository, reference },
            None => E::RepositoryUnknown { repository },
        },
        Refusal::BlobUnknown { digest } => E::BlobUnknown { digest },
        Refusal::ManifestHasParent { digest, parent } => E::ManifestHasParent { digest, parent },
        Refusal::BlobInUse { digest, manifest } => E::BlobInUse { digest, manifest },
        Refusal::StorageFull => unreachable("its storage is full".into()),
        Refusal::Denied { reason } => E::RefusedElsewhere { reason },
        Refusal::External { upstream, error } => E::External { account: repository.account(), upstream, error },
        Refusal::OnTheWay { digest } => E::BlobOnTheWay { digest },
        Refusal::ExternalReplica { upstream } => E::ExternalReplica { account: repository.account(), upstream },
        Refusal::CopiesMissing { wanted, held, reason } => {
            E::CopiesMissing { account: repository.account(), wanted, held, reason }
        }
        Refusal::Upload(refusal) => refused_upload(refusal, question, unreachable),
        Refusal::Unconfirmed => E::Unconfirmed { account: repository.account() },
        Refusal::Overdue => unreachable("it was asked too late to begin with it".into()),
        Refusal::Trouble => unreachable("something went wrong there; its log says what".into()),
    }
}

fn refused_upload(
    refusal: UploadRefusal,
    question: &Question,
    unreachable: &dyn Fn(String) -> RegistryError,
) -> RegistryError {
    use RegistryError as E;
    let Question::Upload { id, .. } = question else {
        return unreachable("its answer does not fit the question".into());
    };
    let id = id.clone();
    match refusal {
        UploadRefusal::Unknown => E::UploadUnknown { id },
        UploadRefusal::Busy => E::UploadBusy { id },
        UploadRefusal::TooMany { limit } => E::TooManyUploads { limit: usize::try_from(limit).unwrap_or(usize::MAX) },
        UploadRefusal::OutOfOrder { size_bytes } => E::RangeOutOfOrder { id, size_bytes },
        UploadRefusal::TooLarge { limit_bytes } => E::BlobTooLarge { limit_bytes },
        UploadRefusal::StorageFull => E::StorageFull,
    }
}

/// Whether the question changes something.
pub(super) fn is_write(question: &Question) -> bool {
    use Question as Q;
    matches!(
        question,
        Q::PutManifest { .. }
            | Q::DeleteManifest { .. }
            | Q::DeleteTag { .. }
            | Q::DeleteBlob { .. }
            | Q::DeleteRepository { .. }
            | Q::Mount { .. }
    )
}

fn reference_of(question: &Question) -> Option<Reference> {
    match question {
        Question::Manifest { reference, .. } => Reference::parse(reference).ok(),
        Question::DeleteManifest { digest, .. } => Some(Reference::Digest(*digest)),
        Question::DeleteTag { tag, .. } => Some(Reference::Tag(tag.clone())),
        _ => None,
    }
}
