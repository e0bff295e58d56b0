//! A disk that forgets what was not synced.
//!
//! It is a file system for SQLite: the real SQLite writes and syncs real pages, only the files are in memory. A crash
//! leaves each file as it was at its last sync, plus a random part of the writes since, each whole, torn at a sector, or
//! missing, in any combination, as a disk without power would.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, Once};
use std::time::Duration;

use rusqlite::{Connection, ffi};

use super::super::store::StoreError;
use super::chance;

/// The name SQLite knows this file system by.
const VFS_NAME: &CStr = c"keppel-simulated";
const SECTOR: usize = 512;

/// The files of one simulated disk.
#[derive(Debug, Clone)]
pub(in super::super) struct SimulatedDisk {
    /// The name of the mount; it changes at every crash, so that what crashed cannot write any more.
    mount: String,
    pause_max: Duration,
}

#[derive(Debug, Default, Clone)]
struct File {
    synced: Vec<u8>,
    now: Vec<u8>,
    /// What was written since the last sync, in order.
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(usize, Vec<u8>),
    Truncate(usize),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                if bytes.len() < at + data.len() {
                    bytes.resize(at + data.len(), 0);
                }
                bytes[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Truncate(len) => bytes.truncate(*len),
        }
    }
}

impl File {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    fn sync(&mut self) {
        self.pending.clear();
        self.synced.clone_from(&self.now);
    }

    /// What is left after the power went.
    fn after_crash(&self) -> Vec<u8> {
        let mut bytes = self.synced.clone();
        // Often nothing made it, or everything did; between them, any part.
        let mode = chance::below(4);
        for change in &self.pending {
            match (mode, chance::below(4)) {
                (0, _) | (2.., 0) => {}
                (2.., 1) => match change {
                    Change::Write(at, data) => {
                        let kept = SECTOR * chance::below((data.len() / SECTOR) as u64 + 1) as usize;
                        Change::Write(*at, data[..kept.min(data.len())].to_vec()).apply(&mut bytes);
                    }
                    Change::Truncate(_) => {}
                },
                _ => change.apply(&mut bytes),
            }
        }
        bytes
    }
}

/// All files of all disks, by mount and name. A mount that is missing has crashed.
static DISKS: Mutex<BTreeMap<String, BTreeMap<String, File>>> = Mutex::new(BTreeMap::new());

fn with_file<T>(path: &str, f: impl FnOnce(&mut File) -> T) -> Option<T> {
    let (mount, name) = path.trim_start_matches('/').split_once('/')?;
    let mut disks = DISKS.lock().unwrap();
    disks.get_mut(mount)?.get_mut(name).map(f)
}

