use serde::{Deserialize, Serialize};

use super::error::refuse;
use super::rbac::optional_pattern;
use super::{PolicyDuration, SettingsError, null};

/// Says which images are deleted or kept. Earlier policies win.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcPolicy {
    /// Which repositories, without the account.
    #[serde(default, deserialize_with = "null::as_default")]
    pub match_repository: String,
    /// Which of them not.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub except_repository: String,
    /// Only images with such a tag.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub match_tag: String,
    /// No images with such a tag.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub except_tag: String,
    /// Only images without tags.
    #[serde(default, skip_serializing_if = "null::is_false", deserialize_with = "null::as_default")]
    pub only_untagged: bool,
    /// Only images of such an age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_constraint: Option<TimeConstraint>,
    /// What is done with them.
    pub action: GcAction,
}

/// What a policy does with the images it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GcAction {
    /// Deletes them.
    Delete,
    /// Keeps them, whatever later policies say.
    Protect,
}

/// Which images a policy is about, by time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeConstraint {
    /// Which time counts.
    pub on: TimestampField,
    /// The so many oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<u64>,
    /// The so many newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<u64>,
    /// Those older than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub older_than: Option<PolicyDuration>,
    /// Those newer than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newer_than: Option<PolicyDuration>,
}

/// A time that an image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestampField {
    /// When it was pushed.
    PushedAt,
    /// When it was last pulled; never counts as 1970.
    LastPulledAt,
}

impl GcPolicy {
    pub(super) fn check(&self, place: &str) -> Result<(), SettingsError> {
        if self.match_repository.is_empty() {
            return refuse(place, "match_repository", "must be set; \".*\" is every repository");
        }
        for (field, text) in [
            ("match_repository", &self.match_repository),
            ("except_repository", &self.except_repository),
            ("match_tag", &self.match_tag),
            ("except_tag", &self.except_tag),
        ] {
            optional_pattern(text, place, field)?;
        }
        for (field, text) in [("match_tag", &self.match_tag), ("except_tag", &self.except_tag)] {
            if self.only_untagged && !text.is_empty() {
                return refuse(place, field, "must not be set together with only_untagged: such images have no tag");
            }
        }
        match &self.time_constraint {
            Some(constraint) => constraint.check(&format!("{place}.time_constraint"), self.action),
            None => Ok(()),
        }
    }
}

impl TimeConstraint {
    fn check(&self, place: &str, action: GcAction) -> Result<(), SettingsError> {
        for (field, count) in [("oldest", self.oldest), ("newest", self.newest)] {
            if count.is_some() && action == GcAction::Delete {
                let reason = "cannot be used with the action \"delete\": each run would delete some more";
                return refuse(place, field, reason);
            }
            if count == Some(0) {
                return refuse(place, field, "must be at least 1");
            }
        }
        for (field, span) in [("older_than", self.older_than), ("newer_than", self.newer_than)] {
            span.map_or(Ok(()), |span| span.check(place, field))?;
        }
        match (self.oldest, self.newest, self.older_than, self.newer_than) {
            (None, None, None, None) => {
                refuse(place, "on", "one of oldest, newest, older_than and newer_than must be set")
            }
            (_, _, Some(older), Some(newer)) if older.as_seconds() >= newer.as_seconds() => {
                refuse(place, "newer_than", "must be longer than older_than: nothing is both")
            }
            _ => Ok(()),
        }
    }
}
