//! Keeps the house in order: a room uses rooms below it only, and each kind of work stays in the rooms that own it.
//!
//! The table below is the one of `ARCHITECTURE.md`. The check reads the source text (comments and literals removed),
//! follows every path that begins with `crate`, `super`, `keppel` or `keppel_federation`, also inside braces, and
//! reports `file:line`. It deliberately knows no types: what a path names is enough.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};

/// Rooms of the crate `keppel` with their floors; rooms on one floor do not see each other.
const FLOORS: &[(&str, u8)] = &[
    ("model", 1),
    ("metadata", 2),
    ("storage", 2),
    ("auth", 2),
    ("external", 2),
    ("registry", 3),
    ("peering", 4),
    ("janitor", 4),
    ("api", 4),
    ("ui", 4),
    ("config", 5),
    ("app", 6),
    ("cli", 7),
    ("main", 8),
];

/// Crates that only some rooms may name, as (crate, rooms of `keppel`, rooms of `keppel-federation`).
const OWNED: &[(&str, &[&str], &[&str])] = &[("axum", &["api", "ui"], &[]), ("rusqlite", &["metadata"], &["claims"])];

/// Rooms that may name the federation crate beyond its vocabulary.
const FEDERATED: &[&str] = &["peering", "config", "app"];

#[test]
fn rooms_use_only_rooms_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut faults = Vec::new();
    for (crate_name, folder) in [("keppel", root.join("src")), ("keppel_federation", root.join("federation/src"))] {
        let mut sources = Vec::new();
        for path in rust_files(&folder) {
            let text = fs::read_to_string(&path).expect("a source file is readable text");
            let inside = path.strip_prefix(&folder).expect("found under the folder").to_path_buf();
            let shown = path.strip_prefix(root).expect("found under the root").display().to_string();
            sources.push(Source { shown, inside, text });
        }
        assert!(!sources.is_empty(), "no source found in {}", folder.display());
        faults.extend(faults_of(crate_name, &sources));
    }
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(faults.is_empty(), "\n{}\n", lines.join("\n"));
}

#[test]
fn a_bad_sample_is_reported_with_file_and_line() {
    let sample = |inside: &str, text: &str| Source {
        shown: format!("src/{inside}"),
        inside: PathBuf::from(inside),
        text: text.to_owned(),
    };
    let sources = [
        sample(
            "model/mod.rs",
            "// crate::api is fine in a comment\nlet s = \"crate::api\";\nuse crate::registry::Pull;\n",
        ),
        sample("storage/fs.rs", "use std::io;\nuse crate::{model::Digest, metadata::{Reader, Writer}};\n"),
        sample(
            "registry/push.rs",
            "use super::super::api::Error;\nuse rusqlite::Connection;\nfn f<'a>(c: &'a char) {}\n",
        ),
        sample("registry/pull.rs", "use axum::Router;\nuse keppel_federation::{vocabulary::Tag, Federation};\n"),
        sample("attic/mod.rs", "pub fn f() {}\n"),
        sample("api/mod.rs", "use crate::registry::Push;\nuse super::model::Digest;\nuse axum::Router;\n"),
        sample("main.rs", "use keppel::cli;\n"),
    ];
    let found: Vec<String> = faults_of("keppel", &sources).iter().map(|fault| fault.place.clone()).collect();
    assert_eq!(
        found,
        [
            "src/model/mod.rs:3",
            "src/storage/fs.rs:2",
            "src/storage/fs.rs:2",
            "src/registry/push.rs:1",
            "src/registry/push.rs:2",
            "src/registry/pull.rs:1",
            "src/registry/pull.rs:2",
            "src/attic/mod.rs:1",
        ]
    );
}

#[test]
fn a_circle_between_rooms_is_reported() {
    let sample =
        |inside: &str, text: &str| Source { shown: inside.into(), inside: inside.into(), text: text.to_owned() };
    let sources = [
        sample("wire.rs", "use crate::transfer::Piece;\n"),
        sample("transfer/mod.rs", "mod plan;\n"),
        sample("transfer/plan.rs", "use crate::membership::Member;\n"),
        sample("membership/mod.rs", "use crate::{vocabulary::NodeId, wire::Frame};\n"),
        sample("lib.rs", "use crate::membership::Member;\n"),
    ];
    let found: Vec<String> = faults_of("keppel_federation", &sources).iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("membership -> wire -> transfer -> membership"), "{found:?}");
}

