//! Made-up images: the same seed gives the same bytes, so digests can be compared between runs and clients.

use std::io::Write;

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Which family of media types an image speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Oci,
    Docker,
}

/// Bytes with their media type: a manifest, a config or a layer.
#[derive(Clone, Debug)]
pub struct Content {
    pub media_type: String,
    pub bytes: Vec<u8>,
}

impl Content {
    pub fn new(media_type: &str, bytes: impl Into<Vec<u8>>) -> Content {
        Content { media_type: media_type.to_owned(), bytes: bytes.into() }
    }

    /// A document, written once; what is pushed are these bytes.
    pub fn json(media_type: &str, value: &Value) -> Content {
        Content::new(media_type, serde_json::to_vec(value).expect("a JSON value can be written"))
    }

    /// The document that the bytes are, to be changed and written anew.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("made-up documents are JSON")
    }

    pub fn digest(&self) -> String {
        sha256(&self.bytes)
    }

    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len() })
    }
}

/// An image: its manifest and the blobs that it names.
#[derive(Clone, Debug)]
pub struct Image {
    pub manifest: Content,
    pub config: Content,
    pub layers: Vec<Content>,
    /// The layers' tars before compression, as `docker load` wants them.
    pub tars: Vec<Vec<u8>>,
    pub architecture: String,
}

impl Image {
    /// A small image of two layers.
    pub fn small(seed: u64) -> Image {
        ImageBuilder::new(seed).build()
    }

    pub fn digest(&self) -> String {
        self.manifest.digest()
    }

    /// Config and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Content> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// Says what an image is to look like.
#[derive(Clone, Debug)]
pub struct ImageBuilder {
    seed: u64,
    kind: Kind,
    layers: usize,
    layer_bytes: usize,
    architecture: String,
    subject: Option<Value>,
}

impl ImageBuilder {
    pub fn new(seed: u64) -> ImageBuilder {
        let architecture = "amd64".to_owned();
        ImageBuilder { seed, kind: Kind::Oci, layers: 2, layer_bytes: 2000, architecture, subject: None }
    }

    pub fn kind(mut self, kind: Kind) -> ImageBuilder {
        self.kind = kind;
        self
    }

    pub fn layers(mut self, layers: usize) -> ImageBuilder {
        self.layers = layers;
        self
    }

    /// Bytes of the file in each layer; they do not compress.
    pub fn layer_bytes(mut self, layer_bytes: usize) -> ImageBuilder {
        self.layer_bytes = layer_bytes;
        self
    }

    pub fn architecture(mut self, architecture: &str) -> ImageBuilder {
        self.architecture = architecture.to_owned();
        self
    }

    pub fn subject(mut self, subject: &Content) -> ImageBuilder {
        self.subject = Some(subject.descriptor());
        self
    }

    pub fn build(self) -> Image {
        let (manifest_type, config_type, layer_type) = match self.kind {
            Kind::Oci => (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER),
            Kind::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER),
        };
        let tars: Vec<Vec<u8>> = (0..self.layers)
            .map(|index| {
                let content = random_bytes(self.seed.wrapping_mul(1000).wrapping_add(index as u64), self.layer_bytes);
                tar_of(&format!("seed-{}/layer-{index}", self.seed), &content)
            })
            .collect();
        let layers: Vec<Content> = tars.iter().map(|tar| Content::new(layer_type, gzip(tar))).collect();
        let history: Vec<Value> = (0..self.layers)
            .map(|index| json!({ "created": "2024-01-01T00:00:00Z", "created_by": format!("layer {index}") }))
            .collect();
        let config = Content::json(
            config_type,
            &json!({
                "architecture": self.architecture,
                "os": "linux",
                "created": "2024-01-01T00:00:00Z",
                "config": { "Labels": { "seed": self.seed.to_string() } },
                "rootfs": { "type": "layers", "diff_ids": tars.iter().map(|tar| sha256(tar)).collect::<Vec<_>>() },
                "history": history,
            }),
        );
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor(),
            "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
        });
        if let Some(subject) = self.subject {
            manifest["subject"] = subject;
        }
        let manifest = Content::json(manifest_type, &manifest);
        Image { manifest, config, layers, tars, architecture: self.architecture }
    }
}

/// A multi-architecture image.
#[derive(Clone, Debug)]
pub struct Index {
    pub manifest: Content,
    pub images: Vec<Image>,
}

impl Index {
    /// An index of the given images; the kind of the index may differ from theirs.
    pub fn of(kind: Kind, images: Vec<Image>) -> Index {
        let media_type = if kind == Kind::Oci { OCI_INDEX } else { DOCKER_LIST };
        let manifests: Vec<Value> = images
            .iter()
            .map(|image| {
                let mut descriptor = image.manifest.descriptor();
                descriptor["platform"] = json!({ "os": "linux", "architecture": image.architecture });
                descriptor
            })
            .collect();
        let value = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        Index { manifest: Content::json(media_type, &value), images }
    }

    /// amd64 and arm64.
    pub fn of_two(kind: Kind, seed: u64) -> Index {
        let image = |seed, architecture| ImageBuilder::new(seed).kind(kind).architecture(architecture).build();
        Index::of(kind, vec![image(seed, "amd64"), image(seed + 1, "arm64")])
    }

    pub fn digest(&self) -> String {
        self.manifest.digest()
    }
}

/// An artifact: an image manifest with an artifact type, an empty config, one blob, and perhaps a subject.
#[derive(Clone, Debug)]
pub struct Artifact {
    pub manifest: Content,
    pub blobs: Vec<Content>,
}

impl Artifact {
    pub fn new(artifact_type: &str, payload: &[u8], subject: Option<&Content>) -> Artifact {
        let config = Content::new(OCI_EMPTY, *b"{}");
        let payload = Content::new("application/vnd.example.payload", payload);
        let mut value = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": config.descriptor(),
            "layers": [payload.descriptor()],
            "annotations": { "org.example.payload": payload.digest() },
        });
        if let Some(subject) = subject {
            value["subject"] = subject.descriptor();
        }
        Artifact { manifest: Content::json(OCI_MANIFEST, &value), blobs: vec![config, payload] }
    }
}

/// `sha256:<hex>` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// `sha512:<hex>` of some bytes.
pub fn sha512(bytes: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(bytes)))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that do not compress, the same for the same seed (SplitMix64).
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = seed;
    while bytes.len() < length {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(word ^ (word >> 31)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A tar with one file, without times or owners.
pub fn tar_of(path: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, content).expect("a tar can be written to memory");
    builder.into_inner().expect("a tar can be finished in memory")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}
