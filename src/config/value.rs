//! The types a key can have: how each is read from a text, and how it is written back.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use keppel_federation::membership::seeds::Seed;
use keppel_federation::vocabulary::{AccountName, Region};

use crate::api::serve::ListenAddress;
use crate::api::{RateLimit, TrustedProxy};
use crate::auth::{GroupRule, HtpasswdGrant, WorkloadRule};
use crate::model::policy::Secret;

/// A value that was read but has no type yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raw {
    /// A string of a TOML file.
    String(String),
    /// An integer of a TOML file.
    Integer(i64),
    /// A boolean of a TOML file.
    Boolean(bool),
    /// An array of strings of a TOML file.
    Strings(Vec<String>),
    /// Something of a TOML file that no key takes; the word says what, with its article.
    Unfit(&'static str),
    /// A text from the environment or a flag, where everything is text.
    Untyped(String),
}

impl Raw {
    /// The text, when this is one.
    fn text(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Untyped(text) => Some(text),
            _ => None,
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::String(text) | Self::Untyped(text) => write!(f, "{:?}", text.chars().take(80).collect::<String>()),
            Self::Integer(number) => number.fmt(f),
            Self::Boolean(value) => value.fmt(f),
            Self::Strings(items) => write!(f, "{:?}", items.iter().take(8).collect::<Vec<_>>()),
            Self::Unfit(what) => f.write_str(what),
        }
    }
}

/// A type of configuration values.
pub trait Value: Sized {
    /// What one is, with an example, to go on after "is not".
    fn expected() -> String;

    /// Reads one; `None` when `raw` is not what [`Self::expected`] says. `folder` is where relative paths start.
    fn read(raw: &Raw, folder: &Path) -> Option<Self>;

    /// Writes it in TOML syntax.
    fn to_toml(&self) -> String;

    /// Its size on a scale, for types that can have bounds.
    fn magnitude(&self) -> Option<u64> {
        None
    }
}

/// A text in TOML syntax.
pub fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// An amount of bytes, written such as `"4MiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl Value for ByteSize {
    fn expected() -> String {
        "a size: write a whole number and B, KiB, MiB, GiB or TiB, such as \"4MiB\"".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        if let Raw::Integer(bytes) = raw {
            return u64::try_from(*bytes).ok().map(Self);
        }
        let (number, unit) = number_and_unit(raw.text()?)?;
        let factor = match unit {
            "" => 1,
            unit => SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
        };
        number.checked_mul(factor).map(Self)
    }

    fn to_toml(&self) -> String {
        let exact = |(_, factor): &&(&str, u64)| self.0 >= *factor && self.0.is_multiple_of(*factor);
        let (unit, factor) = SIZE_UNITS.iter().find(exact).unwrap_or(&("B", 1));
        format!("\"{}{unit}\"", self.0 / factor)
    }

    fn magnitude(&self) -> Option<u64> {
        Some(self.0)
    }
}

const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Value for Duration {
    fn expected() -> String {
        "a duration: write a whole number and ms, s, m, h or d, such as \"30s\"".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        let (number, unit) = number_and_unit(raw.text()?)?;
        let (_, factor) = TIME_UNITS.iter().find(|(name, _)| *name == unit)?;
        number.checked_mul(*factor).map(Self::from_millis)
    }

    fn to_toml(&self) -> String {
        let milliseconds = self.magnitude().unwrap_or(u64::MAX);
        if milliseconds == 0 {
            return "\"0s\"".to_owned();
        }
        let exact = |(_, factor): &&(&str, u64)| milliseconds.is_multiple_of(*factor);
        let (unit, factor) = TIME_UNITS.iter().find(exact).unwrap_or(&("ms", 1));
        format!("\"{}{unit}\"", milliseconds / factor)
    }

    fn magnitude(&self) -> Option<u64> {
        u64::try_from(self.as_millis()).ok()
    }
}

/// `"30 s"` is 30 and `s`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, text[end..].trim_start()))
}

