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
        (Ok(document), _) => Ok(document),
    }
}

/// A missing field is reported at the object that lacks it; its own path says more.
fn name_missing(place: &str, reason: &str) -> SettingsError {
    let missing = reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
    match missing {
        Some(field) if place.is_empty() => SettingsError::new(field, "is missing"),
        Some(field) => SettingsError::new(format!("{place}.{field}"), "is missing"),
        None if place.is_empty() => SettingsError::new("body", reason),
        None => SettingsError::new(place, reason),
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
