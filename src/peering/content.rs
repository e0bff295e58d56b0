//! Hands out what this node stores, and takes what other regions' clients push.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use keppel_federation::Federation;
use keppel_federation::content::Content;
use keppel_federation::vocabulary::{AccountName, Digest, NodeId, Reference, RepositoryName};
use keppel_federation::wire::Body;

use super::forwarded::ForwardedWrites;
use super::messages::{
    Answer, ExternalAnswer, Question, ReferrerItem, Refusal, Target, Terms, UploadRefusal, decode, encode,
};
use super::parts::encode_part;
use super::refusals::is_write;
use super::{succession, uploads};
use crate::external::{ExternalManifest, ManifestAnswer};
use crate::registry::{BlobOpening, GATHERED_MAX, ManifestTarget, Registry, RegistryError, RemoteBlob, WriteWindow};

/// The most that one question gets of a blob.
const PART_MAX_BYTES: u64 = 4 << 20;

/// How long a question waits for a blob that is fetched from a registry outside: less than the asker waits.
const FETCH_PATIENCE: Duration = Duration::from_secs(20);

/// Accounts of which one question may ask how much is not there yet.
pub(super) const BACKLOGS_MAX: usize = 100;

/// How long a question waits for blobs that are to be kept: less than the asker waits.
const KEEP_PATIENCE: Duration = Duration::from_secs(15);
/// How long a question waits for a part of a blob that is on its way here.
const PART_WAIT_MAX: Duration = Duration::from_secs(10);

/// Answers other members from a registry.
pub struct RegistryContent {
    registry: Registry,
    federation: Federation,
    forwarded: ForwardedWrites,
}

impl RegistryContent {
    /// Hands out what this registry has.
    pub fn new(registry: Registry, federation: Federation) -> Self {
        Self { registry, federation, forwarded: ForwardedWrites::new() }
    }

    async fn answer_question(&self, from: NodeId, question: Question) -> Result<Answer, Refused> {
        let registry = &self.registry;
        match question {
            Question::BlobSize { repository, digest } => {
                // What the account's primary has outside, it has.
                let blob = match registry.is_elsewhere(&repository.account()) {
                    true => registry.promise_local_blob(&repository, &digest).await?,
                    false => registry.load_blob(&repository, &digest, false).await?,
                };
                Ok(Answer::BlobSize(blob.size_bytes))
            }
            Question::Blob { repository, digest, beginning_bytes } => {
                let blob = registry.load_blob_for_region(&repository, &digest, FETCH_PATIENCE).await?;
                let (outboard, blake3) = registry.load_outboard(&blob).await?;
                let end = blob.size_bytes.min(beginning_bytes).min(PART_MAX_BYTES);
                let beginning = self.read(&repository, &digest, 0..end).await?;
                let (size_bytes, outboard) = (blob.size_bytes, outboard.pairs.to_vec());
                Ok(Answer::Blob { size_bytes, blake3, outboard, beginning })
            }
            Question::BlobPart { repository, digest, offset, size_bytes } => {
                let end = offset.saturating_add(size_bytes.min(PART_MAX_BYTES));
                Ok(Answer::BlobPart(self.read(&repository, &digest, offset..end).await?.into()))
            }
            Question::OpenBlob { repository, digest, beginning_bytes, with_tree, to_lead } => {
                let beginning_bytes = beginning_bytes.min(PART_MAX_BYTES);
                let opening = BlobOpening { beginning_bytes, with_tree, to_lead };
                let blob = registry.open_blob_for(from, &repository, &digest, opening, FETCH_PATIENCE).await?;
                count_sent(from, blob.beginning.len() + blob.tree.len());
                let RemoteBlob { size_bytes, root: blake3, tree, beginning, proof, holders } = blob;
                let (outboard, beginning) = (tree.to_vec(), beginning.to_vec());
                Ok(match proof.is_empty() {
                    true => Answer::OpenedBlob { size_bytes, blake3, outboard, beginning, holders },
                    false => Answer::OpenedWithProof { size_bytes, blake3, outboard, beginning, proof, holders },
                })
            }
            Question::Hold { repository, digest } => {
                let held = registry.hold_image(&repository, &digest).await?;
                Ok(Answer::Held { manifests: held.manifests, blobs: held.blobs, missing: held.missing })
            }
            Question::Keep { repository, blobs } => {
                let keeping = registry.keep_blobs(from, &repository, &blobs);
                match tokio::time::timeout(KEEP_PATIENCE, keeping).await {
                    Ok(kept) => kept.map(|()| Answer::Kept(true)).map_err(Refused::from),
                    // The transfers go on; the primary asks again.
                    Err(_) => Ok(Answer::Kept(false)),
                }
            }
            Question::External { repository, reference, known } => {
                let reference = Reference::parse(&reference).map_err(|_| Refused(Refusal::ManifestUnknown))?;
                let answer = registry.external_manifest_for(from, &repository, &reference, known).await?;
                Ok(Answer::External(match answer {
                    ManifestAnswer::Absent => ExternalAnswer::Absent,
                    ManifestAnswer::Same => ExternalAnswer::Same,
                    ManifestAnswer::Found(ExternalManifest { digest, media_type, bytes }) => {
                        ExternalAnswer::Found { digest, media_type, bytes: bytes.to_vec() }
                    }
                }))
            }
            Question::HasBlobs { repository, blobs } => {
                let asked = &blobs[..blobs.len().min(GATHERED_MAX)];
                Ok(Answer::HasBlobs(registry.promise_local_blobs(&repository, asked).await?))
            }
            Question::Repositories { within, after, limit } => {
                let page = registry.list_own_repositories(within.as_ref(), &after, limit as usize).await?;
                refuse_stale(page.is_stale)?;
                Ok(Answer::Repositories { items: page.items, more: page.more })
            }
            Question::Upload { repository, id, what } => {
                let answered = uploads::answer(registry, from, &repository, id, what).await;
                answered.map_err(|error| match error {
                    RegistryError::StorageFull => Refused(Refusal::Upload(UploadRefusal::StorageFull)),
                    other => other.into(),
                })
            }
            Question::Follow(request) => Ok(Answer::Followed(registry.follow(from, request).await?)),
            Question::Succession(question) => {
                Ok(Answer::Succession(succession::answer(&self.federation, registry, from, question).await))
            }
            Question::Clock => Ok(self.forwarded.clock()),
            Question::Write { terms, question } => self.take_write(from, terms, &question).await,
            for_primary => answer_as_primary(registry, from, for_primary, &WriteWindow::open()).await,
        }
    }

