/// Why settings are refused: one line that names the field at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SettingsError {
    /// The path of the field, for example `account.rbac_policies[2].match_cidr`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl SettingsError {
    /// The field `field`, given by its path from the root of the document, is at fault.
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: one_line(&reason.into()) }
    }
}

/// A text without line breaks and control characters, shortened to what fits an error message.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(500).collect()
}

/// Refuses the field `name` of what is at `place`.
pub(super) fn refuse<T>(place: &str, name: &str, reason: impl Into<String>) -> Result<T, SettingsError> {
    Err(SettingsError::new(format!("{place}.{name}"), reason))
}
