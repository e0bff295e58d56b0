use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// The routes there are: those of the router, and those that `keppel` takes apart itself, whose paths stand in the words
/// of its endpoints.
fn routes() -> BTreeSet<String> {
    let of_keppel = include_str!("../keppel/path.rs").lines().filter_map(|line| {
        let path = line.trim().strip_prefix("/// `")?.split('`').next()?;
        let path = path.split('?').next()?.replace('…', "/keppel/v1/accounts/<name>");
        path.starts_with("/keppel/v1").then_some(path)
    });
    let of_router = include_str!("../mod.rs").lines().filter_map(|line| {
        let path = line.trim().strip_prefix(".route(\"")?.split('"').next()?;
        (path.starts_with("/keppel/v1") && !path.contains('*')).then(|| path.to_owned())
    });
    let token = super::super::access::TOKEN_PATH.to_owned();
    of_keppel.chain(of_router).chain([token]).map(|path| anonymous(&path)).collect()
}

/// A path whose parameters have no names.
fn anonymous(path: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in path.chars() {
        match c {
            '<' | '{' => {
                inside = true;
                out.push_str("{}");
            }
            '>' | '}' => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

#[test]
fn the_document_describes_exactly_the_routes_there_are() {
    let described: BTreeSet<String> = page::operations(&DOCUMENT).map(|(path, _, _)| anonymous(path)).collect();
    assert_eq!(described, routes());
}

#[test]
fn the_methods_are_those_that_endpoints_allow() {
    let mut described: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (path, method, _) in page::operations(&DOCUMENT) {
        described.entry(path).or_default().insert(method.to_uppercase());
    }
    for (path, methods) in described {
        let digest = format!("sha256:{}", "0".repeat(64));
        let sample = path.replace("{digest}", &digest).replace(['{', '}'], "");
        let Some(allow) = super::super::keppel::allowed(&sample) else { continue };
        let allowed: BTreeSet<String> =
            allow.split(", ").filter(|method| *method != "HEAD").map(str::to_owned).collect();
        assert_eq!(methods, allowed, "{path}");
    }
}

#[test]
fn the_document_is_whole_and_the_page_shows_all_of_it() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| match value {
                Value::String(path) if name == "$ref" => found.push(path),
                value => references(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    references(&DOCUMENT, &mut found);
    assert!(!found.is_empty());
    for path in found {
        assert!(DOCUMENT.pointer(path.trim_start_matches('#')).is_some(), "{path} leads nowhere");
    }
    assert_eq!(DOCUMENT["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut ids = BTreeSet::new();
    for (path, method, operation) in page::operations(&DOCUMENT) {
        let id = operation["operationId"].as_str().expect("an id");
        assert!(ids.insert(id), "{id} twice");
        assert!(PAGE.contains(&format!("id=\"{id}\"><b>{}</b>", method.to_uppercase())), "{method} {path}");
    }
    for word in ["<script", "src=", "http://", "https://", "@import", "url("] {
        assert!(!PAGE.contains(word), "the page takes something from elsewhere: {word}");
    }
}
