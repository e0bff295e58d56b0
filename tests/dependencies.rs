//! Keeps the tree of dependencies to what `deny.toml` allows, without a tool that must be installed first.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

#[test]
fn every_dependency_has_an_allowed_licence() {
    let allowed: BTreeSet<String> = policy()["licenses"]["allow"]
        .as_array()
        .expect("deny.toml has licenses.allow")
        .iter()
        .map(|licence| licence.as_str().expect("a licence is text").to_owned())
        .collect();
    let refused: Vec<String> = packages()
        .iter()
        .filter(|package| !permits(package["license"].as_str().unwrap_or(""), &allowed))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn no_banned_crate_is_built() {
    // `cargo tree` knows features and targets, so it lists what is built, not what the lock file could hold.
    let tree =
        cargo(&["tree", "--workspace", "--all-features", "--edges", "all", "--prefix", "none", "--format", "{p}"]);
    let built: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(built.contains("tokio"), "cargo tree lists nothing:\n{tree}");
    for ban in policy()["bans"]["deny"].as_array().expect("deny.toml has bans.deny") {
        let name = ban["name"].as_str().expect("a ban has a name");
        assert!(!built.contains(name), "`{name}` is banned by deny.toml; `cargo tree -i {name}` says who wants it");
    }
}

#[test]
fn every_dependency_comes_from_the_registry_or_this_repository() {
    for package in packages() {
        let source = package["source"].as_str();
        let known = source.is_none_or(|source| source.starts_with("registry+"));
        assert!(known, "{} comes from {source:?}", package["name"]);
    }
}

#[test]
fn every_dependency_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in [root.to_owned(), root.join("federation")] {
        let manifest: toml::Table =
            fs::read_to_string(folder.join("Cargo.toml")).expect("it is readable").parse().expect("it is TOML");
        for (table, places) in [("dependencies", &["src"][..]), ("dev-dependencies", &["src", "tests"])] {
            let text: String = places.iter().map(|place| text_below(&folder.join(place))).collect();
            let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            for name in
                manifest.get(table).and_then(|table| table.as_table()).into_iter().flat_map(|table| table.keys())
            {
                let word = name.replace('-', "_");
                assert!(words.contains(word.as_str()), "{}: no source names `{name}` of [{table}]", folder.display());
            }
        }
    }
}

/// All Rust text below a folder, which need not exist.
fn text_below(folder: &Path) -> String {
    let mut text = String::new();
    for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            text += &text_below(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(&path).expect("a source file is readable text");
        }
    }
    text
}

#[test]
fn licence_expressions_are_understood() {
    let allowed: BTreeSet<String> =
        ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"].map(String::from).into();
    for good in [
        "MIT",
        "MIT/GPL-3.0",
        "GPL-3.0 OR MIT",
        "(MIT OR GPL-3.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
    ] {
        assert!(permits(good, &allowed), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT AND GPL-3.0) OR ISC", "GPL-2.0 WITH LLVM-exception"] {
        assert!(!permits(bad, &allowed), "{bad}");
    }
}

fn policy() -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    fs::read_to_string(path).expect("deny.toml is readable").parse().expect("deny.toml is TOML")
}

fn packages() -> Vec<Value> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--format-version", "1"])).expect("cargo metadata prints JSON");
    metadata["packages"].as_array().expect("cargo metadata lists packages").clone()
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--locked", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints text")
}

/// Whether an SPDX expression can be met by allowed licences alone. `AND` binds tighter than `OR`.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = any(&mut rest, allowed);
    met && rest.is_empty()
}

fn any(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = all(rest, allowed);
    while rest.first() == Some(&"OR") {
        *rest = &rest[1..];
        met |= all(rest, allowed);
    }
    met
}

fn all(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let mut met = one(rest, allowed);
    while rest.first() == Some(&"AND") {
        *rest = &rest[1..];
        met &= one(rest, allowed);
    }
    met
}

fn one(rest: &mut &[&str], allowed: &BTreeSet<String>) -> bool {
    let Some((&word, tail)) = rest.split_first() else { return false };
    *rest = tail;
    if word == "(" {
        let met = any(rest, allowed);
        let closed = rest.first() == Some(&")");
        *rest = rest.get(1..).unwrap_or_default();
        return met && closed;
    }
    if let ["WITH", exception, ..] = **rest {
        *rest = &rest[2..];
        return allowed.contains(&format!("{word} WITH {exception}"));
    }
    allowed.contains(word)
}
