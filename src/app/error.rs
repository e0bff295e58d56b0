//! Why a node could not start or did not end well.

use std::io;
use std::path::PathBuf;

use keppel_federation::vocabulary::AccountName;

use super::DataFolderError;
use crate::api::serve::ServeError;
use crate::auth::{HtpasswdError, KeyError, OidcError};
use crate::metadata::MetadataError;
use crate::registry::RegistryError;
use crate::storage::StorageError;

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be used.
    #[error(transparent)]
    DataFolder(#[from] DataFolderError),
    /// The database cannot be opened.
    #[error("cannot open the metadata database {}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: MetadataError,
    },
    /// There is no database, but there are blobs.
    #[error("there is no metadata database {}, but the storage holds blobs of account {account}", path.display())]
    MetadataLost {
        /// Where the database should be.
        path: PathBuf,
        /// An account that has blobs.
        account: AccountName,
    },
    /// The storage cannot be opened.
    #[error("cannot open the storage")]
    Storage(#[from] StorageError),
    /// The registry cannot take up its work.
    #[error("cannot prepare the registry")]
    Registry(#[from] RegistryError),
    /// The password file cannot be used.
    #[error("the password file cannot be used")]
    Htpasswd(#[from] HtpasswdError),
    /// The certificates to trust for issuers of tokens cannot be read.
    #[error("the certificates of auth.oidc_ca_file cannot be read")]
    Authorities(#[source] io::Error),
    /// Issuers of tokens cannot be asked.
    #[error("the oidc driver cannot be made")]
    Oidc(#[from] OidcError),
    /// Tokens cannot be signed.
    #[error("there is no key to sign tokens with")]
    Keys(#[from] KeyError),
    /// The address cannot be listened on, or the certificate not be used.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The certificates to trust for registries outside cannot be read.
    #[error("the certificates of external.ca_file cannot be read")]
    ExternalAuthorities(#[source] io::Error),
    /// Registries outside cannot be asked.
    #[error("the client for registries outside cannot be made")]
    External(#[source] reqwest::Error),
    /// The federation cannot be taken part in.
    #[error(transparent)]
    Federation(#[from] keppel_federation::StartError),
    /// No invitation can be made for another node of this process.
    #[error("cannot invite a node of this process")]
    Invite(#[from] keppel_federation::InviteError),
    /// Another node of this process is not let in.
    #[error("a node of this process cannot join")]
    Join(#[from] keppel_federation::JoinError),
    /// The operator's socket cannot be made.
    #[error("cannot make the operator's socket in the data folder")]
    Admin(#[source] io::Error),
    /// A fault of the program.
    #[error("opening the data folder failed by a fault of the program")]
    Panicked,
}

impl StartError {
    /// Whether another program listens on the address.
    pub fn is_address_in_use(&self) -> bool {
        matches!(self, Self::Serve(ServeError::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// Why a command that runs a node failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The node did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The system gave no threads or signals.
    #[error("the system refuses threads or signals")]
    Runtime(#[source] io::Error),
    /// A second signal came while requests were being finished.
    #[error("cut short by a second {signal}; requests that ran were broken off")]
    CutShort {
        /// Its name.
        signal: &'static str,
    },
}
