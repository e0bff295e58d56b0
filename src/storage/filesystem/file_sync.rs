//! Makes the bytes of a file durable, and never forgets that it once failed to.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// An error that several can be told of.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeptError {
    kind: io::ErrorKind,
    code: Option<i32>,
}

impl From<&io::Error> for KeptError {
    fn from(error: &io::Error) -> Self {
        Self { kind: error.kind(), code: error.raw_os_error() }
    }
}

impl From<KeptError> for io::Error {
    fn from(error: KeptError) -> Self {
        error.code.map_or_else(|| error.kind.into(), Self::from_raw_os_error)
    }
}

/// The fsyncs of one open file: one at a time, and after a failed one none that succeeds. The kernel reports an error
/// once only, drops the bytes it could not write, and would let the next fsync pass.
#[derive(Default)]
pub(super) struct FileSync {
    failed: Mutex<Option<KeptError>>,
    early_under_way: AtomicBool,
}

impl FileSync {
    /// Waits for an fsync under way, then runs this one, unless one failed before.
    pub(super) fn sync(&self, fsync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = *failed {
            return Err(error.into());
        }
        fsync().inspect_err(|error| *failed = Some(error.into()))
    }

    /// An fsync to be run beside other work; `None` while there is one already.
    pub(super) fn early(self: &Arc<Self>, file: Arc<File>) -> Option<Box<dyn FnOnce() + Send>> {
        if self.early_under_way.swap(true, Ordering::AcqRel) {
            return None;
        }
        let under_way = UnderWay(self.clone());
        Some(Box::new(move || {
            // An error is told by the next sync.
            let _ = under_way.0.sync(|| sync_data(&file));
        }))
    }
}

/// Ends with the early fsync, also when that is dropped without being run.
struct UnderWay(Arc<FileSync>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.early_under_way.store(false, Ordering::Release);
    }
}

/// Returns when the file's bytes and size are on disk.
pub(super) fn sync_data(file: &File) -> io::Result<()> {
    let start = Instant::now();
    file.sync_data()?;
    metrics::histogram!("keppel_storage_fsync_seconds", "kind" => "file").record(start.elapsed());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn after_a_failed_fsync_none_succeeds() {
        let sync = FileSync::default();
        sync.sync(|| Ok(())).unwrap();
        let failed = sync.sync(|| Err(io::Error::from_raw_os_error(libc::ENOSPC))).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
        let again = sync.sync(|| unreachable!("the kernel would say yes")).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::ENOSPC));
    }

    #[test]
    fn a_sync_waits_for_one_under_way_and_tells_its_error() {
        let sync = &FileSync::default();
        let (began, begins) = mpsc::channel();
        let (let_go, gate) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(move || {
                sync.sync(|| {
                    began.send(()).unwrap();
                    gate.recv().unwrap();
                    Err(io::ErrorKind::InvalidData.into())
                })
            });
            begins.recv().unwrap();
            let second = scope.spawn(|| sync.sync(|| Ok(())));
            let_go.send(()).unwrap();
            assert_eq!(second.join().unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
        });
    }

    #[test]
    fn there_is_one_early_fsync_at_a_time_whether_it_is_run_or_not() {
        let sync = Arc::new(FileSync::default());
        let file = Arc::new(tempfile::tempfile().unwrap());
        let early = sync.early(file.clone()).unwrap();
        assert!(sync.early(file.clone()).is_none());
        early();
        let early = sync.early(file.clone()).unwrap();
        assert!(sync.early(file.clone()).is_none());
        drop(early);
        assert!(sync.early(file).is_some());
    }
}
