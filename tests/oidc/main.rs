//! People and workloads of an OpenID Connect provider, against the real binary and a real provider, the package
//! `oidc-provider`, which `scripts/setup` puts into the build directory.

#[path = "../harness/mod.rs"]
mod harness;

mod client_commands;
mod clients;
mod login;
mod provider;
mod workloads;
