//! Where values come from: a TOML file, the environment, flags. Each key of a source becomes one
//! [`Given`]; what names no key becomes a [`Problem`].

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::files::read_regular;
use super::problem::{Origin, Problem, closest};
use super::table::{Assembler, Given, Key, Section};
use super::value::Raw;

/// A configuration file is text written by hand; anything beyond this is another file.
const FILE_SIZE_MAX_BYTES: u64 = 1 << 20;
/// After so many syntax errors the rest would only repeat them.
const SYNTAX_ERRORS_MAX: usize = 10;

/// Variables that belong to the client commands and to the choice of the file, never to a key.
const OTHER_VARIABLES: [&str; 3] = ["KEPPEL_CONFIG", "KEPPEL_SERVER", "KEPPEL_TOKEN"];

/// Reads a file into `assembler`.
pub fn read_file(path: &Path, sections: &'static [Section], assembler: &mut Assembler) {
    let at = |line| Origin::File { path: path.to_owned(), line };
    let text = match load_text(path) {
        Ok(text) => text,
        Err((line, message)) => return assembler.problems.push(Problem::general(at(line), message)),
    };
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    read_text(&text, &folder, &at, sections, assembler);
}

/// The text of a file, or the line at fault and why it cannot be used.
fn load_text(path: &Path) -> Result<String, (usize, String)> {
    let bytes = read_regular(path, FILE_SIZE_MAX_BYTES).map_err(|message| (1, format!("this file {message}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        (1 + count_newlines(valid), "this line is not UTF-8 text".to_owned())
    })
}

fn count_newlines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

/// Reads a TOML text into `assembler`; `at` makes the origin of a line.
pub fn read_text(
    text: &str,
    folder: &Path,
    at: &dyn Fn(usize) -> Origin,
    sections: &'static [Section],
    assembler: &mut Assembler,
) {
    let line_of = |byte: usize| 1 + count_newlines(&text.as_bytes()[..byte.min(text.len())]);
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problems = errors.iter().take(SYNTAX_ERRORS_MAX).map(|error| {
            let line = error.span().map_or(1, |span| line_of(span.start));
            Problem::general(at(line), format!("this is not TOML: {}", error.message().replace('\n', "; ")))
        });
        return assembler.problems.extend(problems);
    }
    for (name, value) in in_order(table.get_ref()) {
        let origin = at(line_of(name.span().start));
        let section = sections.iter().find(|section| section.name == name.get_ref());
        match (section, value.get_ref()) {
            (Some(section), DeValue::Table(keys)) => {
                for (name, value) in in_order(keys) {
                    let origin = at(line_of(name.span().start));
                    match section.keys.iter().find(|key| key.name == name.get_ref()) {
                        Some(key) => give(assembler, key, origin, raw_of(value.get_ref()), folder),
                        None => assembler.problems.push(unknown_key(sections, section, name.get_ref(), origin)),
                    }
                }
            }
            (Some(section), _) => {
                let message = format!("this is a section: write [{}] and its keys below", section.name);
                assembler.problems.push(Problem::of_key(origin, section.name, message));
            }
            (None, value) => assembler.problems.push(unknown_section(sections, name.get_ref(), value, origin)),
        }
    }
}

/// A table's entries in the order of the file; the parser sorts them by name.
fn in_order<'t, 'i>(table: &'t DeTable<'i>) -> Vec<(&'t Spanned<toml::de::DeString<'i>>, &'t Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

fn give(assembler: &mut Assembler, key: &Key, origin: Origin, raw: Raw, folder: &Path) {
    let given = Given { origin, raw, folder: folder.to_owned() };
    assembler.given.entry(key.path()).or_default().push(given);
}

fn unknown_key(sections: &[Section], section: &Section, name: &str, origin: Origin) -> Problem {
    let path = format!("{}.{}", section.name, shortened(name));
    let elsewhere = sections.iter().flat_map(|section| section.keys).find(|key| key.name == name);
    let message = match (closest(name, section.keys.iter().map(|key| key.name)), elsewhere) {
        (Some(meant), _) => format!("unknown key; did you mean \"{meant}\"?"),
        (None, Some(key)) => format!("unknown key; \"{name}\" belongs in [{}]", key.section),
        (None, None) => {
            let known: Vec<_> = section.keys.iter().map(|key| key.name).collect();
            format!("unknown key; [{}] has {}", section.name, known.join(", "))
        }
    };
    Problem::of_key(origin, path, message)
}

fn unknown_section(sections: &[Section], name: &str, value: &DeValue<'_>, origin: Origin) -> Problem {
    let what = if matches!(value, DeValue::Table(_)) { "section" } else { "key" };
    let key = sections.iter().flat_map(|section| section.keys).find(|key| key.name == name);
    let message = match (closest(name, sections.iter().map(|section| section.name)), key) {
        (Some(meant), _) => format!("unknown {what}; did you mean [{meant}]?"),
        (None, Some(key)) => format!("this key belongs below [{}]", key.section),
        (None, None) => {
            let known: Vec<_> = sections.iter().map(|section| format!("[{}]", section.name)).collect();
            format!("unknown {what}; there are {}", known.join(", "))
        }
    };
    Problem::of_key(origin, shortened(name), message)
}

fn shortened(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The value without its type.
pub fn raw_of(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::String(text.clone().into_owned()),
        DeValue::Boolean(value) => Raw::Boolean(*value),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Unfit("a number beyond 64 bits"), Raw::Integer),
        DeValue::Float(_) => Raw::Unfit("a fraction"),
        DeValue::Datetime(_) => Raw::Unfit("a date"),
        DeValue::Table(_) => Raw::Unfit("a table"),
        DeValue::Array(items) => {
            let texts = items.iter().map(|item| match item.get_ref() {
                DeValue::String(text) => Some(text.clone().into_owned()),
                _ => None,
            });
            texts.collect::<Option<_>>().map_or(Raw::Unfit("a list of other things than texts"), Raw::Strings)
        }
    }
}

