//! Who the caller is and what they may do.
//!
//! | file | its job |
//! | --- | --- |
//! | `identity`, `role` | names of callers; what a caller is by office |
//! | `records`, `user`, `robot` | what all regions share about them, as documents |
//! | `people` | making, changing and removing users and robots |
//! | `driver`, `open`, `htpasswd`, `local`, `oidc` | from credentials to an identity |
//! | `grants` | what the users of a password file are by office |
//! | `password`, `verdicts`, `turns` | slow hashes off the async threads; verdicts remembered for a short while; few checks at a time for each place |
//! | `scope`, `flow`, `challenge` | Docker's token flow, without HTTP |
//! | `keys`, `token` | signing, verifying, rotating, revoking |
//! | `access` | the one decision: roles and grants, less what is forbidden |
//! | `proof`, `caller` | what a request shows, and who it comes from therefore |
//! | `policy_cache` | accounts' policies, compiled once |
//! | `service`, `issuing` | the façade [`Auth`]: who, what they may do; and their tokens |
//!
//! Invariants: what no rule allows is denied; a forbidden permission wins over every grant; a repository that may not
//! be seen is refused exactly as one that does not exist; a token never allows more than its owner may do at the moment
//! of the request; no secret is kept, printed or compared except as a hash.
//!
//! Deliberately absent: HTTP, the federation (its records come through [`Records`]), what repositories hold.

mod access;
mod caller;
mod challenge;
mod driver;
mod error;
mod flow;
mod grants;
mod htpasswd;
mod identity;
mod issuing;
mod keys;
mod local;
#[cfg(test)]
mod matrix;
mod oidc;
mod open;
mod password;
mod people;
mod people_messages;
mod policy_cache;
mod proof;
mod records;
mod robot;
mod role;
mod scope;
mod service;
#[cfg(test)]
mod tests;
mod token;
mod turns;
mod user;
mod verdicts;

pub use access::{Access, AccountView, decide};
pub use caller::Caller;
pub use challenge::{Challenge, ChallengeError};
pub use driver::{AuthDriver, Credentials, Login, LoginHint, Standing};
pub use error::{AuthError, DocumentError, KeyError, TokenError};
pub use flow::{Grant, TokenRequest, TokenResponse, rfc3339};
pub use grants::HtpasswdGrant;
pub use htpasswd::{HtpasswdDriver, HtpasswdError};
pub use identity::{Identity, NameError, RobotName, UserName};
pub use keys::{IssuerKeyDocument, KeyOptions, KeyRing};
pub use local::LocalDriver;
pub use oidc::{
    GroupRule, OidcDriver, OidcError, OidcOptions, OidcSession, ProviderOptions, WorkloadRule, is_usable_url,
};
pub use open::OpenDriver;
pub use password::{PasswordHasher, PasswordOptions};
pub use people::{People, PeopleError};
pub use people_messages::{KeyInfo, Passphrase, PeopleAnswer, PeopleRequest, RobotInfo, UserInfo};
pub use proof::{PASSWORD_HEADER, Shown, USERNAME_HEADER};
pub use records::{AccountRecord, MemoryRecords, Record, RecordError, RecordKind, RecordOutcome, RecordStore, Records};
pub use robot::{RobotDocument, RobotScope};
pub use role::{Authority, Right, Role};
pub use scope::{Action, ActionSet, Resource, SCOPES_MAX, Scope, ScopeError};
pub use service::{Auth, AuthOptions};
pub use token::{Claims, ScopeClaim, TokenKind, TokenOptions, Tokens};
pub use user::{PersonalToken, UserDocument};
