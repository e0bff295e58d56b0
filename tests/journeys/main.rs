//! Journeys with real programs: each pushes, pulls into a clean store and compares digests, against the real binary.
//!
//! The programs run with their own private stores and sockets below a temporary directory. A program that is missing makes
//! its journey fail, with the way to install it.

#[path = "../harness/mod.rs"]
mod harness;

mod artifacts;
mod buildah;
mod containerd;
mod docker;
mod large;
mod login;
mod podman;
mod roles;
mod skopeo;
