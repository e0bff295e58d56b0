//! The table of all keys, made by one macro: a key's documentation, type, default and bounds are written once, in
//! `settings`, and from there come the typed [`Config`](super::Config), the checks, the environment's names and the
//! commented example.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::problem::{Origin, Problem};
use super::value::{Raw, Value};

/// A section of the file.
#[derive(Debug)]
pub struct Section {
    /// As between the brackets.
    pub name: &'static str,
    /// What the section is about, line by line.
    pub doc: &'static [&'static str],
    /// Its keys.
    pub keys: &'static [Key],
}

/// A key of a section.
#[derive(Debug)]
pub struct Key {
    /// The section it stands in.
    pub section: &'static str,
    /// As left of the equals sign.
    pub name: &'static str,
    /// What the key does, line by line.
    pub doc: &'static [&'static str],
    /// The default in TOML syntax; `""` where the default is none.
    pub default: &'static str,
    /// A value to show where the default is none.
    pub example: Option<&'static str>,
    /// The smallest and the greatest value allowed, in TOML syntax.
    pub bounds: Option<(&'static str, &'static str)>,
}

impl Key {
    /// `section.key`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that sets it: `KEPPEL_SECTION_KEY`.
    pub fn variable(&self) -> String {
        format!("KEPPEL_{}_{}", self.section, self.name).to_uppercase()
    }
}

/// A value some source gives to a key.
#[derive(Debug, Clone)]
pub struct Given {
    /// Where it stands.
    pub origin: Origin,
    /// What stands there.
    pub raw: Raw,
    /// Where relative paths start.
    pub folder: PathBuf,
}

/// What a key came to be.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: &'static Key,
    /// Its value in TOML syntax.
    pub value: String,
    /// What set it.
    pub origin: Origin,
}

/// Gives each key its value out of what the sources gave, noting every problem on the way.
#[derive(Debug, Default)]
pub struct Assembler {
    /// By `section.key`, the weakest source first.
    pub given: HashMap<String, Vec<Given>>,
    /// What was wrong so far.
    pub problems: Vec<Problem>,
    /// What came out so far.
    pub entries: Vec<Entry>,
}

impl Assembler {
    /// The value of a key: the strongest source's, else the default. A bad value is noted, whether a stronger source
    /// overrides it or not.
    pub fn resolve<T: Value>(&mut self, key: &'static Key) -> T {
        let default = parse_toml(key.default).and_then(|raw| T::read(&raw, Path::new("")));
        let mut value = default.expect("a test reads every default");
        let mut origin = Origin::Default;
        for given in self.given.remove(&key.path()).unwrap_or_default() {
            match read_within_bounds::<T>(key, &given) {
                Ok(read) => (value, origin) = (read, given.origin),
                Err(message) => self.problems.push(Problem::of_key(given.origin, key.path(), message)),
            }
        }
        self.entries.push(Entry { key, value: value.to_toml(), origin });
        value
    }
}

fn read_within_bounds<T: Value>(key: &Key, given: &Given) -> Result<T, String> {
    let value = T::read(&given.raw, &given.folder).ok_or_else(|| format!("{} is not {}", given.raw, T::expected()))?;
    let bound = |text| parse_toml(text).and_then(|raw| T::read(&raw, Path::new("")))?.magnitude();
    if let (Some((low, high)), Some(magnitude)) = (key.bounds, value.magnitude()) {
        let (least, most) = (bound(low).unwrap_or(0), bound(high).unwrap_or(u64::MAX));
        if magnitude < least || magnitude > most {
            return Err(format!("{} is out of bounds: it must be from {low} to {high}", value.to_toml()));
        }
    }
    Ok(value)
}

/// Reads a single value in TOML syntax.
pub fn parse_toml(text: &str) -> Option<Raw> {
    let value = toml::de::DeValue::parse(text).ok()?;
    Some(super::source::raw_of(value.get_ref()))
}

/// Makes the section types, [`Config`](super::Config) and the table of keys out of one listing.
macro_rules! sections {
    ($(
        $(#[doc = $section_doc:literal])*
        $section:ident: $type:ident {
            $(
                $(#[doc = $doc:literal])*
                $key:ident: $value:ty = $default:tt $(, from $low:tt to $high:tt)? $(, example $example:tt)?;
            )*
        }
    )*) => {
        /// A whole configuration, every value in its type.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Config { $($(#[doc = $section_doc])* pub $section: $type,)* }

        $(
            $(#[doc = $section_doc])*
            #[derive(Debug, Clone, PartialEq, Eq)]
            pub struct $type { $($(#[doc = $doc])* pub $key: $value,)* }
        )*

        /// Every section with its keys, in the order of the example.
        pub static SECTIONS: &[Section] = &[$(Section {
            name: stringify!($section),
            doc: &[$($section_doc),*],
            keys: &[$(Key {
                section: stringify!($section),
                name: stringify!($key),
                doc: &[$($doc),*],
                default: stringify!($default),
                example: sections!(@option $($example)?),
                bounds: sections!(@bounds $($low $high)?),
            }),*],
        }),*];

        impl Config {
            /// Takes each key's value, in the order of [`SECTIONS`].
            pub(super) fn assemble(assembler: &mut Assembler) -> Self {
                let mut keys = SECTIONS.iter().flat_map(|section| section.keys);
                let mut next = || keys.next().expect("the same macro wrote the table and this function");
                Self { $($section: $type { $($key: assembler.resolve::<$value>(next()),)* },)* }
            }
        }
    };
    (@option) => { None };
    (@option $example:tt) => { Some(stringify!($example)) };
    (@bounds) => { None };
    (@bounds $low:tt $high:tt) => { Some((stringify!($low), stringify!($high))) };
}
pub(super) use sections;
