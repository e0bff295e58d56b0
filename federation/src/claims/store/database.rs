//! The one writer: a thread that runs what it is asked in order, many requests to a transaction.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::super::raft::RaftId;
use super::schema;

/// How many requests may wait for the writer.
const WAITING_MAX: usize = 1024;
/// How many requests share one transaction at most.
const GROUP_MAX: usize = 256;

/// Why the database did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own words.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// Something stored cannot be read back.
    #[error("{what} cannot be read: {cause}")]
    Unreadable {
        /// What it is.
        what: String,
        /// Why not.
        cause: String,
    },
    /// The database was written by a newer version.
    #[error("the database is of version {found}, this program knows up to {known}: use the newer program")]
    Newer {
        /// The version found.
        found: usize,
        /// The latest version known.
        known: usize,
    },
    /// The database belongs to another node.
    #[error("the database belongs to node {0}: the key or the data directory was mixed up")]
    OtherNode(crate::vocabulary::NodeId),
    /// An earlier request failed or the writer has stopped; nothing is written any more.
    #[error("the database is closed: {0}")]
    Closed(String),
    /// A file or directory could not be made or removed.
    #[error("{path} cannot be made or removed: {cause}")]
    Path {
        /// Which one.
        path: String,
        /// The operating system's words.
        cause: String,
    },
}

impl StoreError {
    /// In the library's words: the node stops taking part.
    pub(super) fn into_storage_error(self, verb: openraft::ErrorVerb) -> super::super::raft::StorageError {
        let source = openraft::AnyError::new(&self);
        openraft::StorageIOError::<RaftId>::new(openraft::ErrorSubject::Store, verb, source).into()
    }
}

type Work = Box<dyn FnOnce(&Connection) -> Result<(), StoreError> + Send>;
type Done = Box<dyn FnOnce(Result<(), String>) + Send>;

/// One request to the writer.
pub(super) struct Job {
    work: Work,
    /// Whether it has to be on disk before `done` is told.
    durable: bool,
    done: Option<Done>,
}

/// A handle to the writer. Clones share it; it stops when the last one is gone.
#[derive(Debug, Clone)]
pub(in super::super) struct Database {
    jobs: mpsc::Sender<Job>,
    stopped: Arc<Mutex<Option<oneshot::Receiver<()>>>>,
}

impl Database {
    /// Starts the writer on an open connection.
    pub(in super::super) fn spawn(connection: Connection) -> Self {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING_MAX);
        let (ended, stopped) = oneshot::channel();
        let mut writer = Writer::new(connection, true);
        std::thread::Builder::new()
            .name("federation-db".into())
            .spawn(move || {
                while let Some(first) = waiting.blocking_recv() {
                    writer.run(gather(first, &mut waiting));
                }
                drop(writer);
                let _ = ended.send(());
            })
            .expect("the operating system gives a thread at start");
        Self { jobs, stopped: Arc::new(Mutex::new(Some(stopped))) }
    }

    /// Starts a simulated writer: a task that takes simulated time for every group, on a simulated disk.
    #[cfg(test)]
    pub(in super::super) fn spawn_simulated(
        connection: Connection,
        disk: super::super::simulation::SimulatedDisk,
        sync: bool,
    ) -> Self {
        let (jobs, mut waiting) = mpsc::channel::<Job>(WAITING_MAX);
        let (ended, stopped) = oneshot::channel();
        let mut writer = Writer::new(connection, sync);
        tokio::spawn(async move {
            while let Some(first) = waiting.recv().await {
                disk.pause().await;
                writer.run(gather(first, &mut waiting));
            }
            drop(writer);
            let _ = ended.send(());
        });
        Self { jobs, stopped: Arc::new(Mutex::new(Some(stopped))) }
    }

    /// Asks for work that is on disk before `done` is told. Returns as soon as it is queued.
    pub(super) async fn write_durably(
        &self,
        work: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
        done: impl FnOnce(Result<(), String>) + Send + 'static,
    ) -> Result<(), StoreError> {
        self.ask(Job { work: Box::new(work), durable: true, done: Some(Box::new(done)) }).await
    }

    /// Does work that is on disk when this returns.
    pub(super) async fn write_and_wait(
        &self,
        work: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let (tell, told) = oneshot::channel();
        self.write_durably(work, |result| drop(tell.send(result))).await?;
        told.await.map_err(|_| closed())?.map_err(StoreError::Closed)
    }

    /// Asks for work that may be lost in a crash, though never what was asked before it alone.
    pub(super) async fn write_lazily(
        &self,
        work: impl FnOnce(&Connection) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        self.ask(Job { work: Box::new(work), durable: false, done: None }).await
    }

    /// Reads, after everything asked before.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (tell, told) = oneshot::channel();
        let work = move |connection: &Connection| {
            let _ = tell.send(work(connection)?);
            Ok(())
        };
        self.ask(Job { work: Box::new(work), durable: false, done: None }).await?;
        told.await.map_err(|_| closed())
    }

    async fn ask(&self, job: Job) -> Result<(), StoreError> {
        self.jobs.send(job).await.map_err(|_| closed())
    }

    /// Waits until the writer has stopped and the file is closed. All other handles must be gone or going.
    pub(in super::super) async fn closed(self) {
        let stopped = self.stopped.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        drop(self.jobs);
        if let Some(stopped) = stopped {
            let _ = stopped.await;
        }
    }
}

