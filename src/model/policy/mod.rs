//! What an account's owners decide about it: who may do what, what may be pushed, what is kept, where it comes from.
//!
//! An [`AccountSettings`] is the JSON document of the contract. It is checked when it is written, with texts that name
//! the field at fault, and compiled into [`CompiledPolicies`] when it is used. Compilation and every decision take
//! bounded time: patterns run in linear time, expressions have bounded size and nesting.
//!
//! Deliberately absent: who the caller is and which roles they have (auth), when it is looked for images to remove (janitor).

mod compiled;
mod document;
mod duration;
mod error;
mod external;
mod lifecycle;
mod managed;
mod null;
mod pattern;
mod rbac;
mod replica;
mod replication;
mod retention;
mod scan;
mod secret;
mod settings;
mod tags;
#[cfg(test)]
mod tests;
mod validation;

pub use compiled::{CompiledPolicies, RbacVerdict};
pub use duration::{DurationUnit, PolicyDuration};
pub use error::SettingsError;
pub use external::ExternalSource;
pub use lifecycle::{GcAction, GcPolicy, TimeConstraint, TimestampField};
pub use managed::{ManagedAccount, read_managed_accounts};
pub use pattern::{PATTERN_BYTES_MAX, Pattern, PatternError};
pub use rbac::{Permission, PermissionSet, RbacPolicy};
pub use replica::ReplicaSettings;
pub use replication::{PlatformFilter, Replication, Upstream};
pub use retention::{GcStatus, ImageFacts, RECENT_UPLOAD_SECONDS, Reason, Retention, Verdict};
pub use scan::{ScanAction, ScanPolicy, ScanSeverity};
pub use secret::Secret;
pub use settings::{AccountSettings, Ack, COPIES_MAX, POLICIES_MAX};
pub use tags::{TagPolicy, TagProtection};
pub use validation::{LAYERS_MAX, ManifestFacts, ManifestRule, RULE_BYTES_MAX, Validation};