impl Value for usize {
    fn expected() -> String {
        "a whole number".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        match raw {
            Raw::Integer(number) => usize::try_from(*number).ok(),
            Raw::Untyped(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }

    fn magnitude(&self) -> Option<u64> {
        u64::try_from(*self).ok()
    }
}

impl Value for bool {
    fn expected() -> String {
        "true or false".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        match raw {
            Raw::Boolean(value) => Some(*value),
            Raw::Untyped(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn expected() -> String {
        "a text".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        raw.text().map(str::to_owned)
    }

    fn to_toml(&self) -> String {
        quoted(self)
    }
}

impl Value for PathBuf {
    fn expected() -> String {
        "a path: write a text that is not empty".to_owned()
    }

    fn read(raw: &Raw, folder: &Path) -> Option<Self> {
        let text = raw.text().filter(|text| !text.is_empty() && !text.contains('\0'))?;
        Some(folder.join(text))
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl Value for ListenAddress {
    fn expected() -> String {
        "an address to listen on: write an IP address and a port, such as \"127.0.0.1:5000\", or \"unix:\" and a path"
            .to_owned()
    }

    fn read(raw: &Raw, folder: &Path) -> Option<Self> {
        let text = raw.text()?.trim();
        if let Some(path) = text.strip_prefix("unix:") {
            return PathBuf::read(&Raw::String(path.to_owned()), folder).map(Self::Unix);
        }
        if let Ok(address) = text.parse() {
            return Some(Self::Tcp(address));
        }
        let (host, port) = text.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        match host {
            "" => Some(Self::Tcp((Ipv6Addr::UNSPECIFIED, port).into())),
            "localhost" => Some(Self::Tcp((Ipv4Addr::LOCALHOST, port).into())),
            _ => None,
        }
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string())
    }
}

impl Value for AccountName {
    fn expected() -> String {
        "an account name: write 1 to 48 characters out of a-z, 0-9 and '-', not starting with '-'".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        Self::parse(raw.text()?).ok()
    }

    fn to_toml(&self) -> String {
        quoted(self.as_str())
    }
}

/// The name of a host, without a port, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(pub String);

impl Value for HostName {
    fn expected() -> String {
        "the name of a host: write it without scheme and port, such as \"registry.example.org\"".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        let name = raw.text()?.to_ascii_lowercase();
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        (name.len() <= 253 && name.split('.').all(label)).then_some(Self(name))
    }

    fn to_toml(&self) -> String {
        quoted(&self.0)
    }
}

impl Value for Region {
    fn expected() -> String {
        "a region: write 1 to 32 characters out of a-z, 0-9 and '-', not starting with '-'".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        Self::parse(raw.text()?).ok()
    }

    fn to_toml(&self) -> String {
        quoted(self.as_str())
    }
}

/// An IP address with a UDP port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpAddress(pub SocketAddr);

impl Value for UdpAddress {
    fn expected() -> String {
        "an IP address and a port, such as \"[::]:7000\"".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        raw.text()?.trim().parse().ok().map(Self)
    }

    fn to_toml(&self) -> String {
        quoted(&self.0.to_string())
    }
}

/// Types that are read from a text and written as one by themselves.
macro_rules! parsed {
    ($($name:ty: $expected:literal;)*) => {$(
        impl Value for $name {
            fn expected() -> String { $expected.to_owned() }
            fn read(raw: &Raw, _folder: &Path) -> Option<Self> { raw.text()?.trim().parse().ok() }
            fn to_toml(&self) -> String { quoted(&self.to_string()) }
        }
    )*};
}

parsed! {
    HtpasswdGrant: "a grant: write \"<user>=operator\" or \"<user>=<auth tenant>:<role>\" with the role viewer, editor or admin; * is \
         every user";
    Seed: "a host and a port, such as \"eu.registry.example:7000\"";
    TrustedProxy: "a network, an address or \"unix\", such as \"10.0.0.0/8\"";
    IpNet: "a network, such as \"10.0.0.0/8\"";
    RateLimit: "a limit: write \"LIMIT/WINDOW burst BURST\" with window s, m or h, such as \"1000/m burst 200\"";
    GroupRule: "what a group is: write \"GROUP=operator\" or \"GROUP=TENANT:ROLE\", with viewer, editor or admin";
    WorkloadRule: "a rule about workloads: write words such as \"issuer=https://ci.example.org audience=keppel \
         claim.sub=repo:acme/.* robot=acme+ci allow=pull+push repository=web account=acme-prod\"";
}

/// It is written back as asterisks: nothing that shows a configuration shows it.
impl Value for Secret {
    fn expected() -> String {
        "a text".to_owned()
    }

    fn read(raw: &Raw, _folder: &Path) -> Option<Self> {
        raw.text().map(Self::new)
    }

    fn to_toml(&self) -> String {
        quoted("***")
    }
}

/// An empty text stands for "none", so that a later source can take back what an earlier one set.
impl<T: Value> Value for Option<T> {
    fn expected() -> String {
        T::expected()
    }

    fn read(raw: &Raw, folder: &Path) -> Option<Self> {
        match raw.text() {
            Some("") => Some(None),
            _ => T::read(raw, folder).map(Some),
        }
    }

    fn to_toml(&self) -> String {
        self.as_ref().map_or_else(|| "\"\"".to_owned(), Value::to_toml)
    }

    fn magnitude(&self) -> Option<u64> {
        self.as_ref().and_then(Value::magnitude)
    }
}

/// A single text is a list of one. In the environment and in flags, a list is written with commas, or as in a file.
impl<T: Value> Value for Vec<T> {
    fn expected() -> String {
        format!("{} (or a list of such)", T::expected())
    }

    fn read(raw: &Raw, folder: &Path) -> Option<Self> {
        let item = |text: &str| T::read(&Raw::String(text.to_owned()), folder);
        match raw {
            Raw::String(text) => Some(vec![item(text)?]),
            Raw::Strings(items) => items.iter().map(|text| item(text)).collect(),
            // An IPv6 address begins with a bracket too, but is no TOML.
            Raw::Untyped(text) if text.trim_start().starts_with('[') && super::table::parse_toml(text).is_some() => {
                Self::read(&super::table::parse_toml(text)?, folder)
            }
            Raw::Untyped(text) => text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(item).collect(),
            _ => None,
        }
    }

    fn to_toml(&self) -> String {
        format!("[{}]", self.iter().map(Value::to_toml).collect::<Vec<_>>().join(", "))
    }
}

/// Makes an enum of words: each variant with the word that stands for it.
macro_rules! choice {
    ($(#[$meta:meta])* $name:ident: $expected:literal { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $crate::config::value::Value for $name {
            fn expected() -> String { $expected.to_owned() }
            fn read(raw: &$crate::config::value::Raw, _folder: &std::path::Path) -> Option<Self> {
                match raw {
                    $crate::config::value::Raw::String(text) | $crate::config::value::Raw::Untyped(text) => {
                        match text.as_str() { $($word => Some(Self::$variant),)* _ => None }
                    }
                    _ => None,
                }
            }
            fn to_toml(&self) -> String {
                $crate::config::value::quoted(match self { $(Self::$variant => $word,)* })
            }
        }
    };
}
pub(super) use choice;

#[cfg(test)]
mod tests;
