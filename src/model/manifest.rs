use std::collections::BTreeMap;

use keppel_federation::vocabulary::Digest;
use serde::Deserialize;
use serde_json::Value;

use super::media_type::is_schema_1;
use super::{Descriptor, ManifestKind};

/// What the registry must know of a manifest: what it is and what it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestDescription {
    /// Its kind, and so its media type.
    pub kind: ManifestKind,
    /// The blobs that must be in the repository: configuration and layers, each digest once.
    pub blobs: Vec<Descriptor>,
    /// Layers that may be elsewhere.
    pub foreign_blobs: Vec<Descriptor>,
    /// The entries of an index, each digest once.
    pub children: Vec<Descriptor>,
    /// The manifest that this one is about, which may come later or never.
    pub subject: Option<Digest>,
    /// Its artifact type as the referrers list shows it: the configuration's media type stands in where it has none.
    pub artifact_type: Option<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// The configuration of an image.
    pub config: Option<Descriptor>,
    /// The layers as written, the first `LAYERS_SEEN_MAX` of them: for rules that look at them.
    pub layers: Vec<Descriptor>,
}

/// How many layers a rule can tell from none at all: one more than it may look at.
const LAYERS_SEEN_MAX: usize = super::policy::LAYERS_MAX + 1;

/// Why bytes are not a manifest that can be served; the text is for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ManifestError(String);

/// The most things that a manifest may refer to.
pub const REFERENCES_MAX: usize = 10_000;

/// The fields of a manifest that the registry acts on.
struct Document {
    schema_version: Option<i64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    annotations: Option<BTreeMap<String, String>>,
}

impl Document {
    /// Reads all of the JSON, so that nothing is stored that a stricter reader would refuse.
    fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError(format!("the manifest is not valid JSON: {error}")))?;
        if !value.is_object() {
            return refuse("the manifest is not a JSON object");
        }
        Ok(Self {
            schema_version: field(&value, "schemaVersion")?,
            media_type: field(&value, "mediaType")?,
            artifact_type: field(&value, "artifactType")?,
            config: descriptor(&value, "config")?,
            layers: descriptors(&value, "layers")?,
            manifests: descriptors(&value, "manifests")?,
            subject: descriptor(&value, "subject")?,
            annotations: field(&value, "annotations")?,
        })
    }
}

/// A field that may be absent or `null`.
fn field<'de, T: Deserialize<'de>>(value: &'de Value, name: &str) -> Result<Option<T>, ManifestError> {
    match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|error| ManifestError(format!("{name}: {error}"))),
    }
}

fn descriptor(value: &Value, name: &str) -> Result<Option<Descriptor>, ManifestError> {
    match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => read_descriptor(value, || name.to_owned()).map(Some),
    }
}

fn descriptors(value: &Value, name: &str) -> Result<Option<Vec<Descriptor>>, ManifestError> {
    let items = match value.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(_) => return refuse(format!("{name} is not an array")),
    };
    if items.len() > REFERENCES_MAX {
        return refuse(format!("{name} has {} entries: {REFERENCES_MAX} are allowed", items.len()));
    }
    let read = |(at, item)| read_descriptor(item, || format!("{name}[{at}]"));
    items.iter().enumerate().map(read).collect::<Result<_, _>>().map(Some)
}

fn read_descriptor(value: &Value, place: impl Fn() -> String) -> Result<Descriptor, ManifestError> {
    // Derived readers would take an array of the fields' values for an object.
    if !value.is_object() {
        return refuse(format!("{} is not an object", place()));
    }
    Descriptor::deserialize(value).map_err(|error| ManifestError(format!("{}: {error}", place())))
}

impl ManifestDescription {
    /// Reads a manifest. `content_type` is the media type as the client announced it, parameters and all; without one
    /// the document's own decides.
    ///
    /// # Errors
    /// [`ManifestError`] with a reason that names the field at fault.
    pub fn parse(content_type: Option<&str>, bytes: &[u8]) -> Result<Self, ManifestError> {
        let announced = content_type.map(essence).filter(|announced| !announced.is_empty());
        if announced.as_deref().is_some_and(is_schema_1) {
            return refuse(SCHEMA_1);
        }
        let document = Document::parse(bytes)?;
        match document.schema_version {
            Some(2) => {}
            Some(1) => return refuse(SCHEMA_1),
            Some(other) => return refuse(format!("schemaVersion is {other}: it must be 2")),
            None => return refuse("schemaVersion is missing: it must be 2"),
        }
        let kind = Self::kind_of(announced, &document)?;
        match kind.is_index() {
            true => Self::from_index(kind, document),
            false => Self::from_image(kind, document),
        }
    }

