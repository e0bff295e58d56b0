use serde::{Deserialize, Serialize};

/// What one run of a task did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunReport {
    /// How many things were looked at.
    pub looked_at: u64,
    /// How many were deleted, ended or repaired; in a dry run: would be.
    pub changed: u64,
    /// How many bytes were given back; in a dry run: would be.
    pub reclaimed_bytes: u64,
    /// How many are not what they should be.
    pub faults: u64,
    /// What there is to say, line by line, [`LINES_MAX`] at most.
    pub lines: Vec<String>,
    /// Whether there was more to say.
    pub truncated: bool,
}

/// The most lines of a report.
pub const LINES_MAX: usize = 10_000;

impl RunReport {
    /// Adds a line, while there is room.
    pub(super) fn say(&mut self, line: String) {
        match self.lines.len() < LINES_MAX {
            true => self.lines.push(line),
            false => self.truncated = true,
        }
    }

    /// Adds what another run did.
    pub(super) fn add(&mut self, other: Self) {
        self.looked_at += other.looked_at;
        self.changed += other.changed;
        self.reclaimed_bytes += other.reclaimed_bytes;
        self.faults += other.faults;
        self.truncated |= other.truncated;
        other.lines.into_iter().for_each(|line| self.say(line));
    }
}

/// How a task fares, since the node was started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TaskStatus {
    /// Its name.
    pub task: String,
    /// Between two looks at the same thing, or two runs, in seconds.
    pub interval_seconds: u64,
    /// How many things are due.
    pub due: Option<u64>,
    /// For how long the one has been due that waits for longest, in seconds.
    pub oldest_due_seconds: Option<u64>,
    /// How often it ran, or looked at something.
    pub runs: u64,
    /// How often that failed.
    pub failures: u64,
    /// How many things it deleted, ended or repaired.
    pub changed: u64,
    /// How many bytes it gave back.
    pub reclaimed_bytes: u64,
    /// When it last ran, in UNIX seconds.
    pub last_run_at: Option<i64>,
    /// Why it last failed, if the last run did.
    pub last_error: Option<String>,
}

/// An account that is being deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletingAccount {
    /// Its name.
    pub account: String,
    /// How many manifests are left.
    pub manifests: u64,
    /// How many bytes are left.
    pub size_bytes: u64,
    /// What is in the way, if anything is.
    pub waits_for: Option<String>,
}

/// How the janitor fares.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JanitorStatus {
    /// Each task.
    pub tasks: Vec<TaskStatus>,
    /// Accounts on their way out.
    pub deleting: Vec<DeletingAccount>,
    /// Blobs whose bytes are known to be lost or wrong.
    pub broken_blobs: u64,
    /// Manifests that are known not to be what they should be.
    pub invalid_manifests: u64,
}

/// How far a scrub of an account has come.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ScrubProgress {
    /// Its account.
    pub account: String,
    /// Blobs there are.
    pub blobs_total: u64,
    /// Blobs that were looked at.
    pub blobs_done: u64,
    /// Bytes there are.
    pub bytes_total: u64,
    /// Bytes that were read.
    pub bytes_done: u64,
    /// Manifests that were looked at.
    pub manifests_done: u64,
    /// Blobs that were lost or wrong.
    pub bad: u64,
    /// How many of them are right again.
    pub healed: u64,
    /// What was found, and the images that are affected by what could not be healed.
    pub lines: Vec<String>,
    /// Whether it has ended.
    pub done: bool,
    /// Why it ended early, if it did.
    pub error: Option<String>,
}
