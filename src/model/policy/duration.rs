use serde::{Deserialize, Serialize};

use super::SettingsError;
use super::error::refuse;

/// A span of time as policies write it: `{"value": 7, "unit": "d"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDuration {
    /// How many units.
    pub value: u64,
    /// The unit.
    pub unit: DurationUnit,
}

/// A unit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DurationUnit {
    /// Seconds.
    #[serde(rename = "s")]
    Second,
    /// Minutes.
    #[serde(rename = "m")]
    Minute,
    /// Hours.
    #[serde(rename = "h")]
    Hour,
    /// Days of 24 hours.
    #[serde(rename = "d")]
    Day,
    /// Weeks of 7 days.
    #[serde(rename = "w")]
    Week,
    /// Years of 365 days.
    #[serde(rename = "y")]
    Year,
}

impl DurationUnit {
    fn seconds(self) -> i64 {
        const DAY: i64 = 24 * 3600;
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
            Self::Day => DAY,
            Self::Week => 7 * DAY,
            Self::Year => 365 * DAY,
        }
    }
}

/// The longest span that a policy may name: what is longer was meant to be something else.
const LONGEST: PolicyDuration = PolicyDuration { value: 1000, unit: DurationUnit::Year };

impl PolicyDuration {
    pub(super) fn check(self, place: &str, field: &str) -> Result<(), SettingsError> {
        match self.as_seconds() > LONGEST.as_seconds() {
            true => refuse(place, &format!("{field}.value"), format!("is more than {} years", LONGEST.value)),
            false => Ok(()),
        }
    }

    /// The span in seconds; a span beyond what can be counted is the longest that can.
    pub fn as_seconds(self) -> i64 {
        i64::try_from(self.value).unwrap_or(i64::MAX).saturating_mul(self.unit.seconds())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_count_in_seconds() {
        let seconds = |text: &str| serde_json::from_str::<PolicyDuration>(text).unwrap().as_seconds();
        assert_eq!(seconds(r#"{"value":90,"unit":"s"}"#), 90);
        assert_eq!(seconds(r#"{"value":2,"unit":"m"}"#), 120);
        assert_eq!(seconds(r#"{"value":3,"unit":"h"}"#), 10_800);
        assert_eq!(seconds(r#"{"value":1,"unit":"w"}"#), 604_800);
        assert_eq!(seconds(r#"{"value":1,"unit":"y"}"#), 31_536_000);
        assert!(serde_json::from_str::<PolicyDuration>(r#"{"value":1,"unit":"month"}"#).is_err());
        assert!(serde_json::from_str::<PolicyDuration>(r#"{"value":-1,"unit":"d"}"#).is_err());
    }

    proptest! {
        #[test]
        fn no_duration_overflows(value in any::<u64>()) {
            let seconds = PolicyDuration { value, unit: DurationUnit::Year }.as_seconds();
            prop_assert!(seconds >= 0);
        }
    }
}
