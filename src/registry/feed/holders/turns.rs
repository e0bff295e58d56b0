//! Which accounts an answer is about: those that are lost before any lease is renewed, then each in its turn.

use keppel_federation::vocabulary::{AccountName, NodeId};

use super::super::messages::Place;
use super::Holders;

/// Lost accounts that one answer tells of.
const WITHDRAWN_PER_ANSWER: usize = 10_000;

/// What an answer is to be about.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::registry::feed) struct Turn {
    /// Accounts that are not this node's any more. They are followed no longer.
    pub(in crate::registry::feed) withdrawn: Vec<AccountName>,
    /// Whether there are no more of these: else the answer must renew no lease.
    pub(in crate::registry::feed) is_all: bool,
    /// Accounts in which something may be new, with the asker's places: first those that somebody waits for, then those that
    /// have not had room for the longest time.
    pub(in crate::registry::feed) places: Vec<(AccountName, Place)>,
}

impl Holders {
    /// What a session is to be told next; `None` when it has ended. Everything is given once.
    pub(in crate::registry::feed) fn take_turn(&mut self, node: NodeId, id: u64) -> Option<Turn> {
        let session = self.sessions.get_mut(&node).filter(|session| session.id == id)?;
        session.turn += 1;
        let mut withdrawn = Vec::new();
        while withdrawn.len() < WITHDRAWN_PER_ANSWER
            && let Some(account) = session.withdrawn.pop_first()
        {
            session.forget(&account);
            withdrawn.push(account);
        }
        let is_all = session.withdrawn.is_empty();
        let stirred = std::mem::take(&mut session.stirred);
        let mut places: Vec<((bool, u64), AccountName, Place)> = Vec::with_capacity(stirred.len());
        for account in stirred {
            if let Some(held) = session.held.get(&account) {
                let awaited = self.accounts.get(&account).map_or(0, |watched| watched.awaited);
                let is_awaited = matches!(held.place, Place::At(cursor) if cursor.sequence < awaited);
                places.push(((!is_awaited, held.served), account, held.place.clone()));
            }
        }
        for account in &withdrawn {
            self.leave(node, account);
        }
        places.sort_unstable_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let places = places.into_iter().map(|(_, account, place)| (account, place)).collect();
        Some(Turn { withdrawn, is_all, places })
    }

    /// There was room for these accounts in the answer.
    pub(in crate::registry::feed) fn serve<'a>(
        &mut self,
        node: NodeId,
        id: u64,
        accounts: impl IntoIterator<Item = &'a AccountName>,
    ) {
        let Some(session) = self.sessions.get_mut(&node).filter(|session| session.id == id) else { return };
        for account in accounts {
            if let Some(held) = session.held.get_mut(account) {
                held.served = session.turn;
            }
        }
    }

    /// Accounts for which there was no room are looked at again.
    pub(in crate::registry::feed) fn stir(
        &mut self,
        node: NodeId,
        id: u64,
        accounts: impl IntoIterator<Item = AccountName>,
    ) {
        if let Some(session) = self.sessions.get_mut(&node).filter(|session| session.id == id) {
            session.stirred.extend(accounts);
        }
    }

    /// Somebody waits until everything up to an event is with those who hold the account.
    pub(in crate::registry::feed) fn await_event(&mut self, account: &AccountName, sequence: u64) {
        if let Some(watched) = self.accounts.get_mut(account) {
            watched.awaited = watched.awaited.max(sequence);
        }
    }

    /// The accounts that somebody follows.
    pub(in crate::registry::feed) fn followed(&self) -> Vec<AccountName> {
        self.accounts.keys().cloned().collect()
    }

    /// An account is not this node's any more. Nobody is waited for on account of it, since nothing of it is acknowledged
    /// here; but those who follow it are told before their leases last any longer.
    pub(in crate::registry::feed) fn withdraw(&mut self, account: &AccountName) {
        let Some(watched) = self.accounts.get(account) else { return };
        for node in &watched.followers {
            if let Some(session) = self.sessions.get_mut(node)
                && let Some(held) = session.held.get_mut(account)
            {
                held.granted = false;
                session.withdrawn.insert(account.clone());
                session.wake.notify_one();
            }
        }
    }
}