    /// Does a write that another node hands over. What it needs goes on when that node hangs up, as far as it has begun.
    async fn take_write(&self, from: NodeId, terms: Terms, question: &[u8]) -> Result<Answer, Refused> {
        let question = decode(question).ok().filter(is_write).ok_or(Refused(Refusal::Trouble))?;
        let registry = self.registry.clone();
        let work = |window: WriteWindow| async move {
            let answer = answer_as_primary(&registry, from, question, &window).await;
            answer.unwrap_or_else(|Refused(refusal)| Answer::Refused(refusal))
        };
        Ok(self.forwarded.answer(from, terms, work).await)
    }

    /// Bytes of a blob that is stored here.
    async fn read(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Vec<u8>, RegistryError> {
        let blob = self.registry.load_local_blob(repository, digest).await?;
        let range = range.start.min(blob.size_bytes)..range.end.min(blob.size_bytes);
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let mut pieces = self.registry.open_blob(&blob, range).await?;
        while let Some(piece) = pieces.try_next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

/// What only the primary may say or do. An asker that is behind the times must not be answered from a copy.
async fn answer_as_primary(
    registry: &Registry,
    from: NodeId,
    question: Question,
    window: &WriteWindow,
) -> Result<Answer, Refused> {
    if question.account().is_some_and(|account| registry.is_elsewhere(&account)) {
        return Err(Refused(Refusal::NotPrimary));
    }
    match question {
        Question::Manifest { repository, reference, known } => {
            let reference = Reference::parse(&reference).map_err(|_| Refused(Refusal::ManifestUnknown))?;
            let manifest = registry.load_manifest(&repository, &reference).await?;
            let (digest, is_stale) = (manifest.digest, manifest.is_stale);
            let is_known = known == Some(digest) && !is_stale;
            let facts = match is_known {
                true => None,
                false => registry.get_manifest_facts(&repository, &digest, reference.tag()).await?,
            };
            Ok(Answer::DescribedManifest {
                digest,
                media_type: String::from_utf8_lossy(&manifest.media_type).into_owned(),
                bytes: (!is_known).then(|| manifest.bytes.to_vec()),
                is_stale,
                layers_created_at: manifest.layer_times,
                facts,
            })
        }
        Question::Tags { repository, after, limit } => {
            let page = registry.list_tags(&repository, after.as_deref(), limit as usize).await?;
            refuse_stale(page.is_stale)?;
            Ok(Answer::Tags { items: page.items, more: page.more })
        }
        Question::Referrers { repository, subject, artifact_type, after, limit } => {
            let artifact_type = artifact_type.as_deref();
            let page =
                registry.list_referrers(&repository, &subject, artifact_type, after.as_ref(), limit as usize).await?;
            refuse_stale(page.is_stale)?;
            let items = page.items.into_iter().map(|referrer| ReferrerItem {
                media_type: referrer.media_type,
                digest: referrer.digest,
                size: referrer.size,
                artifact_type: referrer.artifact_type,
                annotations: referrer.annotations.into_iter().collect(),
            });
            Ok(Answer::Referrers { items: items.collect(), more: page.more })
        }
        Question::ListedRepositories { account, after, limit } => {
            let page = registry.list_account_repositories(&account, after.as_deref(), limit as usize).await?;
            refuse_stale(page.is_stale)?;
            Ok(Answer::ListedRepositories { items: page.items, more: page.more })
        }
        Question::ListedManifests { repository, after, limit } => {
            let page = registry.list_manifests(&repository, after, limit as usize).await?;
            refuse_stale(page.is_stale)?;
            Ok(Answer::ListedManifests { items: page.items, more: page.more })
        }
        Question::Mount { repository, digest, from } => {
            Ok(Answer::Mount(registry.mount_blob_within(window, &repository, &digest, from.as_ref()).await?))
        }
        Question::PutManifest { repository, target, media_type, bytes } => {
            let (target, tag) = match target {
                Target::Tag(tag) => (ManifestTarget::Tag(tag.clone()), Some(tag)),
                Target::Digest { digest, tags } => (ManifestTarget::Digest { digest, tags }, None),
            };
            let bytes = Bytes::from(bytes);
            let put = registry.accept_manifest(window, from, &repository, target, media_type.as_deref(), bytes).await?;
            let facts = registry.get_manifest_facts(&repository, &put.digest, tag.as_ref()).await?;
            Ok(Answer::PutDescribed { digest: put.digest, subject: put.subject, tags: put.tags, facts })
        }
        Question::DeleteManifest { repository, digest } => {
            registry.delete_manifest_within(window, &repository, &digest).await?;
            Ok(Answer::Deleted)
        }
        Question::DeleteTag { repository, tag } => {
            registry.delete_tag_within(window, &repository, &tag).await?;
            Ok(Answer::Deleted)
        }
        Question::DeleteBlob { repository, digest } => {
            registry.delete_blob_within(window, &repository, &digest).await?;
            Ok(Answer::Deleted)
        }
        Question::DeleteRepository { repository } => {
            registry.delete_repository_within(window, &repository).await?;
            Ok(Answer::Deleted)
        }
        Question::Sums { account, after } => {
            let sums = registry.account_sums(&account, &after).await?;
            Ok(Answer::Sums { at: sums.at, repositories: sums.repositories, more: sums.more })
        }
        Question::NeededBlobs { repository, after } => {
            let page = registry.needed_blobs(&repository, after).await?;
            Ok(Answer::NeededBlobs { items: page.items, more: page.more })
        }
        Question::NotePulls { repository, pulled } => {
            registry.note_pulls_elsewhere(&repository, pulled).await?;
            Ok(Answer::Noted)
        }
        Question::Backlog { places } => {
            let mut bytes = Vec::new();
            for (account, after) in places.iter().take(BACKLOGS_MAX) {
                bytes.push(registry.backlog_bytes(account, *after).await?);
            }
            Ok(Answer::Backlog(bytes))
        }
        Question::BlobSize { .. }
        | Question::Blob { .. }
        | Question::BlobPart { .. }
        | Question::Follow(_)
        | Question::Keep { .. }
        | Question::External { .. }
        | Question::Succession(_)
        | Question::OpenBlob { .. }
        | Question::FlightPart { .. }
        | Question::HasBlobs { .. }
        | Question::Repositories { .. }
        | Question::Upload { .. }
        | Question::Write { .. }
        | Question::Clock
        | Question::Hold { .. } => Err(Refused(Refusal::Trouble)),
    }
}

impl Question {
    /// The account that it is about, where that is one.
    fn account(&self) -> Option<AccountName> {
        match self {
            Self::Follow(_)
            | Self::Backlog { .. }
            | Self::Succession(_)
            | Self::Repositories { .. }
            | Self::Write { .. }
            | Self::Clock => None,
            Self::Sums { account, .. } | Self::ListedRepositories { account, .. } => Some(account.clone()),
            Self::Manifest { repository, .. }
            | Self::BlobSize { repository, .. }
            | Self::Blob { repository, .. }
            | Self::BlobPart { repository, .. }
            | Self::Tags { repository, .. }
            | Self::Referrers { repository, .. }
            | Self::Mount { repository, .. }
            | Self::PutManifest { repository, .. }
            | Self::DeleteManifest { repository, .. }
            | Self::DeleteTag { repository, .. }
            | Self::DeleteBlob { repository, .. }
            | Self::DeleteRepository { repository }
            | Self::Keep { repository, .. }
            | Self::NeededBlobs { repository, .. }
            | Self::ListedManifests { repository, .. }
            | Self::NotePulls { repository, .. }
            | Self::External { repository, .. }
            | Self::OpenBlob { repository, .. }
            | Self::FlightPart { repository, .. }
            | Self::HasBlobs { repository, .. }
            | Self::Upload { repository, .. }
            | Self::Hold { repository, .. } => Some(repository.account()),
        }
    }
}

#[async_trait]
impl Content for RegistryContent {
    async fn answer(&self, from: NodeId, request: Bytes) -> Result<Body, String> {
        let answer = match decode(&request).map_err(|error| error.to_string())? {
            Question::FlightPart { repository, digest, offset, size_bytes, wait_ms } => {
                let end = offset.saturating_add(size_bytes.min(PART_MAX_BYTES));
                let wait = Duration::from_millis(wait_ms.into()).min(PART_WAIT_MAX);
                match self.registry.read_blob_for(&repository, &digest, offset..end, wait).await {
                    Ok(pieces) => {
                        count_sent(from, pieces.iter().map(Bytes::len).sum());
                        return Ok(encode_part(pieces));
                    }
                    Err(error) => Err(Refused::from(error)),
                }
            }
            question => self.answer_question(from, question).await,
        };
        Ok(encode(&answer.unwrap_or_else(|Refused(refusal)| Answer::Refused(refusal))).into())
    }
}

/// A list that may be out of date is none: the asker has one of that kind itself.
fn refuse_stale(is_stale: bool) -> Result<(), Refused> {
    if is_stale { Err(Refused(Refusal::NotPrimary)) } else { Ok(()) }
}

/// Counts what was sent of blobs to other nodes.
fn count_sent(to: NodeId, bytes: usize) {
    let peer = to.short().to_string();
    metrics::counter!("keppel_transfer_sent_bytes_total", "peer" => peer).increment(bytes as u64);
}

/// Lets `?` turn the registry's errors into words for the asker.
struct Refused(Refusal);

impl From<RegistryError> for Refused {
    fn from(error: RegistryError) -> Self {
        use RegistryError as E;
        let reason = error.to_string();
        Self(match error {
            E::ManifestInvalid { reason } => Refusal::ManifestInvalid { reason },
            E::ManifestTooLarge { limit_bytes } => Refusal::ManifestTooLarge { limit_bytes },
            E::ManifestBlobsUnknown { digests } => Refusal::ManifestBlobsUnknown { digests },
            E::DigestMismatch { expected, actual } => Refusal::DigestMismatch { expected, actual },
            E::AccountUnknown { .. } => Refusal::AccountUnknown,
            E::RepositoryUnknown { .. } => Refusal::RepositoryUnknown,
            E::ManifestUnknown { .. } => Refusal::ManifestUnknown,
            E::BlobUnknown { digest } => Refusal::BlobUnknown { digest },
            E::ManifestHasParent { digest, parent } => Refusal::ManifestHasParent { digest, parent },
            E::BlobInUse { digest, manifest } => Refusal::BlobInUse { digest, manifest },
            E::External { upstream, error, .. } => Refusal::External { upstream, error },
            E::BlobOnTheWay { digest } => Refusal::OnTheWay { digest },
            E::ExternalReplica { upstream, .. } => Refusal::ExternalReplica { upstream },
            E::CopiesMissing { wanted, held, reason, .. } => Refusal::CopiesMissing { wanted, held, reason },
            E::StorageFull => Refusal::StorageFull,
            E::AccountElsewhere { .. } => Refusal::NotPrimary,
            E::AccountMoving { .. } => Refusal::Moving,
            E::Unconfirmed { .. } => Refusal::Unconfirmed,
            E::Overdue { .. } => Refusal::Overdue,
            E::UploadUnknown { .. } => Refusal::Upload(UploadRefusal::Unknown),
            E::UploadBusy { .. } => Refusal::Upload(UploadRefusal::Busy),
            E::TooManyUploads { limit } => Refusal::Upload(UploadRefusal::TooMany { limit: limit as u64 }),
            E::RangeOutOfOrder { size_bytes, .. } => Refusal::Upload(UploadRefusal::OutOfOrder { size_bytes }),
            E::BlobTooLarge { limit_bytes } => Refusal::Upload(UploadRefusal::TooLarge { limit_bytes }),
            E::RefusedElsewhere { .. }
            | E::TagProtected { .. }
            | E::QuotaExceeded { .. }
            | E::PoliciesUnusable { .. }
            | E::AccountDeleting { .. } => Refusal::Denied { reason },
            // This node asked another one, which it could not reach.
            E::PrimaryUnreachable { .. } => Refusal::Trouble,
            // The rest is our own trouble.
            other => {
                tracing::error!(error = &other as &dyn std::error::Error, reason, "another region's question failed");
                Refusal::Trouble
            }
        })
    }
}
