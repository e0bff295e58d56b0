//! The tasks that have the federation decide something, in a process that dies before each of their writes and decisions.

use super::kills::{close, copied, open_mortal};
use super::mortal::Mortal;
use super::*;
use crate::janitor::{account_deletion, managed_accounts};
use crate::registry::{AccountBook, AccountDecision, AccountEntry, Accounts, PeerEntry, Undecided};

/// What the federation has decided; it outlives the process.
type Decided = Arc<Mutex<BTreeMap<AccountName, AccountEntry>>>;

/// The accounts as a process sees them that dies before a certain write or decision.
struct Book {
    decided: Decided,
    mortal: Arc<Mortal>,
}

impl Book {
    fn decide(
        &self,
        decision: impl FnOnce(&mut BTreeMap<AccountName, AccountEntry>) -> AccountDecision,
    ) -> Result<AccountDecision, Undecided> {
        match self.mortal.may_write() {
            true => Ok(decision(&mut self.decided.lock().unwrap())),
            false => Err(Undecided("dead".into())),
        }
    }
}

#[async_trait::async_trait]
impl AccountBook for Book {
    fn get(&self, name: &AccountName) -> Option<AccountEntry> {
        self.decided.lock().unwrap().get(name).cloned()
    }
    async fn catch_up(&self) -> Result<(), Undecided> {
        Ok(())
    }
    fn list(&self, after: Option<&AccountName>, limit: usize) -> Vec<AccountEntry> {
        let decided = self.decided.lock().unwrap();
        decided.values().filter(|entry| after.is_none_or(|after| entry.name > *after)).take(limit).cloned().collect()
    }
    fn peers(&self) -> Vec<PeerEntry> {
        Vec::new()
    }
    async fn claim(
        &self,
        name: &AccountName,
        tenant: &TenantId,
        settings: Vec<u8>,
    ) -> Result<AccountDecision, Undecided> {
        let entry = AccountEntry {
            name: name.clone(),
            tenant: tenant.clone(),
            settings: settings.into(),
            settings_revision: 1,
            region: "eu".into(),
            primary: "eu".into(),
            is_ours: true,
            region_here: "eu".into(),
            is_replica_here: false,
            deleting: false,
            replicas: Vec::new(),
        };
        self.decide(|decided| match decided.contains_key(name) {
            true => AccountDecision::Held,
            false => {
                decided.insert(name.clone(), entry);
                AccountDecision::Done
            }
        })
    }
    async fn put_settings(
        &self,
        name: &AccountName,
        settings: Vec<u8>,
        expected_revision: u64,
    ) -> Result<AccountDecision, Undecided> {
        self.decide(|decided| match decided.get_mut(name) {
            Some(entry) if entry.settings_revision == expected_revision => {
                entry.settings = settings.into();
                entry.settings_revision += 1;
                AccountDecision::Done
            }
            Some(_) => AccountDecision::Conflict,
            None => AccountDecision::NotFound,
        })
    }
    async fn set_deleting(&self, name: &AccountName) -> Result<AccountDecision, Undecided> {
        self.decide(|decided| match decided.get_mut(name) {
            Some(entry) => {
                entry.deleting = true;
                AccountDecision::Done
            }
            None => AccountDecision::NotFound,
        })
    }
    async fn forfeit(&self, name: &AccountName) -> Result<AccountDecision, Undecided> {
        self.decide(|decided| match decided.remove(name) {
            Some(_) => AccountDecision::Done,
            None => AccountDecision::NotFound,
        })
    }
    async fn issue_sublease(&self, _: &AccountName, _: &str, _: Duration) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody asks for this".into()))
    }
    async fn redeem_sublease(&self, _: &AccountName, _: &str) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody asks for this".into()))
    }
    async fn detach_replica(&self, _: &AccountName) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody asks for this".into()))
    }
    fn get_quota(&self, _: &TenantId) -> Option<(Bytes, u64)> {
        None
    }
    async fn put_quota(&self, _: &TenantId, _: Vec<u8>, _: u64) -> Result<AccountDecision, Undecided> {
        Err(Undecided("nobody asks for this".into()))
    }
}

/// A process over a folder and what was decided.
fn open(directory: tempfile::TempDir, decided: &Decided, dies_before: u64) -> (Bench, Accounts, Arc<Mortal>) {
    let (bench, mortal) = open_mortal(directory, 100 * DAY, dies_before);
    let book = Book { decided: decided.clone(), mortal: mortal.clone() };
    let accounts = Accounts::new(bench.registry.clone(), Arc::new(book));
    (bench, accounts, mortal)
}

fn copy_of(decided: &Decided) -> Decided {
    Arc::new(Mutex::new(decided.lock().unwrap().clone()))
}

/// What was decided, without revisions, and what is known of managed accounts, and of all that is here.
async fn state(bench: &Bench, decided: &Decided) -> Vec<String> {
    let known = bench.registry.metadata().read(|reader| {
        let managed = reader.list_managed_accounts()?;
        let here = reader.list_accounts(None, 100)?.into_iter().map(|account| account.to_string()).collect::<Vec<_>>();
        Ok::<_, crate::metadata::MetadataError>((managed, here))
    });
    let mut lines: Vec<_> = {
        let decided = decided.lock().unwrap();
        let text = |entry: &AccountEntry| String::from_utf8_lossy(&entry.settings).into_owned();
        decided.values().map(|entry| format!("{} {} {}", entry.name, entry.deleting, text(entry))).collect()
    };
    lines.push(format!("{:?}", known.await.map_err(RegistryError::Metadata).unwrap()));
    for space in bench.registry.storage().list_spaces().await.unwrap() {
        let stored = bench.registry.storage().list(&space).next_page(1000).await.unwrap();
        lines.push(format!("{space} stores {}", stored.len()));
    }
    lines
}

