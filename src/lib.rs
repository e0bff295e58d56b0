//! The Keppel registry: one binary that serves container images, alone or as a region of a federation.
//!
//! A room uses rooms on lower floors only; `ARCHITECTURE.md` has the list of floors and says why.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod config;
pub mod external;
pub mod janitor;
pub mod metadata;
pub mod model;
pub mod peering;
pub mod registry;
pub mod storage;
