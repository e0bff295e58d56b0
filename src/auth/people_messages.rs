//! What operators ask about users, robots and keys, and the answers: plain data.

use std::collections::BTreeMap;

use keppel_federation::vocabulary::{NodeId, TenantId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Action, RobotScope, Role};
use crate::model::policy::Secret;

/// A secret on its way between an operator and the node. It is written in full and prints as `***`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passphrase(pub Secret);

impl Serialize for Passphrase {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.reveal())
    }
}

impl<'de> Deserialize<'de> for Passphrase {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

/// What an operator asks about users, robots, and the keys that tokens are signed with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeopleRequest {
    /// Make a user.
    AddUser {
        /// The name.
        name: String,
        /// The password; without one, the user cannot log in with one.
        password: Option<Passphrase>,
        /// Whether they run the registry.
        operator: bool,
        /// The role in each tenant.
        roles: BTreeMap<TenantId, Role>,
    },
    /// Give a user another password; all their tokens end.
    SetPassword {
        /// The name.
        name: String,
        /// The password.
        password: Passphrase,
    },
    /// Give a user a role in a tenant, or take it away.
    SetRole {
        /// The name.
        name: String,
        /// The tenant.
        tenant: TenantId,
        /// The role.
        role: Option<Role>,
    },
    /// Decide whether a user runs the registry.
    SetOperator {
        /// The name.
        name: String,
        /// Whether they do.
        operator: bool,
    },
    /// Decide whether a user may log in.
    SetDisabled {
        /// The name.
        name: String,
        /// Whether they may not.
        disabled: bool,
    },
    /// Make a personal token for a user.
    AddToken {
        /// The name.
        name: String,
        /// What it is for.
        description: String,
        /// The most that may be done with it.
        actions: Vec<Action>,
        /// How long it is good, in seconds.
        lifetime_seconds: Option<i64>,
    },
    /// End all tokens of a user, or one.
    RevokeTokens {
        /// The name.
        name: String,
        /// The personal token.
        id: Option<String>,
    },
    /// Remove a user.
    RemoveUser {
        /// The name.
        name: String,
    },
    /// List users.
    ListUsers,
    /// Make a robot.
    AddRobot {
        /// The name: `<tenant>+<name>`.
        name: String,
        /// What it is for.
        description: String,
        /// What it may do.
        scopes: Vec<RobotScope>,
        /// How long it is good, in seconds.
        lifetime_seconds: Option<i64>,
    },
    /// Give a robot a new secret.
    RotateRobot {
        /// The name.
        name: String,
        /// How long the one before stays good, in seconds.
        overlap_seconds: i64,
    },
    /// End all secrets and tokens of a robot.
    RevokeRobot {
        /// The name.
        name: String,
    },
    /// Remove a robot.
    RemoveRobot {
        /// The name.
        name: String,
    },
    /// List robots.
    ListRobots,
    /// List the public keys whose tokens are good.
    ListKeys,
    /// End all tokens that were signed with a key, in all regions; its node signs with another one from then on.
    RevokeKey {
        /// Its id, or its own name in it.
        id: String,
    },
}

/// What came of a [`PeopleRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeopleAnswer {
    /// It is done.
    Done,
    /// It is done, and this is the secret, which is shown this once.
    Secret {
        /// Names it, where it can be revoked by that.
        id: Option<String>,
        /// The secret.
        secret: Passphrase,
    },
    /// The users.
    Users(Vec<UserInfo>),
    /// The robots.
    Robots(Vec<RobotInfo>),
    /// The keys.
    Keys(Vec<KeyInfo>),
}

/// A user, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserInfo {
    /// The name.
    pub name: String,
    /// Whether they run the registry.
    pub operator: bool,
    /// Whether they may not log in.
    pub disabled: bool,
    /// The role in each tenant.
    pub roles: BTreeMap<TenantId, Role>,
    /// Their personal tokens: id and description.
    pub tokens: Vec<(String, String)>,
}

/// A robot, as far as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RobotInfo {
    /// The name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What it may do.
    pub scopes: Vec<RobotScope>,
    /// When it ends, in UNIX seconds.
    pub expires_at: Option<i64>,
}

/// A key that tokens are signed with, as far as it is shown. Times are UNIX seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    /// Its id, as tokens name it.
    pub id: String,
    /// The node that signs with it; none: an older version published it, and its tokens are refused.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// When it was made.
    pub created_at: i64,
    /// When the last token it may have signed is over.
    pub expires_at: i64,
    /// Whether its tokens are refused already.
    pub revoked: bool,
}
