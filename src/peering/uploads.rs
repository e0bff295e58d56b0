//! Upload sessions that another node holds: what clients send here in them goes there.

use std::time::Duration;

use bytes::Bytes;
use keppel_federation::content::Urgency;
use keppel_federation::vocabulary::{Digest, NodeId, RepositoryName, UploadId};

use super::messages::{Answer, Question, UploadQuestion};
use super::refusals::confused;
use super::upstream::FederationUpstream;
use crate::registry::{BodyError, Primary, Registry, RegistryError, UploadStep};

/// How long a piece may take, or the end of a session, with all of its bytes on disk. A slow link is not a dead one.
const DEADLINE: Duration = Duration::from_secs(45);

impl FederationUpstream {
    /// The member whose session it is.
    pub(super) fn holder_of_upload(&self, id: &UploadId) -> Option<Primary> {
        let member = self.federation.members().into_iter().find(|member| id.is_at(member.node))?;
        Some(Primary { node: member.node, region: member.region.to_string() })
    }

    /// Has the member that holds a session do something with it; gives how many bytes it has, where it goes on.
    pub(super) async fn ask_about_upload(
        &self,
        at: &Primary,
        repository: &RepositoryName,
        id: &UploadId,
        step: UploadStep,
    ) -> Result<Option<u64>, RegistryError> {
        // Pieces of blobs must not hold up short questions.
        let urgency = if matches!(step, UploadStep::Append { .. }) { Urgency::Bulk } else { Urgency::Prompt };
        let what = match step {
            UploadStep::Status => UploadQuestion::Status,
            UploadStep::Append { offset, bytes } => UploadQuestion::Append { offset, bytes: bytes.to_vec() },
            UploadStep::Finish(digest) => UploadQuestion::Finish { digest },
            UploadStep::Cancel => UploadQuestion::Cancel,
        };
        let question = Question::Upload { repository: repository.clone(), id: id.clone(), what };
        match self.ask_on(urgency, at, repository, &question, DEADLINE).await? {
            Answer::Upload(size_bytes) => Ok(size_bytes),
            _ => Err(confused(at, repository)),
        }
    }
}

/// Does with a session of this node what a client asked of another one.
pub(super) async fn answer(
    registry: &Registry,
    from: NodeId,
    repository: &RepositoryName,
    id: UploadId,
    what: UploadQuestion,
) -> Result<Answer, RegistryError> {
    // A question goes one hop at most.
    if !registry.is_upload_here(&id) {
        return Err(RegistryError::UploadUnknown { id });
    }
    let status = match what {
        UploadQuestion::Status => registry.upload_status(repository, &id).await?,
        UploadQuestion::Append { offset, bytes } => {
            let length = bytes.len() as u64;
            let range = offset.filter(|_| length > 0).map(|first| (first, first.saturating_add(length - 1)));
            let body = futures_util::stream::iter([Ok::<_, BodyError>(Bytes::from(bytes))]);
            registry.append_upload(repository, &id, range, Some(length), body).await?
        }
        UploadQuestion::Finish { digest } => {
            tracing::debug!(%repository, %digest, peer = %from.short(), "an upload ends that goes on in another region");
            finish(registry, repository, &id, &digest).await?;
            return Ok(Answer::Upload(None));
        }
        UploadQuestion::Cancel => {
            registry.cancel_upload(repository, &id).await?;
            return Ok(Answer::Upload(None));
        }
    };
    Ok(Answer::Upload(Some(status.size_bytes)))
}

async fn finish(
    registry: &Registry,
    repository: &RepositoryName,
    id: &UploadId,
    digest: &Digest,
) -> Result<(), RegistryError> {
    let nothing = futures_util::stream::empty::<Result<Bytes, BodyError>>();
    registry.finish_upload(repository, id, None, Some(0), nothing, digest).await
}
