//! The rules of tenants, users, quotas, issuer keys and settings: documents with a revision.

use std::sync::Arc;

use super::super::model::{Document, DocumentKind, Opaque};
use super::super::outcome::Outcome;
use super::row::{Row, RowKind, document_key};
use super::{Change, Effects, State};
use crate::vocabulary::IssuerKeyId;

impl State {
    pub(super) fn put_document(
        &mut self,
        kind: DocumentKind,
        id: String,
        body: Opaque,
        expected_revision: Option<u64>,
        effects: &mut Effects,
    ) -> Outcome {
        let current = self.document(kind, &id).map_or(0, |document| document.revision);
        if expected_revision.is_some_and(|expected| expected != current) {
            return Outcome::Conflict { revision: current };
        }
        // A node that was removed publishes nothing more. Ids that name no node are of the first version.
        if kind == DocumentKind::IssuerKey
            && let Ok(key) = IssuerKeyId::parse(&id)
            && !self.members.contains_key(&key.node())
        {
            return Outcome::NotMember { node: key.node() };
        }
        let revision = self.sequence;
        let document = Document { kind, id: id.clone(), body, revision };
        effects.rows.push(Row::document(&document));
        effects.changes.push(Change::Document(kind, id.clone()));
        self.documents.insert((kind, id), Arc::new(document));
        Outcome::Stored { revision }
    }

    pub(super) fn remove_document(
        &mut self,
        kind: DocumentKind,
        id: String,
        expected_revision: Option<u64>,
        effects: &mut Effects,
    ) -> Outcome {
        let Some(current) = self.document(kind, &id).map(|document| document.revision) else {
            return Outcome::NotFound;
        };
        if expected_revision.is_some_and(|expected| expected != current) {
            return Outcome::Conflict { revision: current };
        }
        effects.rows.push(Row::delete(RowKind::Document, document_key(kind, &id)));
        effects.changes.push(Change::Document(kind, id.clone()));
        self.documents.remove(&(kind, id));
        Outcome::Done
    }
}
