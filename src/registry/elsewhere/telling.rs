//! Hands pull times to the primaries of followed accounts, so that retention there counts the pulls of all regions.

use keppel_federation::vocabulary::{AccountName, Digest, RepositoryName};

use crate::metadata::{MetadataError, Pull, PulledNames};
use crate::registry::{Registry, RegistryError};

/// Pull times that are handed over together.
const BATCH: usize = 1000;
/// The most of a repository that is handed over in one run.
const PULLS_MAX: usize = 100_000;
/// Pulls of so many seconds before the last run are handed over once more: they were noted before, and written after it.
const OVERLAP: i64 = 60;

impl Registry {
    /// Hands the pull times of an account of another region to its primary: those since the last time. Gives how many. What
    /// was handed over twice does no harm.
    ///
    /// Cancel safety: the next run begins where this one did.
    ///
    /// # Errors
    /// [`RegistryError::PrimaryUnreachable`], or our own trouble.
    pub async fn hand_over_pull_times(&self, account: &AccountName) -> Result<u64, RegistryError> {
        let Some(elsewhere) = self.inner.elsewhere(account) else { return Ok(0) };
        self.flush_pull_times().await?;
        let (until, name) = (self.now(), account.clone());
        let told = self.inner.metadata.read(move |reader| reader.get_pulls_told_until(&name));
        let Some(told) = told.await.map_err(RegistryError::Metadata)? else { return Ok(0) };
        let (since, mut count, mut after) = (told.saturating_sub(OVERLAP), 0, String::new());
        loop {
            let (name, last) = (account.clone(), after.clone());
            let next = self.inner.metadata.read(move |reader| {
                let Some(id) = reader.get_account(&name)? else { return Ok(None) };
                let Some((repository, name)) = reader.get_next_repository(id, &last)? else { return Ok(None) };
                Ok::<_, MetadataError>(Some((name, reader.list_pulled_since(repository, since, PULLS_MAX)?)))
            });
            let Some((name, pulled)) = next.await.map_err(RegistryError::Metadata)? else { break };
            if let Ok(repository) = RepositoryName::parse(&name) {
                for pulls in in_batches(pulled) {
                    elsewhere.upstream.note_pulls(&elsewhere.primary, &repository, &pulls).await?;
                    count += (pulls.manifests.len() + pulls.tags.len()) as u64;
                }
            }
            after = name;
        }
        let name = account.clone();
        let noted = self.inner.metadata.write(move |transaction| transaction.put_pulls_told_until(&name, until));
        noted.await.map_err(RegistryError::Metadata)?;
        metrics::counter!("keppel_pull_times_handed_over_total").increment(count);
        Ok(count)
    }

    /// Notes pulls from another region of an account of this one; what is not here is passed over.
    ///
    /// # Errors
    /// Our own trouble.
    pub async fn note_pulls_elsewhere(
        &self,
        repository: &RepositoryName,
        pulled: PulledNames,
    ) -> Result<(), RegistryError> {
        let (name, now) = (repository.clone(), self.now());
        let noted = self.inner.metadata.write(move |transaction| {
            let Some(id) = transaction.get_repository(&name)? else { return Ok(()) };
            let mut pulls = Vec::new();
            for (digest, at) in &pulled.manifests {
                if let Some((manifest, _)) = transaction.get_manifest_id(id, digest)? {
                    // A clock that is ahead there keeps nothing for longer than a pull of now would.
                    pulls.push(Pull { manifest, tag: None, at: (*at).min(now) });
                }
            }
            for (tag, at) in pulled.tags {
                if let Some(manifest) = transaction.get_tagged(id, &tag)? {
                    pulls.push(Pull { manifest, tag: Some((id, tag)), at: at.min(now) });
                }
            }
            transaction.record_pulls(&pulls)
        });
        noted.await.map_err(|error: MetadataError| RegistryError::from(error))
    }
}

/// Cuts what was pulled into pieces, none of them empty.
fn in_batches(pulled: PulledNames) -> Vec<PulledNames> {
    let manifests = pulled.manifests.chunks(BATCH);
    let manifests = manifests.map(|some: &[(Digest, i64)]| PulledNames { manifests: some.to_vec(), tags: Vec::new() });
    let tags = pulled.tags.chunks(BATCH).map(|some| PulledNames { manifests: Vec::new(), tags: some.to_vec() });
    manifests.chain(tags).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_are_cut_into_pieces_and_nothing_into_none() {
        assert!(in_batches(PulledNames::default()).is_empty());
        let digest = |number: usize| Digest::from_sha256([number as u8; 32]);
        let manifests = (0..2500).map(|number| (digest(number), 1)).collect();
        let pieces = in_batches(PulledNames { manifests, tags: vec![("v1".into(), 2)] });
        let sizes: Vec<_> = pieces.iter().map(|piece| (piece.manifests.len(), piece.tags.len())).collect();
        assert_eq!(sizes, [(1000, 0), (1000, 0), (500, 0), (0, 1)]);
    }
}
