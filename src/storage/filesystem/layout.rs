//! Where things are: `<root>/<account>/uploads/<id>`, `<root>/<account>/blobs/<two hex digits>/<key>`, and beside a
//! blob of several groups `<key>.outboard`.

use std::path::{Path, PathBuf};

use keppel_federation::vocabulary::{AccountName, StorageKey, UploadId};

use crate::storage::ObjectKind;

const OUTBOARD_SUFFIX: &str = ".outboard";

pub(super) struct Layout {
    root: PathBuf,
}

impl Layout {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn space(&self, account: &AccountName) -> PathBuf {
        self.root.join(account.as_str())
    }

    pub(super) fn uploads(&self, account: &AccountName) -> PathBuf {
        self.space(account).join("uploads")
    }

    pub(super) fn upload(&self, account: &AccountName, id: &UploadId) -> PathBuf {
        self.uploads(account).join(id.as_str())
    }

    pub(super) fn blobs(&self, account: &AccountName) -> PathBuf {
        self.space(account).join("blobs")
    }

    /// The directory that a blob is in.
    pub(super) fn fan(&self, account: &AccountName, key: &StorageKey) -> PathBuf {
        self.blobs(account).join(&key.as_str()[..2])
    }

    pub(super) fn blob(&self, account: &AccountName, key: &StorageKey) -> PathBuf {
        self.fan(account, key).join(key.as_str())
    }

    pub(super) fn outboard(&self, account: &AccountName, key: &StorageKey) -> PathBuf {
        self.fan(account, key).join(format!("{key}{OUTBOARD_SUFFIX}"))
    }
}

/// What the name of a file in a directory of blobs means; `None` when it is not one of ours.
pub(super) fn blob_kind(name: &str) -> Option<ObjectKind> {
    match name.strip_suffix(OUTBOARD_SUFFIX) {
        Some(key) => StorageKey::parse(key).ok().map(ObjectKind::Outboard),
        None => StorageKey::parse(name).ok().map(ObjectKind::Blob),
    }
}

/// What the name of a file among the uploads means; `None` when it is not one of ours.
pub(super) fn upload_kind(name: &str) -> Option<ObjectKind> {
    UploadId::parse(name).ok().map(ObjectKind::Upload)
}