/// A source file: how to show it, its path inside the crate's `src`, its text.
struct Source {
    shown: String,
    inside: PathBuf,
    text: String,
}

/// A broken rule, with `file:line`.
struct Fault {
    place: String,
    why: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)
    }
}

fn faults_of(crate_name: &str, sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut uses: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for source in sources {
        let Some(room) = room_of(&source.inside) else { continue };
        let mut fault =
            |line: usize, why: String| faults.push(Fault { place: format!("{}:{line}", source.shown), why });
        if crate_name == "keppel" && floor_of(&room).is_none() {
            fault(1, format!("the room `{room}` is not in the table of floors"));
            continue;
        }
        for (line, path) in paths(&source.text) {
            let path = resolve(crate_name, &source.inside, path);
            let names = |index: usize| path.get(index).map_or("", String::as_str);
            if names(0) == "crate" && names(1) != room {
                if crate_name == "keppel" && floor_of(names(1)).is_some_and(|used| Some(used) >= floor_of(&room)) {
                    fault(line, format!("`{room}` uses `{}`, which is not below it", names(1)));
                }
                let place = format!("{}:{line}", source.shown);
                uses.entry(room.clone()).or_default().entry(names(1).to_owned()).or_insert(place);
            }
            if crate_name == "keppel"
                && names(0) == "keppel_federation"
                && path.len() > 1
                && names(1) != "vocabulary"
                && !FEDERATED.contains(&room.as_str())
            {
                fault(line, format!("`{room}` names `keppel_federation::{}`, which is not vocabulary", names(1)));
            }
            for (owned, ours, theirs) in OWNED {
                let allowed = if crate_name == "keppel" { ours } else { theirs };
                if names(0) == *owned && !allowed.contains(&room.as_str()) {
                    fault(line, format!("`{room}` names `{owned}`, which belongs to {allowed:?}"));
                }
            }
        }
    }
    if crate_name != "keppel" {
        let rooms: BTreeSet<String> = sources.iter().filter_map(|source| room_of(&source.inside)).collect();
        faults.extend(circle(&rooms, &uses));
    }
    faults
}

/// The first circle among rooms, if there is one. Between the rooms of `keppel` the floors rule circles out.
fn circle(rooms: &BTreeSet<String>, uses: &BTreeMap<String, BTreeMap<String, String>>) -> Option<Fault> {
    fn walk<'a>(
        room: &'a str,
        way: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
        rooms: &BTreeSet<String>,
        uses: &'a BTreeMap<String, BTreeMap<String, String>>,
    ) -> Option<Fault> {
        if let Some(start) = way.iter().position(|&seen| seen == room) {
            let first = uses[way[way.len() - 1]][room].clone();
            let names = [&way[start..], &[room]].concat().join(" -> ");
            return Some(Fault { place: first, why: format!("rooms use each other in a circle: {names}") });
        }
        if !done.insert(room) {
            return None;
        }
        way.push(room);
        for used in uses.get(room).into_iter().flat_map(BTreeMap::keys).filter(|used| rooms.contains(*used)) {
            if let Some(fault) = walk(used, way, done, rooms, uses) {
                return Some(fault);
            }
        }
        way.pop();
        None
    }
    let mut done = BTreeSet::new();
    rooms.iter().find_map(|room| walk(room, &mut Vec::new(), &mut done, rooms, uses))
}