/// Reads the `KEPPEL_*` variables among `variables`. One that cannot be a key's is only warned about, since others use
/// the prefix too; one that starts like a section is a typing mistake and refused. Those that Kubernetes sets for a
/// service named `keppel` are left alone.
pub fn read_environment(
    variables: &[(String, String)],
    folder: &Path,
    sections: &'static [Section],
    assembler: &mut Assembler,
    warnings: &mut Vec<Problem>,
) {
    let known: Vec<(String, &Key)> =
        sections.iter().flat_map(|section| section.keys).map(|key| (key.variable(), key)).collect();
    let mut ours: Vec<_> = variables.iter().filter(|(name, _)| name.starts_with("KEPPEL_")).collect();
    ours.sort();
    for (name, value) in ours {
        let origin = Origin::Environment(name.clone());
        if let Some((_, key)) = known.iter().find(|(variable, _)| variable == name) {
            give(assembler, key, origin, Raw::Untyped(value.clone()), folder);
            continue;
        }
        if OTHER_VARIABLES.contains(&name.as_str()) || is_service_link(name, value) {
            continue;
        }
        let message = match closest(name, known.iter().map(|(variable, _)| variable.as_str())) {
            Some(meant) => format!("unknown variable; did you mean {meant}?"),
            None => "unknown variable; keys are set by KEPPEL_<SECTION>_<KEY>".to_owned(),
        };
        let in_section = |section: &Section| name.starts_with(&format!("KEPPEL_{}_", section.name.to_uppercase()));
        let problem = Problem::general(origin, message);
        match sections.iter().any(in_section) {
            true => assembler.problems.push(problem),
            false => warnings.push(problem),
        }
    }
}

/// Whether Kubernetes sets such a variable for a service whose name starts with `keppel`: `KEPPEL_SERVICE_HOST`,
/// `KEPPEL_PORT_5000_TCP_ADDR`, and `KEPPEL_PORT` with an URL in it.
fn is_service_link(name: &str, value: &str) -> bool {
    let with_digits = |part: &str| part.bytes().next().is_some_and(|b| b.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split_once("_PORT_").is_some_and(|(_, port)| with_digits(port))
        || (name.ends_with("_PORT") && value.contains("://"))
}

/// A value set on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// As it was written, such as `--listen` or `--set http.listen`.
    pub name: String,
    /// `section.key`.
    pub key: String,
    /// The value.
    pub value: String,
}

/// Reads the flags into `assembler`.
pub fn read_flags(flags: &[Flag], folder: &Path, sections: &'static [Section], assembler: &mut Assembler) {
    for flag in flags {
        let origin = Origin::Flag(flag.name.clone());
        let keys = || sections.iter().flat_map(|section| section.keys);
        match keys().find(|key| key.path() == flag.key) {
            Some(key) => give(assembler, key, origin, Raw::Untyped(flag.value.clone()), folder),
            None => {
                let paths: Vec<String> = keys().map(Key::path).collect();
                let hint = match closest(&flag.key, paths.iter().map(String::as_str)) {
                    Some(meant) => format!("unknown key; did you mean \"{meant}\"?"),
                    None => "unknown key; `keppel config example` shows them all".to_owned(),
                };
                assembler.problems.push(Problem::of_key(origin, shortened(&flag.key), hint));
            }
        }
    }
}

/// A starting point between the defaults and the file: `section.key` and a value in TOML syntax.
#[derive(Debug, Clone, Copy)]
pub struct Preset {
    /// The command it belongs to.
    pub command: &'static str,
    /// What it sets.
    pub values: &'static [(&'static str, &'static str)],
}

/// Reads a preset into `assembler`.
pub fn read_preset(preset: &Preset, folder: &Path, assembler: &mut Assembler) {
    for (path, value) in preset.values {
        let raw = super::table::parse_toml(value).unwrap_or(Raw::Unfit("not TOML"));
        let given = Given { origin: Origin::Preset(preset.command), raw, folder: folder.to_owned() };
        assembler.given.entry((*path).to_owned()).or_default().push(given);
    }
}

/// All sources, the weakest first: preset, file, environment, flags.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// What a command starts from.
    pub preset: Option<Preset>,
    /// The file.
    pub file: Option<PathBuf>,
    /// Variables; only those that start with `KEPPEL_` are looked at.
    pub environment: Vec<(String, String)>,
    /// Flags.
    pub flags: Vec<Flag>,
    /// Where relative paths of the preset, the environment and flags start.
    pub folder: PathBuf,
}
