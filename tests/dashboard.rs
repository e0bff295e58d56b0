//! The dashboard shows metrics that there are.

use std::collections::BTreeSet;
use std::path::Path;

/// Every `keppel_…` word of a text.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !word(c)).filter(|name| name.starts_with("keppel_")).map(str::to_owned).collect()
}

fn source(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).expect("a folder of the source") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            source(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).expect("text"));
        }
    }
}

#[test]
fn every_metric_of_the_dashboard_is_one_that_the_program_has() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("config/dashboard.json")).expect("a dashboard");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    assert!(panels.len() > 10);
    let mut program = String::new();
    source(&root.join("src"), &mut program);
    let known = names(&program);
    for panel in panels {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            for name in names(expression) {
                let family =
                    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
                assert!(known.contains(family), "{}: there is no metric {family}", panel["title"]);
            }
        }
    }
}
