use std::time::Duration;

use async_trait::async_trait;
use keppel_federation::Federation;
use keppel_federation::claims::{DocumentKind, Opaque, Outcome};
use keppel_federation::vocabulary::{AccountName, NodeId};

use crate::auth::{AccountRecord, Record, RecordError, RecordKind, RecordOutcome, RecordStore, Records};

/// How long a change that was decided may take to show here.
const SHOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Users, robots, keys and accounts as the federation agrees on them: read from this node's memory, changed for all.
#[derive(Clone)]
pub struct FederationRecords {
    federation: Federation,
}

impl FederationRecords {
    /// The records of this federation.
    pub fn new(federation: Federation) -> Self {
        Self { federation }
    }

    /// Whoever changed something sees it here when they are told so.
    async fn outcome(
        &self,
        decided: Result<keppel_federation::claims::Decision, keppel_federation::claims::ClaimsError>,
    ) -> Result<RecordOutcome, RecordError> {
        let decision = decided.map_err(|error| RecordError(error.to_string()))?;
        let view = self.federation.state();
        let _ = tokio::time::timeout(SHOWN_TIMEOUT, view.wait_applied(decision.applied)).await;
        match decision.outcome {
            Outcome::Stored { .. } | Outcome::Done => Ok(RecordOutcome::Done),
            Outcome::Conflict { .. } | Outcome::NotFound => Ok(RecordOutcome::Conflict),
            Outcome::Refused(refusal) => Err(RecordError(refusal.to_string())),
            Outcome::NotMember { .. } => Err(RecordError("the node is no longer a member of the federation".into())),
            other => Err(RecordError(format!("the federation answered {other:?}"))),
        }
    }
}

fn kind_of(kind: RecordKind) -> DocumentKind {
    match kind {
        RecordKind::Tenant => DocumentKind::Tenant,
        RecordKind::User => DocumentKind::User,
        RecordKind::IssuerKey => DocumentKind::IssuerKey,
    }
}

impl Records for FederationRecords {
    fn get(&self, kind: RecordKind, id: &str) -> Option<Record> {
        let document = self.federation.state().document(kind_of(kind), id)?;
        Some(Record { body: document.body.0.clone(), revision: document.revision })
    }

    fn get_account(&self, name: &AccountName) -> Option<AccountRecord> {
        let account = self.federation.state().account(name)?;
        let here = self.federation.region();
        Some(AccountRecord {
            replica_region: (account.region != *here).then(|| here.clone()),
            tenant: account.tenant.clone(),
            settings: account.settings.0.clone(),
            settings_revision: account.settings_revision,
        })
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.federation.state().member(node).is_some()
    }
}

#[async_trait]
impl RecordStore for FederationRecords {
    async fn put(
        &self,
        kind: RecordKind,
        id: &str,
        body: Vec<u8>,
        expected_revision: Option<u64>,
    ) -> Result<RecordOutcome, RecordError> {
        let body = Opaque::from(body);
        let decided = self.federation.put_document(kind_of(kind), id.to_owned(), body, expected_revision).await;
        self.outcome(decided).await
    }

    async fn remove(&self, kind: RecordKind, id: &str, expected_revision: u64) -> Result<RecordOutcome, RecordError> {
        let expected = Some(expected_revision);
        let decided = self.federation.remove_document(kind_of(kind), id.to_owned(), expected).await;
        self.outcome(decided).await
    }

    fn list(&self, kind: RecordKind, after: &str, limit: usize) -> Vec<(String, Record)> {
        let documents = self.federation.state().documents_after(kind_of(kind), after, limit);
        let record = |document: &keppel_federation::claims::Document| Record {
            body: document.body.0.clone(),
            revision: document.revision,
        };
        documents.iter().map(|document| (document.id.clone(), record(document))).collect()
    }
}
