//! The federation as its operators and its clients meet it: real processes, the commands, the words, the bad days.

#[path = "../harness/mod.rs"]
mod harness;

mod commands;
mod cut_off;
mod delayed;
mod dev;
mod growth;
mod kills;
mod network;
mod partitions;
mod region;
mod witness;
mod world;