fn closed() -> StoreError {
    StoreError::Closed("the writer has stopped".into())
}

fn gather(first: Job, waiting: &mut mpsc::Receiver<Job>) -> Vec<Job> {
    let mut group = vec![first];
    while group.len() < GROUP_MAX {
        match waiting.try_recv() {
            Ok(job) => group.push(job),
            Err(_) => break,
        }
    }
    group
}

/// Runs groups of jobs; after the first failure it refuses everything, so that nothing is written out of order.
struct Writer {
    connection: Connection,
    /// False only where the simulation breaks the promise on purpose.
    sync: bool,
    syncing: bool,
    failed: Option<String>,
}

impl Writer {
    fn new(connection: Connection, sync: bool) -> Self {
        Self { connection, sync, syncing: true, failed: None }
    }

    fn run(&mut self, group: Vec<Job>) {
        let durable = group.iter().any(|job| job.durable) && self.sync;
        let (works, dones): (Vec<_>, Vec<_>) = group.into_iter().map(|job| (job.work, job.done)).unzip();
        let result = match &self.failed {
            Some(cause) => Err(cause.clone()),
            None => self.transact(works, durable).map_err(|cause| cause.to_string()),
        };
        if let (Err(cause), None) = (&result, &self.failed) {
            tracing::error!(%cause, "the federation's database failed; this node takes no further part");
            self.failed = Some(cause.clone());
        }
        for done in dones.into_iter().flatten() {
            done(result.clone());
        }
    }

    fn transact(&mut self, works: Vec<Work>, durable: bool) -> Result<(), StoreError> {
        if self.syncing != durable {
            // FULL syncs the write-ahead log at every commit; NORMAL leaves that to the next one that is FULL.
            let level = match (durable, self.sync) {
                (true, _) => "FULL",
                (false, true) => "NORMAL",
                (false, false) => "OFF",
            };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.syncing = durable;
        }
        let transaction = self.connection.transaction()?;
        for work in works {
            work(&transaction)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Makes the directory and opens the database in it.
pub(in super::super) fn open(directory: &Path, node: crate::vocabulary::NodeId) -> Result<Connection, StoreError> {
    std::fs::create_dir_all(directory)
        .map_err(|cause| StoreError::Path { path: directory.display().to_string(), cause: cause.to_string() })?;
    let connection = schema::open_connection(&directory.join(super::DATABASE_NAME), None)?;
    own(&connection, node)?;
    Ok(connection)
}

/// Marks the database as this node's, or finds that it is another's.
fn own(connection: &Connection, node: crate::vocabulary::NodeId) -> Result<(), StoreError> {
    match schema::read_meta::<RaftId>(connection, schema::MetaKey::Node)? {
        None => schema::write_meta(connection, schema::MetaKey::Node, &RaftId::from(node)),
        Some(owner) if owner == RaftId::from(node) => Ok(()),
        Some(owner) => Err(StoreError::OtherNode(owner.into())),
    }
}