    /// How many things it refers to, its subject aside.
    pub fn references(&self) -> usize {
        self.blobs.len() + self.foreign_blobs.len() + self.children.len()
    }

    /// The digests of all that must be in the repository.
    pub fn needed_digests(&self) -> Vec<Digest> {
        self.blobs.iter().chain(&self.children).map(|descriptor| descriptor.digest).collect()
    }

    fn kind_of(announced: Option<String>, document: &Document) -> Result<ManifestKind, ManifestError> {
        let own = document.media_type.as_deref().filter(|own| !own.is_empty());
        if let (Some(announced), Some(own)) = (&announced, own)
            && announced != own
        {
            return refuse(format!("mediaType is {own:?}, but the Content-Type is {announced:?}: they must be equal"));
        }
        let Some(media_type) = announced.as_deref().or(own) else {
            return match (&document.manifests, &document.config) {
                (Some(_), None) => Ok(ManifestKind::OciIndex),
                (None, Some(_)) => Ok(ManifestKind::OciManifest),
                _ => refuse("neither a Content-Type nor a mediaType says what this manifest is"),
            };
        };
        match ManifestKind::from_media_type(media_type) {
            Some(kind) => Ok(kind),
            None => {
                let known = ManifestKind::ALL.map(ManifestKind::media_type).join(", ");
                refuse(format!("{media_type:?} is not a manifest type that is served here: use one of {known}"))
            }
        }
    }

    fn from_image(kind: ManifestKind, document: Document) -> Result<Self, ManifestError> {
        if document.manifests.is_some() {
            return refuse(format!("a {} must not have manifests", kind.media_type()));
        }
        let Some(config) = document.config else { return refuse("config is missing") };
        let artifact_type = named(document.artifact_type).or_else(|| named(Some(config.media_type.clone())));
        let layers = document.layers.unwrap_or_default();
        let seen = layers.iter().take(LAYERS_SEEN_MAX).cloned().collect();
        let (foreign, mut blobs): (Vec<_>, Vec<_>) = layers.into_iter().partition(Descriptor::is_foreign);
        blobs.insert(0, config.clone());
        Ok(Self {
            kind,
            blobs: each_once(blobs),
            foreign_blobs: each_once(foreign),
            children: Vec::new(),
            subject: document.subject.map(|subject| subject.digest),
            artifact_type,
            annotations: document.annotations.unwrap_or_default(),
            config: Some(config),
            layers: seen,
        })
    }

    fn from_index(kind: ManifestKind, document: Document) -> Result<Self, ManifestError> {
        if document.config.is_some() || document.layers.is_some() {
            return refuse(format!("a {} must not have config or layers", kind.media_type()));
        }
        let Some(children) = document.manifests else { return refuse("manifests is missing") };
        Ok(Self {
            kind,
            blobs: Vec::new(),
            foreign_blobs: Vec::new(),
            children: each_once(children),
            subject: document.subject.map(|subject| subject.digest),
            artifact_type: named(document.artifact_type),
            annotations: document.annotations.unwrap_or_default(),
            config: None,
            layers: Vec::new(),
        })
    }
}

const SCHEMA_1: &str = "Docker's manifest schema 1 is not served here: push with a client of 2017 or later, which \
                        writes schema 2 or OCI manifests";

fn refuse<T>(reason: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError(reason.into()))
}

