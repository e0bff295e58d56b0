//! The bad days: the server killed amid pushes, the disk full, clients that vanish.

#[path = "../harness/mod.rs"]
mod harness;

mod crash;
mod full_disk;
mod janitor_kills;
mod janitor_load;
mod scale;
mod vanishing_clients;
