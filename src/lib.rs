//! The Keppel registry.

pub mod storage;
