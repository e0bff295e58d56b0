//! The HTTP side of a node: the server, and what it serves.
//!
//! | part | its job |
//! | --- | --- |
//! | [`serve`] | sockets, TLS, connections, deadlines, shutdown |

pub mod serve;

mod error;
mod options;

pub use options::ApiOptions;
