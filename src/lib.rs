//! The Keppel registry.
