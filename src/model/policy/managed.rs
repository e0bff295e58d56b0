//! A declarative file of accounts.

use keppel_federation::vocabulary::{AccountName, TenantId};
use serde_json::{Map, Value};

use super::{AccountSettings, SettingsError};

/// An account as a declarative file asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedAccount {
    /// Its name.
    pub name: AccountName,
    /// Who is billed and authorised.
    pub tenant: TenantId,
    /// Its settings.
    pub settings: AccountSettings,
    /// Its fields as the file has them, without the name.
    pub fields: Map<String, Value>,
}

/// Reads `{"accounts": [{"name": …, "auth_tenant_id": …, …}]}`, as JSON or as TOML: what begins with a brace is JSON. The
/// fields of an account are those of the API.
///
/// # Errors
/// The first field at fault, or what the text is instead of a file of accounts.
pub fn read_managed_accounts(text: &str) -> Result<Vec<ManagedAccount>, SettingsError> {
    let at_fault = |reason: String| SettingsError::new("accounts", reason);
    let document: Value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|error| at_fault(format!("are not in valid JSON: {error}")))?,
        false => {
            toml::from_str(text).map_err(|error| at_fault(format!("are not in valid TOML: {}", error.message())))?
        }
    };
    let Value::Object(mut document) = document else { return Err(at_fault("must be in an object".into())) };
    let accounts = match document.remove("accounts") {
        Some(Value::Array(accounts)) => accounts,
        Some(_) => return Err(at_fault("must be a list".into())),
        None => return Err(at_fault("are missing".into())),
    };
    if let Some(stranger) = document.keys().next() {
        return Err(SettingsError::new(stranger, "is not a field that is known here"));
    }
    let mut read: Vec<ManagedAccount> = Vec::with_capacity(accounts.len());
    for (at, account) in accounts.into_iter().enumerate() {
        let place = |field: &str| format!("accounts[{at}].{field}");
        let Value::Object(mut fields) = account else {
            return Err(SettingsError::new(format!("accounts[{at}]"), "must be an object"));
        };
        let text_of = |field: &str, fields: &mut Map<String, Value>, taken: bool| {
            let value = if taken { fields.remove(field) } else { fields.get(field).cloned() };
            match value {
                Some(Value::String(text)) => Ok(text),
                Some(_) => Err(SettingsError::new(place(field), "must be a text")),
                None => Err(SettingsError::new(place(field), "is missing")),
            }
        };
        let name = text_of("name", &mut fields, true)?;
        let tenant = text_of("auth_tenant_id", &mut fields, false)?;
        let name = AccountName::parse(&name).map_err(|error| SettingsError::new(place("name"), error.to_string()))?;
        let tenant =
            TenantId::parse(&tenant).map_err(|error| SettingsError::new(place("auth_tenant_id"), error.to_string()))?;
        if read.iter().any(|other| other.name == name) {
            return Err(SettingsError::new(place("name"), format!("{name} is there twice")));
        }
        let mut settings = fields.clone();
        settings.remove("auth_tenant_id");
        let settings = AccountSettings::from_request(Value::Object(settings))
            .map_err(|error| SettingsError::new(format!("accounts[{at}] ({name})"), error.to_string()))?;
        read.push(ManagedAccount { name, tenant, settings, fields });
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = "[[accounts]]\nname = \"acme\"\nauth_tenant_id = \"payer\"\n\
                    [[accounts.gc_policies]]\nmatch_repository = \".*\"\nonly_untagged = true\naction = \"delete\"\n";
        let json = r#"{"accounts": [{"name": "acme", "auth_tenant_id": "payer",
            "gc_policies": [{"match_repository": ".*", "only_untagged": true, "action": "delete"}]}]}"#;
        let read = read_managed_accounts(toml).unwrap();
        assert_eq!(read, read_managed_accounts(json).unwrap());
        assert_eq!((read.len(), read[0].name.as_str(), read[0].tenant.as_str()), (1, "acme", "payer"));
        assert_eq!(read[0].settings.gc_policies.len(), 1);
    }

    #[test]
    fn wrong_files_are_refused_with_the_field_at_fault() {
        for (text, fault) in [
            ("", "accounts"),
            ("{", "accounts"),
            ("accounts = 3", "accounts"),
            ("accounts = []\nother = 1", "other"),
            ("accounts = [3]", "accounts[0]"),
            ("[[accounts]]\nname = \"acme\"", "accounts[0].auth_tenant_id"),
            ("[[accounts]]\nname = \"-\"\nauth_tenant_id = \"t\"", "accounts[0].name"),
            (
                "[[accounts]]\nname = \"a\"\nauth_tenant_id = \"t\"\n[[accounts]]\nname = \"a\"\nauth_tenant_id = \"t\"",
                "accounts[1].name",
            ),
            ("[[accounts]]\nname = \"a\"\nauth_tenant_id = \"t\"\nx = 1", "accounts[0] (a)"),
        ] {
            let error = read_managed_accounts(text).unwrap_err().to_string();
            assert!(error.starts_with(fault), "{text}: {error}");
        }
    }
}
