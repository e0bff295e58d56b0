//! The distribution API over HTTP, against the real binary: one module per part of the contract, one server per test.
//!
//! Statuses, headers and error codes are those of the OCI Distribution Spec and of Docker's registry API; each test fails
//! when its part of the contract is broken.

#[path = "../harness/mod.rs"]
mod harness;

mod authentication;
mod blobs;
mod catalog;
mod deletes;
mod hostile;
mod limits;
mod manifest_pull;
mod manifest_push;
mod manifest_refused;
mod names;
mod properties;
mod referrers;
mod tags;
mod uploads;
mod uploads_resume;
