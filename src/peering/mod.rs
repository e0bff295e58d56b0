//! Joins the registry to the federation.
//!
//! | part | its job |
//! | --- | --- |
//! | [`accounts`] | accounts as the federation agrees on them |
//! | [`claims`] | who may take pushes for an account |
//! | [`records`] | users, robots, keys and accounts for the auth room |
//! | [`upstream`] | asks other regions for what is not here, and hands them what was pushed here |
//! | `forwarding` | hands writes to another region so that each is done once at most |
//! | [`content`] | answers other regions from what is here |
//! | `forwarded` | the writes of other regions' clients, each done once at most and not too late |
//! | [`succession`] | has another node become the primary of an account, and sees to it that it does |
//! | [`follow`] | follows other regions' changes, and tends the leases of this one's |
//! | `listed` | lists of an account's content, as its primary has them |
//! | `catalog` | whose accounts are where, and the lists of their repositories |
//! | [`backfill`] | keeps replicas whole that are to hold everything |
//! | `uploads` | upload sessions that another node holds |
//! | [`wait`] | has regions hold everything of an image |
//! | `described` | manifests in answers |
//! | `ending` | ends following what is gone |
//! | `messages` | the questions and answers between nodes |
//! | `parts` | parts of blobs as messages, without copies |
//! | `refusals` | what their refusals mean here |
//! | `silence` | which nodes are not waited for, since nothing comes from them |

pub mod accounts;
pub mod backfill;
mod catalog;
pub mod claims;
pub mod content;
mod described;
mod ending;
pub mod follow;
mod forwarded;
mod forwarding;
mod listed;
mod messages;
mod parts;
pub mod records;
mod refusals;
mod silence;
pub mod succession;
mod uploads;
pub mod upstream;
pub mod wait;
