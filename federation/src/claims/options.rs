//! The knobs of consensus, each with its default.

use std::time::Duration;

use super::model::NewMember;

/// How claims behave. The defaults suit regions up to some 200 ms apart.
#[derive(Debug, Clone)]
pub struct ClaimsOptions {
    /// On a first start with an empty database: found a federation of one with this member. None: wait to be admitted
    /// by others. Ignored on later starts.
    pub found: Option<NewMember>,
    /// How often the leader says that it lives.
    pub heartbeat_interval: Duration,
    /// A voter that hears nothing from a leader stands for election after a time chosen at random when it starts,
    /// between the middle of these two and the greater one. For half of the greater one it also refuses its vote to
    /// others, so that one node with a bad line does not unseat a leader.
    pub election_timeout_min: Duration,
    /// See [`Self::election_timeout_min`].
    pub election_timeout_max: Duration,
    /// How long a command or linearizable read may take altogether. A third of it is spent on waiting for a leader when
    /// no majority has been in contact for longer than an election takes.
    pub command_timeout: Duration,
    /// How many commands may wait to be decided on this node.
    pub commands_waiting_max: usize,
    /// How many log entries are decided between two compactions of the log.
    pub snapshot_interval_entries: u64,
    /// How many decided log entries are kept for nodes that were away for a while.
    pub log_entries_kept: u64,
    /// How many bytes the log may take: when it takes more, it is compacted early, and fewer entries are kept.
    pub log_size_max_bytes: u64,
    /// How many bytes of state travel in one piece of a snapshot.
    pub snapshot_piece_size_bytes: usize,
    /// How long the transfer of one piece may take.
    pub snapshot_piece_timeout: Duration,
    /// How many changes a watcher may lag behind before it is told to look at everything again.
    pub changes_buffered_max: usize,
    /// How often the leader looks whether other members should vote.
    pub voters_review_interval: Duration,
    /// How long a voter is out of reach before another member of the federation takes its vote.
    pub voter_absence_max: Duration,
    /// How often this node assures itself that a majority stands behind what it sees; zero: never.
    pub majority_contact_interval: Duration,
    /// Breaks a promise on purpose, so that the tests can show that they would notice.
    #[cfg(test)]
    pub(super) defect: Option<super::simulation::Defect>,
    /// Replaces the writer thread and the disk by simulated ones.
    #[cfg(test)]
    pub(super) simulated: Option<super::simulation::SimulatedDisk>,
}

impl Default for ClaimsOptions {
    fn default() -> Self {
        Self {
            found: None,
            heartbeat_interval: Duration::from_millis(500),
            election_timeout_min: Duration::from_millis(2500),
            election_timeout_max: Duration::from_millis(5000),
            command_timeout: Duration::from_millis(1500),
            commands_waiting_max: 4096,
            snapshot_interval_entries: 5000,
            log_entries_kept: 5000,
            log_size_max_bytes: 128 * 1024 * 1024,
            snapshot_piece_size_bytes: 512 * 1024,
            snapshot_piece_timeout: Duration::from_secs(10),
            changes_buffered_max: 1024,
            voters_review_interval: Duration::from_secs(2),
            voter_absence_max: Duration::from_secs(30),
            majority_contact_interval: Duration::from_secs(1),
            #[cfg(test)]
            defect: None,
            #[cfg(test)]
            simulated: None,
        }
    }
}

impl ClaimsOptions {
    /// The defaults, with times as short as a network within one machine allows: for tests.
    pub fn short() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(50),
            election_timeout_min: Duration::from_millis(250),
            election_timeout_max: Duration::from_millis(500),
            voters_review_interval: Duration::from_millis(100),
            voter_absence_max: Duration::from_secs(2),
            majority_contact_interval: Duration::from_millis(100),
            ..Self::default()
        }
    }
}