fn write_file(directory: &std::path::Path, accounts: &Value) -> ManagedAccountsOptions {
    let file = directory.join("accounts.json");
    std::fs::write(&file, json!({ "accounts": accounts }).to_string()).unwrap();
    ManagedAccountsOptions { file: Some(file), protected: Vec::new() }
}

/// The last word of the file: one account stays, one changes, one is new, and one that was there is gone.
fn last_word(directory: &std::path::Path) -> ManagedAccountsOptions {
    let tagged = json!([{"match_tag": "v.*", "block_delete": true}]);
    write_file(
        directory,
        &json!([
            {"name": "changes", "auth_tenant_id": "payer", "tag_policies": tagged},
            {"name": "is-new", "auth_tenant_id": "payer"},
            {"name": "stays", "auth_tenant_id": "payer"},
        ]),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dying_before_any_write_or_decision_about_managed_accounts_leaves_nothing_undone() {
    let (folder, decided) = (tempfile::tempdir().unwrap(), Decided::default());
    let (bench, accounts, _) = open(tempfile::tempdir().unwrap(), &decided, u64::MAX);
    let names = ["changes", "goes", "stays"].map(|name| json!({"name": name, "auth_tenant_id": "payer"}));
    let first = write_file(folder.path(), &json!(names));
    assert_eq!(managed_accounts::run(&accounts, &first).await.unwrap().faults, 0);
    drop(accounts);
    let template = close(bench).await;
    let options = last_word(folder.path());

    let (bench, accounts, mortal) = open(copied(template.path()), &copy_of(&decided), u64::MAX);
    assert_eq!(managed_accounts::run(&accounts, &options).await.unwrap().faults, 0);
    let writes = mortal.writes();
    assert!(writes >= 5, "{writes} writes");
    drop((bench, accounts));
    for write in 1..=writes {
        let decided = copy_of(&decided);
        let (bench, accounts, mortal) = open(copied(template.path()), &decided, write);
        let _ = managed_accounts::run(&accounts, &options).await;
        assert!(mortal.is_dead(), "it ended before write {write}");
        drop(accounts);
        let directory = close(bench).await;
        let (bench, accounts, _) = open(directory, &decided, u64::MAX);
        let report = managed_accounts::run(&accounts, &options).await.unwrap();
        assert_eq!(report.faults, 0, "after write {write}");
        let state = state(&bench, &decided).await;
        let deleting: Vec<_> = state.iter().filter(|line| line.contains(" true ")).collect();
        assert!(deleting.len() == 1 && deleting[0].starts_with("goes "), "dead before write {write}: {state:#?}");
        let known = r#"["changes", "is-new", "stays"]"#;
        assert!(state.iter().any(|line| line.contains(known)), "dead before write {write}: {state:#?}");
        assert!(state[0].starts_with("changes") && state[0].contains("block_delete"), "{state:#?}");
        let again = managed_accounts::run(&accounts, &options).await.unwrap();
        assert_eq!(again.changed, 0, "there was more to do after write {write}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dying_before_any_write_or_decision_of_a_deletion_leaves_no_account_behind() {
    let decided = Decided::default();
    let (bench, accounts, _) = open(tempfile::tempdir().unwrap(), &decided, u64::MAX);
    let (gone, payer) = (AccountName::parse("gone").unwrap(), TenantId::parse("payer").unwrap());
    accounts.put(&gone, &payer, AccountSettings::default(), None).await.unwrap();
    for (number, name) in ["gone/app", "gone/lib"].into_iter().enumerate() {
        bench.push(name, &[b"layer", &[number as u8; 30]], "a", None, &["v1"]).await;
    }
    accounts.delete(&gone).await.unwrap();
    drop(accounts);
    let template = close(bench).await;

    let end = async |bench: &Bench, accounts: &Accounts| {
        *bench.rules.deleting.lock().unwrap() = true;
        account_deletion::run(accounts).await
    };
    let (bench, accounts, mortal) = open(copied(template.path()), &copy_of(&decided), u64::MAX);
    end(&bench, &accounts).await.unwrap();
    let writes = mortal.writes();
    assert!(writes >= 8, "{writes} writes");
    drop((bench, accounts));
    for write in 1..=writes {
        let decided = copy_of(&decided);
        let (bench, accounts, mortal) = open(copied(template.path()), &decided, write);
        let _ = end(&bench, &accounts).await;
        assert!(mortal.is_dead(), "it ended before write {write}");
        drop(accounts);
        let directory = close(bench).await;
        let (bench, accounts, _) = open(directory, &decided, u64::MAX);
        end(&bench, &accounts).await.unwrap();
        bench.run(Task::StorageSweep).await;
        let state = state(&bench, &decided).await;
        assert!(decided.lock().unwrap().is_empty(), "dead before write {write}: {state:#?}");
        assert!(!state.iter().any(|line| line.contains("gone")), "dead before write {write}: {state:#?}");
    }
}
