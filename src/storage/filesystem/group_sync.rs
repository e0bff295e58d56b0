//! Shares one fsync of a directory among all who wait for it at the same time.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::file_sync::KeptError;

/// Makes directory entries durable.
///
/// Who calls [`Self::sync`] is served by an fsync that starts after the call. While one runs, the others gather for the
/// next, which one of them does for all. An error is told to everyone the failed fsync was for, because the kernel
/// reports it once only: trying again could succeed without the entry being on disk.
pub(super) struct GroupSync {
    directories: Mutex<HashMap<PathBuf, Arc<Directory>>>,
    fsync: Box<Fsync>,
}

type Fsync = dyn Fn(&Path) -> io::Result<()> + Send + Sync;

#[derive(Default)]
struct Directory {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    running: bool,
    gathering: Arc<Round>,
}

/// One fsync and what came of it, once it is over.
#[derive(Default)]
struct Round {
    outcome: OnceLock<Result<(), KeptError>>,
}

impl Round {
    fn result(&self) -> Option<io::Result<()>> {
        self.outcome.get().map(|outcome| outcome.map_err(io::Error::from))
    }
}

impl GroupSync {
    /// Uses `fsync` to make the entries of a directory durable.
    pub(super) fn new(fsync: impl Fn(&Path) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { directories: Mutex::default(), fsync: Box::new(fsync) }
    }

    /// Returns when all entries that `path` had before the call are durable. Blocks.
    ///
    /// # Errors
    /// What the fsync said, to everyone it was for.
    pub(super) fn sync(&self, path: &Path) -> io::Result<()> {
        let directory = lock(&self.directories).entry(path.to_owned()).or_default().clone();
        let result = self.wait_or_lead(&directory, path);
        let mut directories = lock(&self.directories);
        // Ours and the map's: nobody else waits, and nobody can begin to while we hold the map.
        if Arc::strong_count(&directory) == 2 {
            directories.remove(path);
        }
        result
    }

    fn wait_or_lead(&self, directory: &Directory, path: &Path) -> io::Result<()> {
        let mut state = lock(&directory.state);
        let round = state.gathering.clone();
        loop {
            if let Some(result) = round.result() {
                return result;
            }
            if !state.running {
                break;
            }
            state = directory.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.running = true;
        state.gathering = Arc::default();
        drop(state);
        let result = (self.fsync)(path);
        let outcome = result.as_ref().copied().map_err(KeptError::from);
        round.outcome.set(outcome).unwrap_or_else(|_| unreachable!("only the leader of a round ends it"));
        lock(&directory.state).running = false;
        directory.changed.notify_all();
        result
    }
}

/// The states guarded here are valid at every moment, so a panic elsewhere does not spoil them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::sync::mpsc;
    use std::thread;

    /// A sync whose fsyncs wait to be let through, and report their beginning.
    fn gated() -> (Arc<GroupSync>, mpsc::Receiver<()>, mpsc::Sender<io::Result<()>>) {
        let (began, begins) = mpsc::channel();
        let (gate, gates) = mpsc::channel();
        let (began, gates) = (Mutex::new(began), Mutex::new(gates));
        let sync = GroupSync::new(move |_| {
            began.lock().unwrap().send(()).unwrap();
            gates.lock().unwrap().recv().unwrap()
        });
        (Arc::new(sync), begins, gate)
    }

    fn waiting(sync: &GroupSync, path: &Path) -> usize {
        let directories = sync.directories.lock().unwrap();
        directories.get(path).map_or(0, |directory| Arc::strong_count(directory) - 1)
    }

    fn gathered(sync: &GroupSync, path: &Path) -> usize {
        let directories = sync.directories.lock().unwrap();
        directories.get(path).map_or(0, |d| Arc::strong_count(&d.state.lock().unwrap().gathering) - 1)
    }

    fn wait_for_gathered(sync: &GroupSync, path: &Path, count: usize) {
        while gathered(sync, path) != count {
            thread::yield_now();
        }
    }

    #[test]
    fn those_who_come_during_an_fsync_share_the_next_one() {
        let (sync, begins, gate) = gated();
        let path = Path::new("d");
        thread::scope(|scope| {
            let first = scope.spawn(|| sync.sync(path));
            begins.recv().unwrap();
            let others: Vec<_> = (0..8).map(|_| scope.spawn(|| sync.sync(path))).collect();
            wait_for_gathered(&sync, path, 8);
            gate.send(Ok(())).unwrap();
            first.join().unwrap().unwrap();
            begins.recv().unwrap();
            assert!(others.iter().all(|other| !other.is_finished()), "nobody is served by an fsync begun earlier");
            gate.send(Ok(())).unwrap();
            for other in others {
                other.join().unwrap().unwrap();
            }
        });
        assert!(begins.try_recv().is_err(), "two fsyncs served nine");
        assert_eq!(waiting(&sync, path), 0, "nothing is kept about a directory nobody waits for");
    }

    #[test]
    fn a_failed_fsync_fails_everyone_it_was_for_and_nobody_else() {
        let (sync, begins, gate) = gated();
        let path = Path::new("d");
        thread::scope(|scope| {
            let first = scope.spawn(|| sync.sync(path));
            begins.recv().unwrap();
            let others: Vec<_> = (0..3).map(|_| scope.spawn(|| sync.sync(path))).collect();
            wait_for_gathered(&sync, path, 3);
            gate.send(Ok(())).unwrap();
            first.join().unwrap().unwrap();
            begins.recv().unwrap();
            gate.send(Err(io::Error::from_raw_os_error(libc::ENOSPC))).unwrap();
            for other in others {
                assert_eq!(other.join().unwrap().unwrap_err().kind(), io::ErrorKind::StorageFull);
            }
            let later = scope.spawn(|| sync.sync(path));
            begins.recv().unwrap();
            gate.send(Ok(())).unwrap();
            later.join().unwrap().unwrap();
        });
    }

    #[test]
    fn every_call_is_served_by_an_fsync_that_began_after_it() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = begun.clone();
        let sync = GroupSync::new(move |_| {
            counter.fetch_add(1, SeqCst);
            thread::yield_now();
            Ok(())
        });
        thread::scope(|scope| {
            for i in 0..8 {
                let (sync, begun) = (&sync, &begun);
                scope.spawn(move || {
                    let path = PathBuf::from(["a", "b"][i % 2]);
                    for _ in 0..200 {
                        let before = begun.load(SeqCst);
                        sync.sync(&path).unwrap();
                        assert!(begun.load(SeqCst) > before);
                    }
                });
            }
        });
        assert!(sync.directories.lock().unwrap().is_empty());
    }
}
