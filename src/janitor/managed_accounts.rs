//! Makes and keeps accounts as a declarative file asks for them, and deletes those that it no longer names.
//!
//! The file is read anew by each run, so that a change of it comes into force soon. A file that is not there, cannot be
//! read, or names no account at all deletes nothing; nor is a protected account ever deleted. Accounts that no file asked
//! for are nobody's business here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use keppel_federation::vocabulary::AccountName;

use crate::metadata::MetadataError;
use crate::model::policy::{ManagedAccount, read_managed_accounts};
use crate::registry::{AccountError, Accounts, RegistryError};

use super::report::RunReport;

/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Which accounts are managed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ManagedAccountsOptions {
    /// The declarative file; `None`: no account is managed.
    pub file: Option<PathBuf>,
    /// Accounts that are never deleted because the file does not name them.
    pub protected: Vec<AccountName>,
}

/// Runs once.
///
/// # Errors
/// Our own trouble. What is wrong with the file, or in the way of an account, is told in the report.
pub async fn run(accounts: &Accounts, options: &ManagedAccountsOptions) -> Result<RunReport, RegistryError> {
    let mut report = RunReport::default();
    let Some(path) = options.file.clone() else { return Ok(report) };
    let read = tokio::task::spawn_blocking(move || read(&path)).await.map_err(|_| RegistryError::Interrupted)?;
    let managed = match read {
        Ok(managed) => managed,
        Err(reason) => {
            tracing::error!(reason, "the file of managed accounts cannot be used; nothing is changed");
            report.faults += 1;
            report.say(reason);
            return Ok(report);
        }
    };
    for account in &managed {
        report.looked_at += 1;
        enforce(accounts, account, &mut report).await?;
    }
    if !managed.is_empty() {
        delete_others(accounts, options, &managed, &mut report).await?;
    }
    Ok(report)
}

fn read(path: &Path) -> Result<Vec<ManagedAccount>, String> {
    let in_words = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let size_bytes = std::fs::metadata(path).map_err(|error| in_words(&error))?.len();
    if size_bytes > FILE_BYTES_MAX {
        return Err(in_words(&format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| in_words(&error))?;
    read_managed_accounts(&text).map_err(|error| in_words(&error))
}

async fn enforce(accounts: &Accounts, account: &ManagedAccount, report: &mut RunReport) -> Result<(), RegistryError> {
    let name = &account.name;
    let before = accounts.load(name).ok().map(|(entry, _)| entry.settings_revision);
    match accounts.put(name, &account.tenant, account.settings.clone(), None).await {
        Ok((entry, _)) => {
            if before != Some(entry.settings_revision) {
                tracing::info!(account = %name, "a managed account was made or changed as its file says");
                report.changed += 1;
                report.say(format!("{name}: {}", if before.is_none() { "made" } else { "changed" }));
            }
            let noted = name.clone();
            let known = accounts.registry().metadata().read(|reader| reader.list_managed_accounts()).await;
            if !known.map_err(RegistryError::Metadata)?.iter().any(|known| known == name.as_str()) {
                let write = accounts
                    .registry()
                    .metadata()
                    .write(move |transaction| transaction.put_managed_account(noted.as_str()));
                write.await.map_err(RegistryError::Metadata)?;
            }
        }
        Err(error) => {
            tracing::warn!(account = %name, %error, "a managed account is not as its file says");
            report.faults += 1;
            report.say(format!("{name}: {error}"));
        }
    }
    Ok(())
}

/// Begins to delete accounts that an earlier file named and this one does not.
async fn delete_others(
    accounts: &Accounts,
    options: &ManagedAccountsOptions,
    managed: &[ManagedAccount],
    report: &mut RunReport,
) -> Result<(), RegistryError> {
    let named: BTreeSet<&str> = managed.iter().map(|account| account.name.as_str()).collect();
    let metadata = accounts.registry().metadata();
    let known = metadata.read(|reader| reader.list_managed_accounts()).await.map_err(RegistryError::Metadata)?;
    for text in known.into_iter().filter(|name| !named.contains(name.as_str())) {
        let Ok(name) = AccountName::parse(&text) else { continue };
        if options.protected.contains(&name) {
            report.say(format!("{name}: is not named any more, but protected"));
            continue;
        }
        match accounts.delete(&name).await {
            Ok(()) | Err(AccountError::Unknown) => {
                tracing::warn!(account = %name, "the file of managed accounts no longer names an account: it is deleted");
                report.changed += 1;
                report.say(format!("{name}: is not named any more: deleted"));
                let forgotten = metadata.write(move |transaction| transaction.delete_managed_account(&text)).await;
                forgotten.map_err(|error: MetadataError| RegistryError::from(error))?;
            }
            Err(error) => {
                report.faults += 1;
                report.say(format!("{name}: is not named any more, but cannot be deleted: {error}"));
            }
        }
    }
    Ok(())
}
