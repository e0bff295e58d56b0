//! Tables for people, JSON for programs.

use serde_json::Value;

use super::super::federation_tables::table;
use super::super::{Failure, say};

/// Prints JSON, or else the table that `rows` makes of it.
pub(super) fn print<const N: usize>(
    json: bool,
    document: &Value,
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), Failure> {
    match json {
        true => print_json(document),
        false => say(&table(head, rows.into_iter())),
    }
}

/// Prints JSON.
pub(super) fn print_json(document: &Value) -> Result<(), Failure> {
    say(&format!("{}\n", serde_json::to_string_pretty(document).unwrap_or_default()))
}

/// Prints a document as lines of `name  value`, nested ones as JSON.
pub(super) fn print_fields(json: bool, document: &Value) -> Result<(), Failure> {
    let Some(fields) = document.as_object().filter(|_| !json) else { return print_json(document) };
    let width = fields.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    let lines = fields.iter().map(|(name, value)| match value {
        Value::Array(items) if items.is_empty() => format!("{name:width$}  -\n"),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(cell).collect();
            format!("{name:width$}  {}\n", items.join(&format!("\n{:width$}  ", "")))
        }
        value => format!("{name:width$}  {}\n", cell(value)),
    });
    say(&lines.collect::<String>())
}

/// A value on one line. What could move a terminal's cursor is left out.
pub(super) fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A field of a document on one line.
pub(super) fn field(document: &Value, name: &str) -> String {
    cell(document.get(name).unwrap_or(&Value::Null))
}

/// How many a list has.
pub(super) fn count(document: &Value, name: &str) -> String {
    document.get(name).and_then(Value::as_array).map_or(0, Vec::len).to_string()
}

/// A size in bytes as people read it.
pub(super) fn size(value: Option<&Value>) -> String {
    let Some(bytes) = value.and_then(Value::as_u64) else { return "-".to_owned() };
    let (mut amount, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") }
}

/// A UNIX time as people read it, in UTC.
pub(super) fn time(value: Option<&Value>) -> String {
    match value.and_then(Value::as_i64) {
        Some(seconds) => crate::auth::rfc3339(seconds),
        None => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_times_and_cells_are_for_people() {
        assert_eq!(size(Some(&json!(1023))), "1023 B");
        assert_eq!(size(Some(&json!(1536))), "1.5 KiB");
        assert_eq!(size(Some(&json!(5_u64 << 40))), "5.0 TiB");
        assert_eq!((size(None), time(Some(&json!(null)))), ("-".to_owned(), "never".to_owned()));
        assert_eq!(time(Some(&json!(0))), "1970-01-01T00:00:00Z");
        assert_eq!(cell(&json!("a\u{1b}[1mb\n")), "a[1mb");
        assert_eq!(field(&json!({"a": ""}), "a"), "-");
        assert_eq!(count(&json!({"a": [1, 2]}), "a"), "2");
    }
}
