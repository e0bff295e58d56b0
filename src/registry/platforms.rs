//! For which platform an index lists a manifest.

use keppel_federation::vocabulary::Digest;
use serde::Deserialize;

use crate::model::policy::PlatformFilter;

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    #[serde(default)]
    platform: Option<PlatformFilter>,
}

/// Whether an index lists the manifest for a platform that is replicated, or for none. An index that cannot be read
/// filters nothing.
pub(super) fn is_wanted(index: &[u8], digest: &Digest, filter: &[PlatformFilter]) -> bool {
    let Ok(index) = serde_json::from_slice::<Index>(index) else { return true };
    let name = digest.to_string();
    let mut entries = index.manifests.iter().filter(|entry| entry.digest == name);
    entries.any(|entry| PlatformFilter::wants(filter, entry.platform.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_entry_is_wanted_for_its_platform_wherever_it_is_listed() {
        let amd64 = PlatformFilter { architecture: "amd64".into(), ..PlatformFilter::default() };
        let filter = [amd64];
        let digests: Vec<_> = (1..=4).map(|byte| Digest::from_sha256([byte; 32])).collect();
        let index = json!({"manifests": [
            {"digest": digests[0], "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": digests[1], "platform": {"os": "linux", "architecture": "arm64", "variant": null}},
            {"digest": digests[2]},
            {"digest": digests[3], "platform": {"os": "linux", "architecture": "arm64"}},
            {"digest": digests[3], "platform": {"os": "windows", "architecture": "amd64"}},
        ]})
        .to_string();
        let wanted: Vec<_> = digests.iter().map(|digest| is_wanted(index.as_bytes(), digest, &filter)).collect();
        assert_eq!(wanted, [true, false, true, true]);
        assert!(is_wanted(b"nonsense", &digests[1], &filter));
    }
}
