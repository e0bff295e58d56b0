use std::time::Duration;

use crate::metadata::Care;

/// Every task that an operator can ask for, in the order in which garbage moves through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// Retention policies.
    ImageGc,
    /// Manifests: whether they are what they should be.
    ManifestValidation,
    /// Mounts that no manifest refers to.
    MountSweep,
    /// Blobs that no repository has.
    BlobSweep,
    /// Stored bytes that no row names.
    StorageSweep,
    /// Blobs: whether their bytes are still right.
    BlobValidation,
    /// Upload sessions that nobody touched for long.
    AbandonedUploads,
    /// Copies of other regions' accounts: whether they are what their primaries have.
    ManifestSync,
    /// Accounts that are being deleted.
    AccountDeletion,
    /// Accounts that a declarative file asks for.
    ManagedAccounts,
}

impl Task {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::ImageGc,
        Self::ManifestValidation,
        Self::MountSweep,
        Self::BlobSweep,
        Self::StorageSweep,
        Self::BlobValidation,
        Self::AbandonedUploads,
        Self::ManifestSync,
        Self::AccountDeletion,
        Self::ManagedAccounts,
    ];

    /// Its name, as commands and metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ImageGc => "image-gc",
            Self::ManifestValidation => "manifest-validation",
            Self::MountSweep => "mount-sweep",
            Self::BlobSweep => "blob-sweep",
            Self::StorageSweep => "storage-sweep",
            Self::BlobValidation => "blob-validation",
            Self::AbandonedUploads => "abandoned-uploads",
            Self::ManifestSync => "manifest-sync",
            Self::AccountDeletion => "account-deletion",
            Self::ManagedAccounts => "managed-accounts",
        }
    }

    /// The task with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|task| task.as_str() == name)
    }

    /// What it looks at one by one, each on a rhythm of its own.
    pub fn care(self) -> Option<Care> {
        match self {
            Self::ImageGc => Some(Care::ImageGc),
            Self::ManifestValidation => Some(Care::ManifestValidation),
            Self::MountSweep => Some(Care::MountSweep),
            Self::BlobSweep => Some(Care::BlobSweep),
            Self::BlobValidation => Some(Care::BlobValidation),
            Self::StorageSweep
            | Self::AbandonedUploads
            | Self::ManifestSync
            | Self::AccountDeletion
            | Self::ManagedAccounts => None,
        }
    }

    /// How many of them are taken at a time.
    pub(super) fn batch(self) -> usize {
        match self {
            Self::ManifestValidation => 100,
            // One at a time, but taken and noted together.
            Self::ImageGc | Self::MountSweep | Self::BlobSweep => 20,
            _ => 1,
        }
    }

    /// How long whoever takes one may need for it before another may take it.
    pub(super) fn lease(self) -> Duration {
        match self {
            // The largest blob there may be takes hours at the pace of the budget.
            Self::BlobValidation => Duration::from_secs(24 * 3600),
            Self::ImageGc | Self::MountSweep | Self::BlobSweep => Duration::from_secs(3600),
            _ => Duration::from_secs(600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_found_by_their_names() {
        for task in Task::ALL {
            assert_eq!(Task::parse(task.as_str()), Some(task));
        }
        assert_eq!(Task::parse("image_gc"), None);
    }
}
