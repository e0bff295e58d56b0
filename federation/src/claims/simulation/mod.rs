//! A federation on simulated networks, disks and clocks, driven through faults by a seed, and a checker of what its
//! clients saw.

mod chance;
mod disk;

pub(super) use chance::{ElectionRng, simulated_now_ms};
pub(super) use disk::SimulatedDisk;

/// A promise broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Defect {
    /// Log entries and votes are acknowledged before they are on disk, and never synced.
    AcknowledgeBeforeSync,
    /// A leader takes silence for consent.
    CountMinority,
    /// A leader answers linearizable reads without asking whether it still leads.
    UnconfirmedReads,
}
