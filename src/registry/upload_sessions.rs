//! Upload sessions that are held open: their file and running hashes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keppel_federation::vocabulary::UploadId;

use crate::metadata::UploadRow;
use crate::storage::Upload;

/// One session. Whoever holds the lock on its state is the one request that writes to it.
pub(super) struct Session {
    pub(super) row: UploadRow,
    pub(super) state: Arc<tokio::sync::Mutex<State>>,
    touched_at: AtomicI64,
    is_recorded: AtomicBool,
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
    /// A session to which nothing was sent yet. It has no row: most sessions end with the request that sends their bytes.
    pub(super) fn begun(row: UploadRow, now: i64) -> Arc<Self> {
        Self::new(row, State::Empty, now, false)
    }

    /// A session that has a row.
    pub(super) fn recorded(row: UploadRow, state: State, now: i64) -> Arc<Self> {
        Self::new(row, state, now, true)
    }

    fn new(row: UploadRow, state: State, now: i64, is_recorded: bool) -> Arc<Self> {
        Arc::new(Self {
            row,
            durable_bytes: AtomicU64::new(state.size_bytes()),
            state: Arc::new(tokio::sync::Mutex::new(state)),
            touched_at: AtomicI64::new(now),
            is_recorded: AtomicBool::new(is_recorded),
        })
    }

    /// Whether it has a row, or did until it ended.
    pub(super) fn is_recorded(&self) -> bool {
        self.is_recorded.load(Ordering::Relaxed)
    }

    pub(super) fn set_recorded(&self) {
        self.is_recorded.store(true, Ordering::Relaxed);
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
    /// that was idle for longest is closed and given back, too; `None` when all are in use.
    pub(super) fn insert(&self, session: Arc<Session>) -> Option<(Arc<Session>, Option<Arc<Session>>)> {
        let mut open = self.lock();
        if let Some(first) = open.get(&session.row.id) {
            return Some((first.clone(), None));
        }
        let mut closed = None;
        if open.len() >= self.limit {
            let idle = open.values().filter(|session| is_idle(session));
            let oldest = idle.min_by_key(|session| session.touched_at.load(Ordering::Relaxed))?.row.id.clone();
            closed = open.remove(&oldest);
        }
        open.insert(session.row.id.clone(), session.clone());
        metrics::gauge!("keppel_uploads_open").set(open.len() as f64);
        Some((session, closed))
    }

    pub(super) fn remove(&self, id: &UploadId) {
        let mut open = self.lock();
        open.remove(id);
        metrics::gauge!("keppel_uploads_open").set(open.len() as f64);
    }

    /// Closes sessions that nobody touched since `before`, and gives them; their bytes and rows stay.
    pub(super) fn close_idle(&self, before: i64) -> Vec<Arc<Session>> {
        let mut open = self.lock();
        let idle = |_: &UploadId, session: &mut Arc<Session>| {
            session.touched_at.load(Ordering::Relaxed) < before && is_idle(session)
        };
        let closed = open.extract_if(idle).map(|(_, session)| session).collect();
        metrics::gauge!("keppel_uploads_open").set(open.len() as f64);
        closed
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nobody but the table knows the session, so that closing it takes nothing from anybody.
fn is_idle(session: &Arc<Session>) -> bool {
    Arc::strong_count(session) == 1 && session.state.try_lock().is_ok()
}