fn floor_of(room: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

/// The room a file belongs to; `lib.rs` is the map of the house and belongs to none.
fn room_of(inside: &Path) -> Option<String> {
    let first = inside.iter().next()?.to_str()?;
    let room = first.strip_suffix(".rs").unwrap_or(first);
    (room != "lib").then(|| room.to_owned())
}

/// Turns `super::…` and the crate's own name into `crate::…`.
fn resolve(crate_name: &str, inside: &Path, mut path: Vec<String>) -> Vec<String> {
    if path[0] == crate_name {
        path[0] = "crate".into();
    }
    if path[0] != "super" {
        return path;
    }
    let mut module: Vec<String> = inside.with_extension("").iter().map(|part| part.to_string_lossy().into()).collect();
    module.pop_if(|last| last == "mod" || last == "lib" || last == "main");
    let ups = path.iter().take_while(|name| *name == "super").count();
    // Inline modules (`mod tests`) are deeper than the file says, so `super` may stay inside the file's own room.
    module.truncate(module.len().saturating_sub(ups));
    std::iter::once("crate".to_owned()).chain(module).chain(path.drain(ups..)).collect()
}

/// Every path of two or more names (or one in a `use`), braces expanded, with the line it begins on.
fn paths(text: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (line, Token::Name(_)) = &tokens[at] else {
            at += 1;
            continue;
        };
        let mut branches = Vec::new();
        let next = tree(&tokens, at, &mut Vec::new(), &mut branches);
        found.extend(branches.into_iter().filter(|path| path.len() > 1).map(|path| (*line, path)));
        at = next.max(at + 1);
    }
    found
}

/// Reads one path from `at` on, pushes its branches, and returns where it ends.
fn tree(tokens: &[(usize, Token)], mut at: usize, prefix: &mut Vec<String>, out: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    loop {
        match tokens.get(at).map(|(_, token)| token) {
            Some(Token::Name(name)) => prefix.push(name.clone()),
            Some(Token::Sign('{')) if prefix.len() > depth || depth > 0 => {
                at += 1;
                while !matches!(tokens.get(at).map(|(_, token)| token), None | Some(Token::Sign('}'))) {
                    let next = tree(tokens, at, prefix, out);
                    at = next.max(at + 1);
                }
                prefix.truncate(depth);
                return at + 1;
            }
            _ => break,
        }
        at += 1;
        if !matches!(tokens.get(at).map(|(_, token)| token), Some(Token::Separator)) {
            break;
        }
        at += 1;
    }
    if prefix.len() > depth {
        out.push(prefix.clone());
    }
    prefix.truncate(depth);
    at
}

enum Token {
    Name(String),
    Separator,
    Sign(char),
}

/// Splits Rust text into what matters here, with line numbers; comments and literals vanish.
fn tokens(text: &str) -> Vec<(usize, Token)> {
    let bytes = text.as_bytes();
    let (mut out, mut at, mut line) = (Vec::new(), 0, 1);
    while at < bytes.len() {
        let rest = &text[at..];
        let skipped = literal_or_comment(rest);
        if skipped > 0 {
            line += rest[..skipped].matches('\n').count();
            at += skipped;
            continue;
        }
        let c = rest.chars().next().expect("at is inside the text");
        if c.is_alphabetic() || c == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            out.push((line, Token::Name(rest[..end].to_owned())));
            at += end;
        } else if rest.starts_with("::") {
            out.push((line, Token::Separator));
            at += 2;
        } else {
            if c == '\n' {
                line += 1;
            } else if !c.is_whitespace() {
                out.push((line, Token::Sign(c)));
            }
            at += c.len_utf8();
        }
    }
    out
}

/// How many bytes of a comment, string, character or lifetime stand at the start of `rest`.
fn literal_or_comment(rest: &str) -> usize {
    let until = |from: usize, end: &str| rest[from..].find(end).map_or(rest.len(), |found| from + found + end.len());
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return until(2, "*/");
    }
    let raw = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')).map(|tail| (rest.len() - tail.len(), tail));
    if let Some((prefix, tail)) = raw {
        let hashes = tail.len() - tail.trim_start_matches('#').len();
        if tail[hashes..].starts_with('"') {
            return until(prefix + hashes + 1, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    let start = if rest.starts_with("b\"") || rest.starts_with("b'") { 1 } else { 0 };
    let bytes = rest.as_bytes();
    let quote = bytes[start];
    if quote == b'\'' && start == 0 {
        // A lifetime has a name and no closing quote right after one character.
        let mut inside = rest[1..].chars();
        let (first, second) = (inside.next(), inside.next());
        if first != Some('\\') && second != Some('\'') {
            return rest[1..].find(|c: char| !c.is_alphanumeric() && c != '_').map_or(rest.len(), |end| end + 1);
        }
    }
    if quote != b'"' && quote != b'\'' {
        return 0;
    }
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a source folder is readable") {
        let path = entry.expect("a folder entry is readable").path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}