impl SimulatedDisk {
    /// An empty disk. Every group of writes takes a random time up to `pause_max`.
    pub(in super::super) fn new(pause_max: Duration) -> Self {
        static REGISTERED: Once = Once::new();
        REGISTERED.call_once(register);
        static COUNT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let mount = format!("disk{}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        DISKS.lock().unwrap().insert(mount.clone(), BTreeMap::new());
        Self { mount, pause_max }
    }

    /// Opens the federation's database on this disk.
    pub(in super::super) fn open(&self) -> Result<Connection, StoreError> {
        let path = format!("/{}/federation.db", self.mount);
        let vfs = VFS_NAME.to_str().expect("it is ASCII");
        super::super::store::open_connection(path.as_ref(), Some(vfs))
    }

    /// Cuts the power: gives the disk as it is found afterwards. Whoever still holds the old one can neither read nor
    /// write any more.
    pub(in super::super) fn crash(&self) -> Self {
        let files = DISKS.lock().unwrap().remove(&self.mount).unwrap_or_default();
        let after = Self::new(self.pause_max);
        let files = files
            .into_iter()
            .map(|(name, file)| {
                let bytes = file.after_crash();
                (name, File { synced: bytes.clone(), now: bytes, pending: Vec::new() })
            })
            .collect();
        DISKS.lock().unwrap().insert(after.mount.clone(), files);
        after
    }

    /// The time a group of writes takes.
    pub(in super::super) async fn pause(&self) {
        let max = u64::try_from(self.pause_max.as_micros()).unwrap_or(u64::MAX);
        tokio::time::sleep(Duration::from_micros(chance::below(max + 1))).await;
    }

    /// Frees the memory.
    pub(super) fn discard(&self) {
        DISKS.lock().unwrap().remove(&self.mount);
    }
}

/// An open file, as SQLite lays it out: its own part first.
#[repr(C)]
struct Open {
    base: ffi::sqlite3_file,
    path: *mut String,
}

static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

fn register() {
    // SAFETY: the default file system is looked up once to borrow its clock and randomness; the structure registered
    // is leaked, so it lives as long as SQLite may use it, and all its functions follow SQLite's contract.
    unsafe {
        let default = ffi::sqlite3_vfs_find(std::ptr::null());
        let vfs = Box::new(ffi::sqlite3_vfs {
            iVersion: 1,
            szOsFile: size_of::<Open>() as c_int,
            mxPathname: 256,
            zName: VFS_NAME.as_ptr(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xRandomness: Some(randomness),
            ..*default
        });
        assert_eq!(ffi::sqlite3_vfs_register(Box::leak(vfs), 0), ffi::SQLITE_OK);
    }
}

unsafe fn path_of<'a>(file: *mut ffi::sqlite3_file) -> &'a str {
    // SAFETY: SQLite passes only files that `open` has filled in.
    unsafe { &*(*file.cast::<Open>()).path }
}

unsafe fn text<'a>(path: *const c_char) -> &'a str {
    // SAFETY: SQLite passes strings that end with a zero.
    unsafe { CStr::from_ptr(path) }.to_str().unwrap_or("")
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: `file` is `szOsFile` bytes for us to fill in; `name` is a string or null.
    unsafe {
        (*file).pMethods = std::ptr::null();
        if name.is_null() {
            return ffi::SQLITE_CANTOPEN;
        }
        let path = text(name).to_owned();
        let Some((mount, name)) = path.trim_start_matches('/').split_once('/') else { return ffi::SQLITE_CANTOPEN };
        let mut disks = DISKS.lock().unwrap();
        let Some(files) = disks.get_mut(mount) else { return ffi::SQLITE_CANTOPEN };
        if !files.contains_key(name) {
            if flags & ffi::SQLITE_OPEN_CREATE == 0 {
                return ffi::SQLITE_CANTOPEN;
            }
            files.insert(name.to_owned(), File::default());
        }
        drop(disks);
        let open = file.cast::<Open>();
        (*open).path = Box::into_raw(Box::new(path));
        (*open).base.pMethods = &METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, _: c_int) -> c_int {
    // SAFETY: SQLite's contract for names.
    let path = unsafe { text(name) };
    let Some((mount, name)) = path.trim_start_matches('/').split_once('/') else { return ffi::SQLITE_IOERR_DELETE };
    match DISKS.lock().unwrap().get_mut(mount).map(|files| files.remove(name)) {
        Some(Some(_)) => ffi::SQLITE_OK,
        Some(None) => ffi::SQLITE_IOERR_DELETE_NOENT,
        None => ffi::SQLITE_IOERR_DELETE,
    }
}

unsafe extern "C" fn access(_: *mut ffi::sqlite3_vfs, name: *const c_char, _: c_int, found: *mut c_int) -> c_int {
    // SAFETY: SQLite's contract for names and the place of the answer.
    unsafe {
        *found = c_int::from(with_file(text(name), |_| ()).is_some());
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_pathname(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    size: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: `out` has room for `size` bytes, which is checked.
    unsafe {
        let bytes = CStr::from_ptr(name).to_bytes_with_nul();
        if bytes.len() > size as usize {
            return ffi::SQLITE_CANTOPEN;
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), out, bytes.len());
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(_: *mut ffi::sqlite3_vfs, size: c_int, out: *mut c_char) -> c_int {
    for at in 0..size as usize {
        // SAFETY: `out` has room for `size` bytes.
        unsafe { *out.add(at) = chance::random() as c_char };
    }
    size
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: `open` has made the path with `Box::into_raw`, and SQLite closes once.
    unsafe { drop(Box::from_raw((*file.cast::<Open>()).path)) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, out: *mut c_void, size: c_int, at: i64) -> c_int {
    // SAFETY: `out` has room for `size` bytes.
    let (path, out) = unsafe { (path_of(file), std::slice::from_raw_parts_mut(out.cast::<u8>(), size as usize)) };
    with_file(path, |file| {
        let from = (at as usize).min(file.now.len());
        let found = (file.now.len() - from).min(out.len());
        out[..found].copy_from_slice(&file.now[from..from + found]);
        out[found..].fill(0);
        if found == out.len() { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_SHORT_READ }
    })
    .unwrap_or(ffi::SQLITE_IOERR_READ)
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, data: *const c_void, size: c_int, at: i64) -> c_int {
    // SAFETY: `data` has `size` bytes.
    let (path, data) = unsafe { (path_of(file), std::slice::from_raw_parts(data.cast::<u8>(), size as usize)) };
    with_file(path, |file| file.change(Change::Write(at as usize, data.to_vec())))
        .map_or(ffi::SQLITE_IOERR_WRITE, |()| ffi::SQLITE_OK)
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, len: i64) -> c_int {
    // SAFETY: see `path_of`.
    with_file(unsafe { path_of(file) }, |file| file.change(Change::Truncate(len as usize)))
        .map_or(ffi::SQLITE_IOERR_TRUNCATE, |()| ffi::SQLITE_OK)
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: see `path_of`.
    with_file(unsafe { path_of(file) }, File::sync).map_or(ffi::SQLITE_IOERR_FSYNC, |()| ffi::SQLITE_OK)
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: see `path_of`; `size` is the place of the answer.
    unsafe {
        match with_file(path_of(file), |file| file.now.len()) {
            Some(len) => *size = len as i64,
            None => return ffi::SQLITE_IOERR_FSTAT,
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn lock(_: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_: *mut ffi::sqlite3_file, held: *mut c_int) -> c_int {
    // SAFETY: the place of the answer.
    unsafe { *held = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_: *mut ffi::sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut ffi::sqlite3_file) -> c_int {
    SECTOR as c_int
}

unsafe extern "C" fn device_characteristics(_: *mut ffi::sqlite3_file) -> c_int {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_takes_unsynced_commits_and_leaves_synced_ones() {
        let mut lost = 0;
        for seed in 0..20 {
            chance_for(seed);
            let disk = SimulatedDisk::new(Duration::ZERO);
            let connection = disk.open().unwrap();
            let insert = "INSERT INTO log (idx, entry) VALUES (?1, zeroblob(3000))";
            connection.execute(insert, [1]).unwrap();
            connection.pragma_update(None, "synchronous", "NORMAL").unwrap();
            connection.execute(insert, [2]).unwrap();
            connection.execute(insert, [3]).unwrap();
            let after = disk.crash();
            assert!(connection.execute(insert, [4]).is_err(), "the crashed disk takes nothing");
            drop(connection);
            let count: i64 = after.open().unwrap().query_row("SELECT max(idx) FROM log", [], |row| row.get(0)).unwrap();
            assert!(count >= 1, "what was synced is there");
            lost += 3 - count;
            after.discard();
        }
        chance::unseed();
        assert!(lost > 0, "some of what was not synced is gone");
    }

    fn chance_for(seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { chance::seed(seed) });
    }
}
