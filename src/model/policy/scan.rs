use serde::{Deserialize, Serialize};

use super::error::refuse;
use super::rbac::optional_pattern;
use super::{SettingsError, null};

/// The longest assessment, in bytes.
const ASSESSMENT_BYTES_MAX: usize = 1024;
/// Stands for whoever writes the policy.
const REQUESTER: &str = "$REQUESTER";

/// Overrides what a scanner reports. The first policy that matches wins; an empty field matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScanPolicy {
    /// Only this user may change the policy.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub managed_by_user: String,
    /// Which repositories, without the account.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub match_repository: String,
    /// Which of them not.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub except_repository: String,
    /// Which vulnerabilities.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub match_vulnerability_id: String,
    /// Which of them not.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub except_vulnerability_id: String,
    /// Not those for which a fix is out.
    #[serde(skip_serializing_if = "null::is_false", deserialize_with = "null::as_default")]
    pub except_fix_released: bool,
    /// What is made of them.
    pub action: ScanAction,
}

/// What is made of a vulnerability.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ScanAction {
    /// Why, for people.
    #[serde(deserialize_with = "null::as_default")]
    pub assessment: String,
    /// It does not count.
    #[serde(skip_serializing_if = "null::is_false", deserialize_with = "null::as_default")]
    pub ignore: bool,
    /// It counts as this severe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<ScanSeverity>,
}

/// How severe a vulnerability is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ScanSeverity {
    /// Low.
    Low,
    /// Medium.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

impl ScanPolicy {
    /// Puts the name of the writer where the policy asks for it.
    pub fn resolve_requester(&mut self, username: &str) {
        if self.managed_by_user == REQUESTER {
            username.clone_into(&mut self.managed_by_user);
        }
    }

    pub(super) fn check(&self, place: &str) -> Result<(), SettingsError> {
        for (field, text) in [
            ("match_repository", &self.match_repository),
            ("except_repository", &self.except_repository),
            ("match_vulnerability_id", &self.match_vulnerability_id),
            ("except_vulnerability_id", &self.except_vulnerability_id),
        ] {
            optional_pattern(text, place, field)?;
        }
        let action = &self.action;
        if self.managed_by_user.len() > 256 {
            return refuse(place, "managed_by_user", "is longer than 256 bytes");
        }
        if action.assessment.len() > ASSESSMENT_BYTES_MAX {
            return refuse(place, "action.assessment", format!("is longer than {ASSESSMENT_BYTES_MAX} bytes"));
        }
        match (action.ignore, action.severity) {
            (true, Some(_)) => refuse(place, "action.severity", "must not be set together with ignore"),
            (false, None) => refuse(place, "action", "must set ignore or severity"),
            _ => Ok(()),
        }
    }
}
