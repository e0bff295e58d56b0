//! What a repository holds as far as its clients were told.

use super::*;

/// What is known of a manifest.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) blobs: BTreeSet<Digest>,
    pub(super) children: BTreeSet<Digest>,
    pub(super) subject: Option<Digest>,
    pub(super) subject_gone: bool,
    pub(super) pushed_at: i64,
}

#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) manifests: BTreeMap<Digest, Known>,
    pub(super) tags: BTreeMap<u8, Digest>,
    /// Until when blobs may be counted on.
    pub(super) promises: BTreeMap<Digest, i64>,
}

impl Place {
    pub(super) fn may_refer_to(&self, blob: &Digest, now: i64) -> bool {
        self.promises.get(blob).is_some_and(|until| now < *until) || self.is_referred_to(blob)
    }

    pub(super) fn is_referred_to(&self, blob: &Digest) -> bool {
        self.manifests.values().any(|manifest| manifest.blobs.contains(blob))
    }

    pub(super) fn has_parent(&self, digest: &Digest) -> bool {
        self.manifests.values().any(|manifest| manifest.children.contains(digest))
    }

    pub(super) fn remove(&mut self, digest: &Digest) {
        self.manifests.remove(digest);
        self.tags.retain(|_, tagged| tagged != digest);
        for manifest in self.manifests.values_mut().filter(|manifest| manifest.subject == Some(*digest)) {
            manifest.subject_gone = true;
        }
    }

    pub(super) fn insert(&mut self, digest: Digest, known: Known) {
        // Pushed again, it keeps what is known of its subject.
        let subject_gone = self.manifests.get(&digest).is_some_and(|known| known.subject_gone);
        if !self.manifests.contains_key(&digest) {
            for manifest in self.manifests.values_mut().filter(|manifest| manifest.subject == Some(digest)) {
                manifest.subject_gone = false;
            }
        }
        self.manifests.insert(digest, Known { subject_gone, ..known });
    }

    /// What retention deletes, until it deletes nothing more.
    pub(super) fn collect(&mut self, policy: bool, now: i64) {
        loop {
            let gone = |digest: &Digest, known: &Known| {
                let tagged = self.tags.values().any(|tagged| tagged == digest);
                let protected = now - known.pushed_at < 600
                    || self.has_parent(digest)
                    || known.subject.is_some_and(|subject| self.manifests.contains_key(&subject));
                !tagged && !protected && (known.subject_gone || (policy && now - known.pushed_at > UNTAGGED_AGE))
            };
            let gone: Vec<Digest> = self
                .manifests
                .iter()
                .filter(|(digest, known)| gone(digest, known))
                .map(|(digest, _)| *digest)
                .collect();
            if gone.is_empty() {
                return;
            }
            gone.iter().for_each(|digest| self.remove(digest));
        }
    }
}
