//! What the integration tests share: the real server as a process, an HTTP client, made-up images, guarded daemons.
//!
//! Everything here is real: the binary under test, sockets, files. There are no mocks. Whatever is started is stopped and
//! whatever is written is removed when its value is dropped, also when a test panics.

#![allow(dead_code, unused_imports, reason = "every test binary compiles this module and none uses all of it")]

pub mod client;
pub mod disk;
pub mod docker;
pub mod images;
pub mod layout;
pub mod operator;
pub mod process;
pub mod server;
pub mod small_disk;
pub mod upstream;

pub use client::{Answer, Client};
pub use images::{Artifact, Content, Image, ImageBuilder, Index, Kind};
pub use operator::Operator;
pub use server::Server;
pub use upstream::{Reply, Upstream};
