//! Reading JSON documents so that every refusal names the path of the field at fault.

use super::SettingsError;

/// What becomes of fields that nobody knows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    Refused,
    Allowed,
}

/// Reads a document; errors name the path of the field.
pub(super) fn read<T: serde::de::DeserializeOwned>(
    root: &str,
    value: serde_json::Value,
    unknown: Unknown,
) -> Result<T, SettingsError> {
    if !value.is_object() {
        return Err(SettingsError::new(if root.is_empty() { "body" } else { root }, "must be an object"));
    }
    let misshapen = match unknown {
        Unknown::Refused => misshapen(root, root, &value),
        Unknown::Allowed => None,
    };
    let mut stranger = None;
    let mut note = |path: serde_ignored::Path<'_>| {
        stranger.get_or_insert_with(|| render(&path));
    };
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = T::deserialize(serde_ignored::Deserializer::new(tracked, &mut note));
    let place = |path: &str| match (root, path) {
        (root, "" | ".") => root.to_owned(),
        ("", path) => path.to_owned(),
        (root, path) => format!("{root}.{path}"),
    };
    match (result, stranger) {
        (Err(error), _) => {
            let (path, reason) = (track.path().to_string(), error.to_string());
            Err(name_missing(&place(&path), &reason))
        }
        (Ok(_), Some(path)) if unknown == Unknown::Refused => {
            Err(SettingsError::new(place(&path), "is not a field that is known here"))
        }
        (Ok(document), _) => misshapen.map_or(Ok(document), Err),
    }
}

/// The fields that are lists of objects.
const LISTS_OF_OBJECTS: [&str; 5] = ["rbac_policies", "gc_policies", "tag_policies", "platform_filter", "policies"];
/// The fields that are lists of texts.
const LISTS_OF_TEXTS: [&str; 5] =
    ["permissions", "forbidden_permissions", "required_labels", "os.features", "features"];
/// The fields that are objects; of scan policies also `action`.
const OBJECTS: [&str; 6] = ["validation", "replication", "upstream", "time_constraint", "older_than", "newer_than"];

/// A value that is a list where none belongs, or an object. What serde makes of documents takes a list for an object whose
/// fields are in that order, and an object for one of several words.
fn misshapen(root: &str, place: &str, value: &serde_json::Value) -> Option<SettingsError> {
    use serde_json::Value;
    let fault = |place: &str, what: &str| Some(SettingsError::new(place, format!("must {what}")));
    value.as_object()?.iter().find_map(|(key, value)| {
        let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
        let holds_objects = LISTS_OF_OBJECTS.contains(&key.as_str());
        match value {
            Value::Array(items) if holds_objects || LISTS_OF_TEXTS.contains(&key.as_str()) => {
                items.iter().enumerate().find_map(|(at, item)| match (holds_objects, item.is_object()) {
                    (true, true) => misshapen(root, &format!("{place}[{at}]"), item),
                    (true, false) => fault(&format!("{place}[{at}]"), "be an object"),
                    (false, _) => (!item.is_string()).then(|| fault(&format!("{place}[{at}]"), "be a text"))?,
                })
            }
            Value::Array(_) => fault(&place, "not be a list"),
            Value::Object(_) if OBJECTS.contains(&key.as_str()) || (root.is_empty() && key == "action") => {
                misshapen(root, &place, value)
            }
            Value::Object(_) => fault(&place, "not be an object"),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        }
    })
}

/// A missing field is reported at the object that lacks it; its own path says more.
fn name_missing(place: &str, reason: &str) -> SettingsError {
    let reason = &in_words(reason);
    let missing = reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
    match missing {
        Some(field) if place.is_empty() => SettingsError::new(field, "is missing"),
        Some(field) => SettingsError::new(format!("{place}.{field}"), "is missing"),
        None if place.is_empty() => SettingsError::new("body", reason),
        None => SettingsError::new(place, reason),
    }
}

/// A reason without the names of our types.
fn in_words(reason: &str) -> String {
    let words = [
        ("u64", "a whole number that is not negative"),
        ("u32", "a whole number that is not negative"),
        ("u8", "a small whole number"),
        ("a string", "a text"),
        ("a boolean", "true or false"),
        ("a sequence", "a list"),
    ];
    match words.iter().find_map(|(name, words)| Some((reason.strip_suffix(&format!("expected {name}"))?, words))) {
        Some((found, words)) => format!("{found}expected {words}"),
        None => reason.to_owned(),
    }
}

fn render(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", render(parent)),
        Path::Map { parent, key } => match render(parent) {
            outer if outer.is_empty() => key.clone(),
            outer => format!("{outer}.{key}"),
        },
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => render(parent),
    }
}

#[cfg(test)]
mod tests {
    use super::super::AccountSettings;
    use serde_json::json;

    #[test]
    fn lists_and_objects_stand_only_where_they_belong() {
        for (fields, place) in [
            (json!({"validation": []}), "account.validation"),
            (json!({"rbac_policies": [["a", "b", "10.0.0.0/8", ["pull"], []]]}), "account.rbac_policies[0]"),
            (json!({"gc_policies": [[".*", "", "", "", false, null, "delete"]]}), "account.gc_policies[0]"),
            (
                json!({"gc_policies": [{"match_repository": ".*", "action": {"delete": null}}]}),
                "account.gc_policies[0].action",
            ),
            (
                json!({"gc_policies": [{"match_repository": ".*", "action": "delete",
                    "time_constraint": {"on": "pushed_at", "older_than": [1, "s"]}}]}),
                "account.gc_policies[0].time_constraint.older_than",
            ),
        ] {
            let error = AccountSettings::from_request(fields).unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
        }
    }
}
