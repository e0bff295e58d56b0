//! Runs what blocks on threads that may, a bounded number at a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::StorageError;

/// A number of blocking threads that may be busy at the same time. Clones share the number.
#[derive(Clone)]
pub(super) struct Workers {
    permits: Arc<Semaphore>,
    wait_timeout: Duration,
}

impl Workers {
    pub(super) fn new(busy_max: usize, wait_timeout: Duration) -> Self {
        Self { permits: Arc::new(Semaphore::new(busy_max.max(1))), wait_timeout }
    }

    /// Waits for a thread and begins the job on it; the job then runs to its end, whatever becomes of the handle.
    /// When no thread gets free in time, the job is dropped.
    pub(super) async fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>, StorageError> {
        let permit = match self.permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => tokio::time::timeout(self.wait_timeout, self.permits.clone().acquire_owned())
                .await
                .map_err(|_| StorageError::Overloaded)?
                .map_err(|_| StorageError::Stopped)?,
        };
        Ok(tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job()
        }))
    }

    /// Begins the job if there is a thread for it, and drops it otherwise. Called on a blocking thread.
    pub(super) fn begin_if_free(&self, job: impl FnOnce() + Send + 'static) {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            tokio::task::spawn_blocking(move || {
                let _permit = permit;
                job();
            });
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[tokio::test]
    async fn a_job_that_gets_no_thread_in_time_is_refused_and_one_that_does_runs() {
        let workers = Workers::new(1, Duration::from_millis(1));
        let (let_go, gate) = mpsc::channel::<()>();
        let busy = workers.spawn(move || gate.recv()).await.unwrap();
        let refused = workers.run(|| Ok(1)).await.unwrap_err();
        assert!(matches!(refused, StorageError::Overloaded));
        let patient = Workers { wait_timeout: Duration::from_secs(60), ..workers };
        let (ran, ()) = tokio::join!(patient.run(|| Ok(2)), async { let_go.send(()).unwrap() });
        assert_eq!(ran.unwrap(), 2);
        busy.await.unwrap().unwrap();
    }
}
