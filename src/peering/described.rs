//! Manifests in answers, with what their bytes do not say: of nodes that say so, and of older ones.

use bytes::Bytes;

use super::messages::Answer;
use crate::registry::{PutManifest, RemoteManifest};

impl Answer {
    /// A manifest, where one was asked for.
    pub(super) fn into_manifest(self) -> Option<RemoteManifest> {
        let old = |digest, media_type, bytes, is_stale| {
            Some(RemoteManifest { digest, media_type, bytes, is_stale, layers_created_at: None, facts: None })
        };
        match self {
            Self::DescribedManifest { digest, media_type, bytes, is_stale, layers_created_at, facts } => {
                let bytes = bytes.map(Bytes::from);
                Some(RemoteManifest { digest, media_type, bytes, is_stale, layers_created_at, facts })
            }
            Self::Manifest { digest, media_type, bytes } => old(digest, media_type, bytes.map(Bytes::from), false),
            Self::StaleManifest { digest, media_type, bytes } => old(digest, media_type, Some(bytes.into()), true),
            _ => None,
        }
    }

    /// What a push came to, where that was asked for.
    pub(super) fn into_put(self) -> Option<PutManifest> {
        match self {
            Self::PutDescribed { digest, subject, tags, facts } => Some(PutManifest { digest, subject, tags, facts }),
            Self::PutManifest { digest, subject, tags } => Some(PutManifest { digest, subject, tags, facts: None }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use keppel_federation::vocabulary::Digest;

    use super::*;

    #[test]
    fn older_nodes_say_less_of_manifests_and_are_understood() {
        let (digest, media_type) = (Digest::from_sha256([7; 32]), "application/json".to_owned());
        let answer = Answer::StaleManifest { digest, media_type: media_type.clone(), bytes: b"{}".to_vec() };
        let manifest = answer.into_manifest().unwrap();
        assert!(manifest.is_stale && manifest.facts.is_none() && manifest.bytes.as_deref() == Some(b"{}"));
        let manifest = Answer::Manifest { digest, media_type, bytes: None }.into_manifest().unwrap();
        assert!(!manifest.is_stale && manifest.bytes.is_none());
        let put = Answer::PutManifest { digest, subject: None, tags: Vec::new() }.into_put();
        assert_eq!(put.map(|put| put.digest), Some(digest));
        assert!(Answer::Deleted.into_manifest().is_none() && Answer::Deleted.into_put().is_none());
    }
}
