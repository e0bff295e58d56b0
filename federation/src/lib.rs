//! What happens between the regions of a Keppel federation.
//!
//! This crate knows nodes, regions, accounts and claims. It deliberately knows no HTTP and nothing of what an image
//! means: the registry that hosts it gives meaning to the content.
//!
//! | room | its job |
//! | --- | --- |
//! | [`vocabulary`] | names, digests and identifiers, parsed once at the border |
//! | [`transport`] | requests and datagrams between authenticated nodes |

pub mod transport;
pub mod vocabulary;
