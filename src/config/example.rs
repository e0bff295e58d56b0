//! The commented example and the view of what is in force, both written from the table of keys.

use std::fmt::Write as _;

use super::settings::SECTIONS;
use super::table::{Entry, Key};

const HEAD: &str = "\
# A Keppel node. Every key there is, with its default; take the # away to change one.
# Check it:    keppel config check FILE
# See it all:  keppel config show FILE
# Each key can also be set by a variable, KEPPEL_<SECTION>_<KEY>, or a flag, --set section.key=value;
# flags are stronger than variables, and those are stronger than this file. There, lists are written with commas.
# Relative paths start at this file's folder. Sizes: B, KiB, MiB, GiB, TiB. Durations: ms, s, m, h, d.
";

/// A file with every key, commented out, at its default (or, where the default is none, with an example).
pub fn example() -> String {
    let mut text = HEAD.to_owned();
    for section in SECTIONS {
        text.push('\n');
        comment(&mut text, section.doc);
        let _ = writeln!(text, "[{}]", section.name);
        for key in section.keys {
            comment(&mut text, key.doc);
            if let Some((low, high)) = key.bounds {
                let _ = writeln!(text, "# From {low} to {high}.");
            }
            let _ = writeln!(text, "#{} = {}", key.name, shown_value(key));
        }
    }
    text
}

fn comment(text: &mut String, lines: &[&str]) {
    for line in lines {
        let _ = writeln!(text, "# {}", line.trim());
    }
}

fn shown_value(key: &Key) -> &'static str {
    match key.default {
        "\"\"" => key.example.unwrap_or(key.default),
        default => default,
    }
}

/// What is in force, as TOML, each value with what set it.
pub fn show(entries: &[Entry]) -> String {
    let mut text = String::new();
    for section in SECTIONS {
        let entries = || entries.iter().filter(|entry| entry.key.section == section.name);
        let lines: Vec<_> = entries().map(|entry| format!("{} = {}", entry.key.name, entry.value)).collect();
        let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0).min(48);
        let _ = writeln!(text, "{}[{}]", if text.is_empty() { "" } else { "\n" }, section.name);
        for (line, entry) in lines.iter().zip(entries()) {
            let _ = writeln!(text, "{line:width$}  # {}", entry.origin);
        }
    }
    text
}
