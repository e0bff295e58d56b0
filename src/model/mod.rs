//! What images, manifests and the policies of accounts are: pure data and rules, no I/O.
//!
//! Bytes from clients are read here into types that can be trusted. The original bytes are kept and served; nothing is
//! ever serialised again.

mod clock;
mod descriptor;
mod image_config;
mod manifest;
mod media_type;
pub mod policy;
mod set_sum;
mod shares;

pub use clock::{Clock, ManualClock, SystemClock};
pub use descriptor::Descriptor;
pub use image_config::ImageConfig;
pub use manifest::{ManifestDescription, ManifestError};
pub use media_type::ManifestKind;
pub use set_sum::SetSum;
pub use shares::{Share, Shares};

pub use keppel_federation::vocabulary::uptime;
