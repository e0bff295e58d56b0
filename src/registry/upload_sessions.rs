//! Upload sessions that are held open: their file and running hashes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keppel_federation::vocabulary::UploadId;

use crate::metadata::UploadRow;
use crate::storage::Upload;

/// One session. Whoever holds the lock on its state is the one request that writes to it.
pub(super) struct Session {
    pub(super) row: UploadRow,
    pub(super) state: Arc<tokio::sync::Mutex<State>>,
    touched_at: AtomicI64,
    /// How many bytes are sure to outlive a crash; told while another request holds the state.
    durable_bytes: AtomicU64,
}

/// What is there of an upload.
pub(super) enum State {
    /// Nothing was sent yet.
    Empty,
    /// Bytes were sent. Boxed, since it is much larger than the rest.
    Open(Box<Upload>),
    /// It was finished or given up, or is open elsewhere no more.
    Ended,
}

impl State {
    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Self::Empty | Self::Ended => 0,
            Self::Open(upload) => upload.size_bytes(),
        }
    }
}

impl Session {
    pub(super) fn new(row: UploadRow, state: State, now: i64) -> Arc<Self> {
        let durable_bytes = AtomicU64::new(state.size_bytes());
        let state = Arc::new(tokio::sync::Mutex::new(state));
        Arc::new(Self { row, state, touched_at: AtomicI64::new(now), durable_bytes })
    }

    pub(super) fn durable_bytes(&self) -> u64 {
        self.durable_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn set_durable_bytes(&self, bytes: u64) {
        self.durable_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn touch(&self, now: i64) {
        self.touched_at.store(now, Ordering::Relaxed);
    }
}

pub(super) struct UploadSessions {
    open: Mutex<HashMap<UploadId, Arc<Session>>>,
    limit: usize,
}

impl UploadSessions {
    pub(super) fn new(limit: usize) -> Self {
        Self { open: Mutex::default(), limit: limit.max(1) }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn get(&self, id: &UploadId) -> Option<Arc<Session>> {
        self.lock().get(id).cloned()
    }

    pub(super) fn has(&self, id: &UploadId) -> bool {
        self.lock().contains_key(id)
    }

    /// Takes in a session, or gives the one that came first under the same name. When there is no place, the session
    /// that was idle for longest is closed; `None` when all are in use.
    pub(super) fn insert(&self, session: Arc<Session>) -> Option<Arc<Session>> {
        let mut open = self.lock();
        if let Some(first) = open.get(&session.row.id) {
            return Some(first.clone());
        }
        if open.len() >= self.limit {
            let idle = open.values().filter(|session| is_idle(session));
            let oldest = idle.min_by_key(|session| session.touched_at.load(Ordering::Relaxed))?.row.id.clone();
            open.remove(&oldest);
        }
        open.insert(session.row.id.clone(), session.clone());
        metrics::gauge!("keppel_uploads_open").set(open.len() as f64);
        Some(session)
    }

    pub(super) fn remove(&self, id: &UploadId) {
        let mut open = self.lock();
        open.remove(id);
        metrics::gauge!("keppel_uploads_open").set(open.len() as f64);
    }

    /// Closes sessions that nobody touched since `before`; their bytes and rows stay.
    pub(super) fn close_idle(&self, before: i64) {
        let mut open = self.lock();
        open.retain(|_, session| session.touched_at.load(Ordering::Relaxed) >= before || !is_idle(session));
        metrics::gauge!("keppel_uploads_open").set(open.len() as f64);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nobody but the table knows the session, so that closing it takes nothing from anybody.
fn is_idle(session: &Arc<Session>) -> bool {
    Arc::strong_count(session) == 1 && session.state.try_lock().is_ok()
}
