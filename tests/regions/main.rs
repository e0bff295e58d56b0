//! Content between regions: real processes that form a federation over QUIC, and what their clients see.

#[path = "../harness/mod.rs"]
mod harness;

mod answers;
mod bandwidth;
mod copies;
mod damage;
mod eager;
mod faults;
mod federation;
mod full;
mod healing;
mod histories;
mod hosts;
mod leases;
mod liars;
mod lists;
mod losses;
mod mirrors;
mod moves;
mod pulls;
mod pushes;
mod reused;
mod sources;
mod sync;
mod uploads;
mod versions;
mod waiting;
