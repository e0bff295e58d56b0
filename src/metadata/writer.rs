use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use keppel_federation::vocabulary::AccountName;
use rusqlite::{Connection, Params};
use tokio::sync::{mpsc, oneshot};

use super::{Cursor, EventHead, MetadataError, MetadataOptions, Reader};

/// What the writer's connection keeps for itself: which logs of events have grown since it was last asked.
pub(super) const MOVED_HEADS: &str = "
    CREATE TEMP TABLE moved_heads (account_id INTEGER PRIMARY KEY);
    CREATE TEMP TRIGGER head_moved AFTER UPDATE OF event_head ON main.accounts BEGIN
        INSERT INTO moved_heads SELECT NEW.id WHERE NOT EXISTS (SELECT 1 FROM moved_heads WHERE account_id = NEW.id);
    END;";

/// A transaction under way: everything a [`Reader`] can ask, and the changes that each table family adds.
pub struct WriteTransaction<'a> {
    reader: Reader<'a>,
    after_commit: RefCell<Vec<Box<dyn FnOnce() + Send>>>,
    /// Whether a statement found no space left, which SQLite answers by undoing the whole transaction.
    full: Cell<bool>,
}

impl<'a> WriteTransaction<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self { reader: Reader::new(connection), after_commit: RefCell::default(), full: Cell::new(false) }
    }

    /// Has `action` run on the writer's thread once the transaction is on disk, before anybody is answered and also
    /// when nobody waits for the answer any more. It must be quick. A job that fails drops it.
    pub fn after_commit(&self, action: impl FnOnce() + Send + 'static) {
        self.after_commit.borrow_mut().push(Box::new(action));
    }

    /// The accounts whose logs have grown in this transaction, each with its end; they are told once.
    fn take_moved_heads(&self) -> Result<Vec<EventHead>, MetadataError> {
        let sql = "SELECT name, event_head, event_stamp FROM moved_heads JOIN accounts ON accounts.id = account_id";
        let heads = self.rows(sql, [], |row| {
            let account = AccountName::parse(row.get_ref(0)?.as_str().unwrap_or_default());
            let account = account.map_err(|_| MetadataError::Corrupt { what: "account name" })?;
            let cursor = Cursor { sequence: row.get::<_, i64>(1)? as u64, stamp: row.get(2)? };
            Ok(EventHead { account, cursor })
        })?;
        if !heads.is_empty() {
            self.execute("DELETE FROM moved_heads", [])?;
        }
        Ok(heads)
    }

    /// Runs a statement; gives the number of rows it changed.
    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<usize, MetadataError> {
        self.noting_full(self.statement(sql)?.execute(params).map_err(MetadataError::from))
    }

    /// Remembers it when a statement found no space left.
    pub(super) fn noting_full<T>(&self, outcome: Result<T, MetadataError>) -> Result<T, MetadataError> {
        self.full.set(self.full.get() || matches!(outcome, Err(MetadataError::Full)));
        outcome
    }
}

impl<'a> Deref for WriteTransaction<'a> {
    type Target = Reader<'a>;

    fn deref(&self) -> &Reader<'a> {
        &self.reader
    }
}

