//! What the server really keeps: the files of its storage against the rows that name them.
//!
//! It reads the layout `storage/<account>/{uploads/<id>, blobs/<xx>/<key>[.outboard]}` and the tables `blobs` and `uploads`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags};

/// Files and rows that do not match.
#[derive(Debug, Default)]
pub struct Mismatch {
    /// Files that no row names.
    pub unreferenced: Vec<PathBuf>,
    /// Names in rows that have no file.
    pub lost: Vec<String>,
}

/// Compares the files with the rows, as they are now.
pub fn mismatch(data: &Path) -> Mismatch {
    let names = |sql: &str| -> BTreeSet<String> {
        let database = Connection::open_with_flags(data.join("metadata.db"), OpenFlags::SQLITE_OPEN_READ_WRITE)
            .expect("the metadata can be opened");
        database.busy_timeout(Duration::from_secs(10)).expect("a timeout can be set");
        let mut statement = database.prepare(sql).expect("the table is there");
        let rows = statement.query_map([], |row| row.get(0)).expect("the table can be read");
        rows.map(|name| name.expect("a name is text")).collect()
    };
    // Files first: a row that comes in between then has its file already, or is not looked for.
    let files = files(&data.join("storage"));
    let (blobs, uploads) = (names("SELECT storage_key FROM blobs"), names("SELECT id FROM uploads"));
    let (mut result, mut seen) = (Mismatch::default(), BTreeSet::new());
    for path in files {
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        let in_uploads = path.parent().is_some_and(|folder| folder.ends_with("uploads"));
        let key = name.trim_end_matches(".outboard").to_owned();
        if !if in_uploads { uploads.contains(&name) } else { blobs.contains(&key) } {
            result.unreferenced.push(path);
        } else if name == key {
            seen.insert(key);
        }
    }
    result.lost = blobs.into_iter().filter(|key| !seen.contains(key)).collect();
    result
}

/// How many blobs have rows.
pub fn blob_rows(data: &Path) -> usize {
    let database = Connection::open_with_flags(data.join("metadata.db"), OpenFlags::SQLITE_OPEN_READ_WRITE)
        .expect("the metadata can be opened");
    database.busy_timeout(Duration::from_secs(10)).expect("a timeout can be set");
    let count = database.query_row("SELECT count(*) FROM blobs", [], |row| row.get::<_, i64>(0));
    usize::try_from(count.expect("the table is there")).expect("no count is negative")
}

/// Waits until the sweep has taken every unreferenced file; fails when a blob has a row and no bytes.
pub fn wait_until_swept(data: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let found = mismatch(data);
        if found.unreferenced.is_empty() {
            assert!(found.lost.is_empty(), "rows without bytes: {:?}", found.lost);
            return;
        }
        assert!(Instant::now() < deadline, "not swept: {:?}", found.unreferenced);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}
