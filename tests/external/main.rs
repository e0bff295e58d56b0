//! Accounts that mirror a registry outside the federation: against one that does what a test wants, against Debian's
//! docker-registry, and with a real client.

#[path = "../harness/mod.rs"]
mod harness;

mod access;
mod blobs;
mod limited;
mod login;
mod manifests;
mod programs;
mod secured;
mod site;