/// Answers one job, given whether the shared commit succeeded.
type Reply = Box<dyn FnOnce(Result<(), &MetadataError>) + Send>;
/// Runs one job, unless its transaction failed before its turn; says whether its changes stay, and how to answer.
type Job = Box<dyn FnOnce(Result<&WriteTransaction<'_>, &MetadataError>) -> (bool, Reply) + Send>;

/// Told of logs of events that have grown.
pub(super) type Observer = Box<dyn Fn(&[EventHead]) + Send + Sync>;

/// Asked before each commit whether it may happen, by tests in which the process ends at a certain one.
#[cfg(test)]
pub(super) type Gate = Box<dyn Fn() -> bool + Send + Sync>;

/// Who is told of, or asked about, what the writer does.
#[derive(Default)]
struct Listeners {
    observer: OnceLock<Observer>,
    #[cfg(test)]
    gate: OnceLock<Gate>,
}

/// The one thread that writes.
pub(super) struct Writer {
    queue: mpsc::Sender<Job>,
    listeners: Arc<Listeners>,
}

impl Writer {
    pub(super) fn spawn(connection: Connection, options: &MetadataOptions) -> Result<Self, MetadataError> {
        let (queue, jobs) = mpsc::channel(options.write_queue_max.max(1));
        let group_max = options.group_commit_max.max(1);
        let listeners = Arc::<Listeners>::default();
        let told = listeners.clone();
        std::thread::Builder::new()
            .name("metadata-writer".into())
            .spawn(move || write_until_closed(&connection, jobs, group_max, &told))
            .map_err(|_| MetadataError::Closed)?;
        Ok(Self { queue, listeners })
    }

    pub(super) fn observe(&self, observer: Observer) {
        // Only one can be told; a second one would be a mistake of whoever puts the rooms together.
        let _ = self.listeners.observer.set(observer);
    }

    #[cfg(test)]
    pub(super) fn gate(&self, gate: Gate) {
        let _ = self.listeners.gate.set(gate);
    }

    /// Queues a job; the future that comes back waits for its answer.
    pub(super) async fn enqueue<T, E, F>(
        &self,
        job: F,
    ) -> Result<impl Future<Output = Result<T, E>> + Send + 'static, MetadataError>
    where
        T: Send + 'static,
        E: From<MetadataError> + Send + 'static,
        F: FnOnce(&WriteTransaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let (answer, wait) = oneshot::channel();
        let job: Job = Box::new(move |transaction| {
            let outcome = match transaction {
                Ok(transaction) => catch_unwind(AssertUnwindSafe(|| job(transaction)))
                    .unwrap_or_else(|_| Err(MetadataError::Panicked.into())),
                Err(error) => Err(not_committed(error).into()),
            };
            let keep = outcome.is_ok();
            let reply: Reply = Box::new(move |committed| {
                let outcome = match (outcome, committed) {
                    (Ok(_), Err(error)) => Err(not_committed(error).into()),
                    (outcome, _) => outcome,
                };
                // Nobody waits any more when the caller went away; the work is done all the same.
                let _ = answer.send(outcome);
            });
            (keep, reply)
        });
        self.queue.send(job).await.map_err(|_| MetadataError::Closed)?;
        metrics::gauge!("keppel_metadata_write_queue").set((self.queue.max_capacity() - self.queue.capacity()) as f64);
        Ok(async { wait.await.unwrap_or_else(|_| Err(MetadataError::Closed.into())) })
    }
}

/// What those are told whose transaction failed.
fn not_committed(error: &MetadataError) -> MetadataError {
    match error {
        MetadataError::Full => MetadataError::Full,
        error => MetadataError::Commit(error.to_string()),
    }
}

fn write_until_closed(connection: &Connection, mut jobs: mpsc::Receiver<Job>, group_max: usize, listeners: &Listeners) {
    let commit_seconds = metrics::histogram!("keppel_metadata_commit_seconds");
    let group_size = metrics::histogram!("keppel_metadata_group_commit_jobs");
    let waiting = metrics::gauge!("keppel_metadata_write_queue");
    let mut group = VecDeque::new();
    while let Some(first) = jobs.blocking_recv() {
        group.push_back(first);
        while group.len() < group_max
            && let Ok(next) = jobs.try_recv()
        {
            group.push_back(next);
        }
        group_size.record(group.len() as f64);
        let started = Instant::now();
        write_group(connection, &mut group, listeners);
        commit_seconds.record(started.elapsed().as_secs_f64());
        waiting.set(jobs.len() as f64);
    }
}

/// Runs the jobs of one group in one transaction and answers them.
fn write_group(connection: &Connection, group: &mut VecDeque<Job>, listeners: &Listeners) {
    let transaction = WriteTransaction::new(connection);
    let mut replies = Vec::with_capacity(group.len());
    let committed = (|| {
        transaction.execute("BEGIN IMMEDIATE", [])?;
        while let Some(job) = group.pop_front() {
            replies.push(run_isolated(&transaction, job)?);
        }
        let heads = transaction.take_moved_heads()?;
        #[cfg(test)]
        if listeners.gate.get().is_some_and(|may_commit| !may_commit()) {
            return Err(MetadataError::Closed);
        }
        transaction.execute("COMMIT", [])?;
        Ok(heads)
    })();
    let committed = committed.map_err(|error| if transaction.full.get() { MetadataError::Full } else { error });
    if let Err(error) = &committed {
        tracing::error!(error = error as &dyn std::error::Error, jobs = replies.len(), "a metadata commit failed");
        transaction.after_commit.borrow_mut().clear();
        if !connection.is_autocommit() && connection.execute_batch("ROLLBACK").is_err() {
            tracing::error!("the failed metadata transaction could not be rolled back");
        }
    }
    if let (Ok(heads), Some(observer)) = (&committed, listeners.observer.get())
        && !heads.is_empty()
    {
        observer(heads);
    }
    for action in transaction.after_commit.take() {
        action();
    }
    for reply in replies {
        reply(committed.as_ref().map(|_| ()));
    }
    if let Err(error) = &committed {
        // Their turn did not come.
        group.drain(..).for_each(|job| job(Err(error)).1(Ok(())));
    }
}

/// Runs one job inside a savepoint, so that its failure undoes only its own changes.
fn run_isolated(transaction: &WriteTransaction<'_>, job: Job) -> Result<Reply, MetadataError> {
    if let Err(error) = transaction.execute("SAVEPOINT job", []) {
        job(Err(&error)).1(Ok(()));
        return Err(error);
    }
    let actions_before = transaction.after_commit.borrow().len();
    let (keep, reply) = job(Ok(transaction));
    if !keep {
        transaction.after_commit.borrow_mut().truncate(actions_before);
        // SQLite itself undoes the whole transaction on some errors (a full disk); there is no savepoint then.
        if let Err(error) = transaction.execute("ROLLBACK TO job", []) {
            reply(Ok(()));
            return Err(error);
        }
    }
    if let Err(error) = transaction.execute("RELEASE job", []) {
        reply(Err(&error));
        return Err(error);
    }
    Ok(reply)
}
