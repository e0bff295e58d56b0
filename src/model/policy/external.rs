use super::{AccountSettings, PlatformFilter, Secret, Upstream};

/// Where the content of an account comes from that mirrors a registry outside the federation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalSource {
    /// The host of that registry and the path that names begin with there, without a scheme.
    pub url: String,
    /// Who we are there; empty: nobody.
    pub username: String,
    /// Our password there.
    pub password: Secret,
    /// Which manifests of an index are replicated; empty: all.
    pub platform_filter: Vec<PlatformFilter>,
}

impl ExternalSource {
    /// The source that settings name; `None`: the content is pushed, or comes from another region.
    pub fn of(settings: &AccountSettings) -> Option<Self> {
        match &settings.replication.as_ref()?.upstream {
            Upstream::External { url, username, password } => Some(Self {
                url: url.clone(),
                username: username.clone(),
                password: password.clone(),
                platform_filter: settings.platform_filter.clone(),
            }),
            Upstream::Peer(_) => None,
        }
    }
}

impl PlatformFilter {
    /// Whether a filter lets a manifest through that an index lists for `platform`. What has none is no image of a platform,
    /// and is let through; so is everything where there is no filter.
    pub fn wants(filter: &[Self], platform: Option<&Self>) -> bool {
        match platform {
            Some(platform) if !filter.is_empty() => filter.iter().any(|wanted| wanted.matches(platform)),
            Some(_) | None => true,
        }
    }

    /// Whether a platform has everything that this one names.
    pub fn matches(&self, platform: &Self) -> bool {
        let equal = |wanted: &str, found: &str| wanted.is_empty() || wanted == found;
        equal(&self.architecture, &platform.architecture)
            && equal(&self.os, &platform.os)
            && equal(&self.os_version, &platform.os_version)
            && equal(&self.variant, &platform.variant)
            && self.os_features.iter().all(|feature| platform.os_features.contains(feature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn platform(value: Value) -> PlatformFilter {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_filter_lets_through_what_has_all_that_it_names() {
        let settings = AccountSettings::from_request(json!({
            "replication": {"strategy": "from_external_on_first_use", "upstream": {"url": "r.example.org"}},
            "platform_filter": [{"os": "linux", "architecture": "amd64"}, {"os": "linux", "architecture": "arm", "variant": "v7"}],
        }))
        .unwrap();
        let source = ExternalSource::of(&settings).unwrap();
        let wants = |value: Value| PlatformFilter::wants(&source.platform_filter, Some(&platform(value)));
        assert!(wants(json!({"os": "linux", "architecture": "amd64"})));
        assert!(wants(json!({"os": "linux", "architecture": "amd64", "variant": "v2", "os.features": ["x"]})));
        assert!(wants(json!({"os": "linux", "architecture": "arm", "variant": "v7"})));
        assert!(!wants(json!({"os": "linux", "architecture": "arm", "variant": "v6"})));
        assert!(!wants(json!({"os": "windows", "architecture": "amd64"})));
        assert!(!wants(json!({"os": "unknown", "architecture": "unknown"})));
        assert!(PlatformFilter::wants(&source.platform_filter, None));
        assert!(PlatformFilter::wants(&[], Some(&platform(json!({"os": "windows"})))));
    }
}
