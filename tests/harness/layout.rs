//! Images on disk, in the forms that clients read: OCI layouts and archives for `docker load`.

use std::{
    fs::{self, File},
    io::{BufWriter, Read, Write},
    path::Path,
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::images::{Content, Image, Index, OCI_CONFIG, OCI_MANIFEST, hex, random_bytes, tar_of};

/// An OCI image layout being filled.
pub struct Layout<'a> {
    directory: &'a Path,
    manifests: Vec<Value>,
}

impl<'a> Layout<'a> {
    /// Begins a layout in a directory, which is made.
    pub fn create(directory: &'a Path) -> Layout<'a> {
        fs::create_dir_all(directory.join("blobs/sha256")).expect("the layout's folders can be made");
        fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file can be written");
        Layout { directory, manifests: Vec::new() }
    }

    pub fn add_image(&mut self, tag: &str, image: &Image) {
        self.write_image(image);
        self.add_reference(tag, &image.manifest);
    }

    pub fn add_index(&mut self, tag: &str, index: &Index) {
        index.images.iter().for_each(|image| self.write_image(image));
        self.write(&index.manifest);
        self.add_reference(tag, &index.manifest);
    }

    /// Adds an image with one uncompressed layer of about `mebibytes`, written piece by piece; returns its manifest.
    pub fn add_large_image(&mut self, tag: &str, mebibytes: usize) -> Content {
        let part = self.directory.join("layer.part");
        let mut file = BufWriter::new(File::create(&part).expect("a file can be made"));
        let (mut hasher, mut size) = (Sha256::new(), 0);
        let mut emit = |bytes: &[u8]| {
            hasher.update(bytes);
            size += bytes.len();
            file.write_all(bytes).expect("the layer fits on the disk");
        };
        for index in 0..mebibytes {
            let mut tar = tar_of(&format!("part-{index}"), &random_bytes(index as u64, 1 << 20));
            tar.truncate(tar.len() - 1024); // the two closing blocks come once, at the end
            emit(&tar);
        }
        emit(&[0; 1024]);
        file.flush().expect("the layer fits on the disk");
        let layer = hex(&hasher.finalize());
        fs::rename(&part, self.directory.join("blobs/sha256").join(&layer)).expect("a file can be renamed");
        let diff_id = format!("sha256:{layer}");
        let config = Content::json(
            OCI_CONFIG,
            &json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": [diff_id] } }),
        );
        let layer = json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": size });
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config.descriptor(), "layers": [layer] });
        let manifest = Content::json(OCI_MANIFEST, &manifest);
        self.write(&config);
        self.write(&manifest);
        self.add_reference(tag, &manifest);
        manifest
    }

    /// Writes the layout's own index.
    pub fn finish(self) {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.directory.join("index.json"), index.to_string()).expect("a file can be written");
    }

    fn add_reference(&mut self, tag: &str, manifest: &Content) {
        let mut descriptor = manifest.descriptor();
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.manifests.push(descriptor);
    }

    fn write_image(&self, image: &Image) {
        image.blobs().for_each(|blob| self.write(blob));
        self.write(&image.manifest);
    }

    fn write(&self, content: &Content) {
        let digest = content.digest();
        let (algorithm, name) = digest.split_once(':').expect("a digest has an algorithm");
        fs::write(self.directory.join("blobs").join(algorithm).join(name), &content.bytes)
            .expect("a file can be written");
    }
}

/// Reads the manifest under a tag of a layout that a client wrote, checking the digest of every blob in the folder.
pub fn read_layout(directory: &Path, tag: &str) -> Content {
    let read = |path: &Path| fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let folder = directory.join("blobs/sha256");
    for entry in fs::read_dir(&folder).expect("the layout has blobs") {
        let path = entry.expect("a folder entry is readable").path();
        assert_eq!(Some(hex(&hash_file(&path)).as_str()), path.file_name().and_then(|name| name.to_str()));
    }
    let index: Value = serde_json::from_slice(&read(&directory.join("index.json"))).expect("index.json is JSON");
    let manifests = index["manifests"].as_array().expect("an index has manifests");
    let found = manifests
        .iter()
        .find(|descriptor| descriptor["annotations"]["org.opencontainers.image.ref.name"] == tag)
        .unwrap_or_else(|| panic!("no {tag} in {index}"));
    let digest = found["digest"].as_str().expect("a descriptor has a digest").trim_start_matches("sha256:");
    Content::new(found["mediaType"].as_str().expect("a descriptor has a media type"), read(&folder.join(digest)))
}

fn hash_file(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).expect("a blob can be opened");
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).expect("a blob can be read") {
            0 => return hasher.finalize().to_vec(),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// Writes what `docker load` reads: the config, the uncompressed layers, and the list that names them.
pub fn write_docker_archive(path: &Path, reference: &str, image: &Image) {
    let mut archive = tar::Builder::new(File::create(path).expect("a file can be made"));
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).expect("the archive can be written");
    };
    let config = format!("{}.json", image.config.digest().trim_start_matches("sha256:"));
    let layers: Vec<String> = (0..image.tars.len()).map(|index| format!("layer-{index}.tar")).collect();
    add(&config, &image.config.bytes);
    for (name, tar) in layers.iter().zip(&image.tars) {
        add(name, tar);
    }
    let list = json!([{ "Config": config, "RepoTags": [reference], "Layers": layers }]);
    add("manifest.json", list.to_string().as_bytes());
    archive.finish().expect("the archive can be written");
}