/// A media type without its parameters, in lower case.
fn essence(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn named(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn each_once(descriptors: Vec<Descriptor>) -> Vec<Descriptor> {
    let mut seen = std::collections::HashSet::new();
    descriptors.into_iter().filter(|descriptor| seen.insert(descriptor.digest)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const OCI: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn descriptor(media_type: &str, digit: char) -> serde_json::Value {
        let digest = format!("sha256:{}", digit.to_string().repeat(64));
        json!({"mediaType": media_type, "digest": digest, "size": 7})
    }

    fn parse(content_type: Option<&str>, document: &serde_json::Value) -> Result<ManifestDescription, String> {
        ManifestDescription::parse(content_type, document.to_string().as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn image_manifest_names_its_blobs_once_and_leaves_foreign_layers_apart() {
        let layer = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", '2');
        let foreign = descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", '3');
        let mut elsewhere = descriptor("application/vnd.oci.image.layer.v1.tar", '4');
        elsewhere["urls"] = json!(["https://example.org/layer"]);
        let document = json!({
            "schemaVersion": 2, "mediaType": OCI, "config": descriptor("application/vnd.oci.image.config.v1+json", '1'),
            "layers": [layer, layer, foreign, elsewhere], "subject": descriptor(OCI, '5'), "unknown": {"field": [1]},
        });
        let parsed = parse(Some(&format!("{OCI}; charset=utf-8")), &document).unwrap();
        assert_eq!(parsed.kind, ManifestKind::OciManifest);
        assert_eq!((parsed.blobs.len(), parsed.foreign_blobs.len()), (2, 2));
        assert_eq!(parsed.artifact_type.as_deref(), Some("application/vnd.oci.image.config.v1+json"));
        assert!(parsed.subject.unwrap().to_string().ends_with("555"));
    }

    #[test]
    fn index_has_no_stand_in_for_its_artifact_type() {
        let document = json!({"schemaVersion": 2, "manifests": [descriptor(OCI, '1'), descriptor(INDEX, '2')]});
        let parsed = parse(Some(INDEX), &document).unwrap();
        assert_eq!((parsed.children.len(), parsed.artifact_type), (2, None));
        assert_eq!(parse(None, &document).unwrap().kind, ManifestKind::OciIndex);
    }

    #[test]
    fn refusals_name_the_field_at_fault() {
        let config = descriptor("application/vnd.oci.image.config.v1+json", '1');
        for (content_type, document, reason) in [
            (Some(OCI), json!({"schemaVersion": 2}), "config is missing"),
            (Some(INDEX), json!({"schemaVersion": 2}), "manifests is missing"),
            (Some(OCI), json!({"config": config}), "schemaVersion is missing"),
            (Some(OCI), json!({"schemaVersion": 1}), "schema 1 is not served"),
            (Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), json!({}), "schema 1 is not served"),
            (Some(OCI), json!({"schemaVersion": 2, "mediaType": INDEX}), "they must be equal"),
            (Some("text/plain"), json!({"schemaVersion": 2}), "not a manifest type"),
            (None, json!({"schemaVersion": 2}), "neither a Content-Type nor a mediaType"),
            (Some(OCI), json!({"schemaVersion": 2, "config": {"digest": "md5:00", "size": 1}}), "md5"),
            (Some(OCI), json!({"schemaVersion": 2, "config": {"size": 1}}), "digest"),
            (Some(OCI), json!([2]), "not a JSON object"),
            (Some(OCI), json!({"schemaVersion": 2, "config": ["c", "sha256:00", 1]}), "config is not an object"),
            (Some(OCI), json!({"schemaVersion": 2, "config": config, "layers": {}}), "layers is not an array"),
            (Some(OCI), json!({"schemaVersion": 2, "config": config, "layers": [1]}), "layers[0] is not an object"),
            (Some(OCI), json!({"schemaVersion": 2, "annotations": {"a": 1}}), "annotations: "),
            (Some(INDEX), json!({"schemaVersion": 2, "manifests": vec![&config; 10_001]}), "10000 are allowed"),
        ] {
            let refusal = parse(content_type, &document).unwrap_err();
            assert!(refusal.contains(reason), "{document}: {refusal}");
        }
    }

    #[test]
    fn what_a_stricter_reader_would_refuse_is_refused() {
        let config = descriptor("application/vnd.oci.image.config.v1+json", '1');
        let with = |unknown: &[u8]| {
            let mut bytes = format!("{{\"schemaVersion\":2,\"config\":{config},\"x\":").into_bytes();
            bytes.extend_from_slice(unknown);
            bytes.push(b'}');
            ManifestDescription::parse(Some(OCI), &bytes)
        };
        with(b"[{\"y\": 1.5}]").unwrap();
        let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        for unknown in [&b"\"\xff\xfe\""[..], b"1e999999", &deep, b"nonsense"] {
            assert!(with(unknown).unwrap_err().to_string().contains("not valid JSON"));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_parsing_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = ManifestDescription::parse(None, &bytes);
            let _ = ManifestDescription::parse(Some(OCI), &bytes);
        }
    }
}
