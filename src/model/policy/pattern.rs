use std::sync::{Arc, LazyLock};

use quick_cache::sync::Cache;
use regex::bytes::{Regex, RegexBuilder};

use super::error::one_line;

/// The longest regular expression, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// The most memory one compiled expression may take, in bytes.
const COMPILED_BYTES_MAX: usize = 256 * 1024;
/// How much memory its matcher may use for states it has seen, in bytes.
const STATES_BYTES_MAX: usize = 256 * 1024;
/// How deep groups may nest.
const NESTING_MAX: u32 = 32;
/// How many compiled expressions are kept for whoever writes the same one again.
const SHARED_MAX: usize = 2048;

/// Why a text is not a usable pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is longer than [`PATTERN_BYTES_MAX`].
    #[error("is longer than {PATTERN_BYTES_MAX} bytes")]
    TooLong,
    /// It would need too much memory.
    #[error("would need too much memory as a regular expression: use fewer or smaller repetitions")]
    TooBig,
    /// It is not a regular expression.
    #[error("is not a valid regular expression: {0}")]
    Invalid(String),
}

/// A regular expression that must match the whole text, in time linear in the text.
///
/// Character classes are those of ASCII, as are the names that patterns meet. Plain words, prefixes and "anything" do
/// without the engine. Equal expressions share one compiled form.
#[derive(Clone)]
pub struct Pattern(Matcher);

#[derive(Clone)]
enum Matcher {
    Anything,
    Exactly(Box<str>),
    StartsWith(Box<str>),
    Regex(Arc<Regex>),
}

impl Pattern {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Any [`PatternError`].
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.len() > PATTERN_BYTES_MAX {
            return Err(PatternError::TooLong);
        }
        if text == ".*" {
            return Ok(Self(Matcher::Anything));
        }
        if let Some(prefix) = text.strip_suffix(".*").filter(|prefix| is_plain(prefix)) {
            return Ok(Self(Matcher::StartsWith(prefix.into())));
        }
        if is_plain(text) {
            return Ok(Self(Matcher::Exactly(text.into())));
        }
        shared(&WHOLE, text, |text| {
            // On its own first: an expression like `a)|(b` must not get out of the group it is put in.
            parse(text)?;
            build(&format!(r"\A(?:{text})\z"))
        })
        .map(|regex| Self(Matcher::Regex(regex)))
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match &self.0 {
            // As in a regular expression, the dot stands for anything but a line break.
            Matcher::Anything => !text.contains('\n'),
            Matcher::Exactly(word) => **word == *text,
            Matcher::StartsWith(prefix) => text.starts_with(&**prefix) && !text.contains('\n'),
            Matcher::Regex(regex) => regex.is_match(text.as_bytes()),
        }
    }

    /// About how much memory it takes, in units of a small pattern.
    pub(super) fn weight(&self) -> u64 {
        match self.0 {
            Matcher::Regex(_) => 64,
            _ => 1,
        }
    }
}

impl std::fmt::Debug for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Matcher::Anything => f.write_str("/.*/"),
            Matcher::Exactly(word) => write!(f, "/{word}/"),
            Matcher::StartsWith(prefix) => write!(f, "/{prefix}.*/"),
            Matcher::Regex(regex) => write!(f, "/{regex}/"),
        }
    }
}

type Shared = LazyLock<Cache<Box<str>, Arc<Regex>>>;
static WHOLE: Shared = LazyLock::new(|| Cache::new(SHARED_MAX));
static ANYWHERE: Shared = LazyLock::new(|| Cache::new(SHARED_MAX));

/// An expression that may match anywhere in a text, as `matches` of CEL has it.
///
/// # Errors
/// Any [`PatternError`].
pub(super) fn search(text: &str) -> Result<Arc<Regex>, PatternError> {
    if text.len() > PATTERN_BYTES_MAX {
        return Err(PatternError::TooLong);
    }
    shared(&ANYWHERE, text, build)
}

fn shared(
    cache: &Cache<Box<str>, Arc<Regex>>,
    text: &str,
    compile: impl FnOnce(&str) -> Result<Regex, PatternError>,
) -> Result<Arc<Regex>, PatternError> {
    if let Some(regex) = cache.get(text) {
        return Ok(regex);
    }
    let regex = Arc::new(compile(text)?);
    cache.insert(text.into(), regex.clone());
    Ok(regex)
}

fn parse(text: &str) -> Result<(), PatternError> {
    build(text).map(drop)
}

fn build(text: &str) -> Result<Regex, PatternError> {
    RegexBuilder::new(text)
        .unicode(false)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(STATES_BYTES_MAX)
        .nest_limit(NESTING_MAX)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => PatternError::TooBig,
            error => PatternError::Invalid(reason(&error.to_string())),
        })
}

/// The last line of an error of the engine says what is wrong; those before it draw a picture.
fn reason(error: &str) -> String {
    let last = error.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or(error);
    one_line(last.trim().strip_prefix("error: ").unwrap_or(last))
}

/// Whether a text means itself as a regular expression.
fn is_plain(text: &str) -> bool {
    !text.contains(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '@' | ':' | ' ')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().matches(text)
    }

    #[test]
    fn patterns_match_the_whole_text_only() {
        assert!(matches("library/.*", "library/alpine") && !matches("library/.*", "my/library/alpine"));
        assert!(matches("a|ab", "ab") && !matches("a|ab", "abc") && !matches("a", "ab") && !matches("b", "ab"));
        assert!(matches(".*", "anything/at-all") && matches("", "") && !matches("", "x"));
        assert!(matches("[a-z]+-prod", "web-prod") && !matches("[a-z]+-prod", "web-prod-2"));
        assert!(!matches("foo", "foo\n") && !matches("^foo$", "foo\nbar") && !matches("foo.*", "foo\nbar"));
    }

    #[test]
    fn no_pattern_gets_out_of_its_anchors() {
        for text in ["a)|(b", "a)|(?:b", "(?x) a #", "a\\", "[a", "(?<n>a"] {
            assert!(matches!(Pattern::new(text), Err(PatternError::Invalid(_))), "{text}");
        }
        assert!(!matches("a|b", "xb") && !matches("(?m)^a$", "x\na"));
    }

    #[test]
    fn patterns_that_need_too_much_are_refused() {
        assert_eq!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1)).unwrap_err(), PatternError::TooLong);
        assert_eq!(Pattern::new("(((a{100}){100}){100})").unwrap_err(), PatternError::TooBig);
        assert!(matches!(
            Pattern::new(&format!("{}a{}", "(".repeat(200), ")".repeat(200))),
            Err(PatternError::Invalid(_))
        ));
        assert!(matches!(Pattern::new(r"(a)\1"), Err(PatternError::Invalid(_))));
    }

    #[test]
    fn reasons_are_one_line() {
        let error = Pattern::new("(foo").unwrap_err().to_string();
        assert_eq!(error, "is not a valid regular expression: unclosed group");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_pattern_panic(pattern in ".{0,60}", text in ".{0,60}") {
            if let Ok(pattern) = Pattern::new(&pattern) {
                let _ = pattern.matches(&text);
            }
        }

        #[test]
        fn shortcuts_decide_as_the_engine_does(word in "[a-z/@-]{0,6}", tail in prop::bool::ANY, text in "[a-z/@\n-]{0,8}") {
            let pattern = format!("{word}{}", if tail { ".*" } else { "" });
            let engine = Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap();
            for text in [text.clone(), format!("{word}{text}")] {
                prop_assert_eq!(matches(&pattern, &text), engine.is_match(text.as_bytes()), "{} on {:?}", pattern, text);
            }
        }
    }
}
