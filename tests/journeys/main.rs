//! Journeys with real programs: each pushes, pulls into a clean store and compares digests, against the real binary.
//!
//! The programs run with their own private stores and sockets below a temporary directory. A program that is missing makes
//! its journey fail, with the way to install it.

#[path = "../harness/mod.rs"]
mod harness;

/// Three regions as processes, as the tests of content between regions have them.
#[path = "../regions/federation.rs"]
#[allow(dead_code, reason = "written for more than these journeys")]
mod federation;

mod artifacts;
mod buildah;
mod containerd;
mod demo;
mod docker;
mod large;
mod login;
mod podman;
mod regions;
mod roles;
mod skopeo;
