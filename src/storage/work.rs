//! Runs what blocks on threads that may, a bounded number at a time.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::StorageError;

/// A number of blocking threads that may be busy at the same time. Clones share the number.
#[derive(Clone)]
pub(super) struct Workers {
    permits: Arc<Semaphore>,
}

impl Workers {
    pub(super) fn new(busy_max: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(busy_max.max(1))) }
    }

    /// Waits for a thread and begins the job on it; the job then runs to its end, whatever becomes of the handle.
    pub(super) async fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, StorageError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| StorageError::Stopped)?;
        Ok(tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job()
        }))
    }

    /// Runs the job and waits for its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        ended(self.spawn(job).await?).await
    }
}

/// The result of a job; a panic in it goes on here.
pub(super) async fn ended<T, E: From<StorageError>>(job: JoinHandle<Result<T, E>>) -> Result<T, E> {
    unwrap(job.await)
}

/// Like [`ended`], for a job that stays where it is when the call is dropped. Never ends when there is none.
pub(super) async fn joined<T>(job: &mut Option<JoinHandle<Result<T, StorageError>>>) -> Result<T, StorageError> {
    match job {
        Some(job) => unwrap(job.await),
        None => std::future::pending().await,
    }
}

fn unwrap<T, E: From<StorageError>>(result: Result<Result<T, E>, tokio::task::JoinError>) -> Result<T, E> {
    result.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(StorageError::Stopped.into()),
    })
}
