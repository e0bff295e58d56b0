//! Looking at the claims of a token, which are any JSON.

use serde_json::{Map, Value};

/// What a token says.
pub(super) type ClaimSet = Map<String, Value>;

/// The most values of one claim that are looked at.
const VALUES_MAX: usize = 1024;

/// A claim by its name. A dot may be part of a name or lead into an object: `kubernetes.io.namespace` finds
/// `{"kubernetes.io": {"namespace": …}}`.
pub(super) fn find<'a>(claims: &'a ClaimSet, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    name.match_indices('.').find_map(|(at, _)| find(claims.get(&name[..at])?.as_object()?, &name[at + 1..]))
}

/// The values of a claim as texts: one, or those of a list. Objects and nested lists have none.
pub(super) fn texts(claims: &ClaimSet, name: &str) -> Vec<String> {
    match find(claims, name) {
        Some(Value::Array(items)) => items.iter().take(VALUES_MAX).filter_map(text).collect(),
        Some(value) => text(value).into_iter().collect(),
        None => Vec::new(),
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A claim that must be a text of its own.
pub(super) fn one<'a>(claims: &'a ClaimSet, name: &str) -> Option<&'a str> {
    find(claims, name)?.as_str()
}

/// A time in UNIX seconds; fractions are cut off.
///
/// Source: RFC 7519, "NumericDate".
pub(super) fn time(claims: &ClaimSet, name: &str) -> Option<i64> {
    let value = claims.get(name)?;
    value.as_i64().or_else(|| value.as_f64().filter(|seconds| seconds.abs() < 1e15).map(|seconds| seconds as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_are_found_with_dots_in_names_and_between_them() {
        let claims = json!({
            "sub": "me", "n": 5, "b": true, "a.b": "whole", "a": {"b": "inside", "c": ["x", 1, {"y": 2}, null]},
            "kubernetes.io": {"namespace": "ci", "serviceaccount": {"name": "builder"}},
        });
        let claims = claims.as_object().unwrap();
        let texts = |name| texts(claims, name);
        assert_eq!(texts("a.b"), ["whole"]);
        assert_eq!(texts("a.c"), ["x", "1"]);
        assert_eq!(texts("kubernetes.io.serviceaccount.name"), ["builder"]);
        assert_eq!((texts("n"), texts("b")), (vec!["5".to_owned()], vec!["true".to_owned()]));
        for absent in ["", ".", "a", "a.", "a.d", "sub.x", "kubernetes.io", "kubernetes.io."] {
            assert!(texts(absent).is_empty(), "{absent}");
        }
        let times = json!({"exp": 12.9, "nbf": "12", "iat": 1e300, "past": -5});
        let times = times.as_object().unwrap();
        assert_eq!((time(times, "exp"), time(times, "nbf"), time(times, "iat")), (Some(12), None, None));
        assert_eq!(time(times, "past"), Some(-5));
    }
}
