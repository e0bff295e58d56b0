use std::collections::BTreeMap;

use serde::Deserialize;

/// Media types of configurations that describe an image.
const MEDIA_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// What the registry tells of an image's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When the oldest of its layers was made, in UNIX seconds.
    pub min_layer_created_at: Option<i64>,
    /// When the newest of its layers was made, in UNIX seconds.
    pub max_layer_created_at: Option<i64>,
}

#[derive(Deserialize, Default)]
struct Document {
    #[serde(default)]
    config: Option<Config>,
    #[serde(default)]
    history: Option<Vec<Step>>,
}

#[derive(Deserialize, Default)]
struct Config {
    #[serde(rename = "Labels", default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    empty_layer: Option<bool>,
}

impl ImageConfig {
    /// Whether a configuration of this media type describes an image.
    pub fn is_media_type(media_type: &str) -> bool {
        MEDIA_TYPES.contains(&media_type)
    }

    /// Reads a configuration; one of another form tells nothing.
    ///
    /// Source: OCI image-spec, "Image Configuration".
    pub fn parse(bytes: &[u8]) -> Self {
        let document: Document = serde_json::from_slice(bytes).unwrap_or_default();
        let steps = document.history.unwrap_or_default();
        let layers = steps.iter().filter(|step| step.empty_layer != Some(true));
        let times: Vec<i64> = layers.filter_map(|step| unix_seconds(step.created.as_deref()?)).collect();
        Self {
            labels: document.config.and_then(|config| config.labels).unwrap_or_default(),
            min_layer_created_at: times.iter().copied().min(),
            max_layer_created_at: times.iter().copied().max(),
        }
    }
}

/// Reads a time such as `2024-02-29T12:30:05.25+01:00`; fractions of a second are cut off.
///
/// Source: RFC 3339, section 5.6.
fn unix_seconds(text: &str) -> Option<i64> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let is = |at: usize, accepted: &[u8]| text.as_bytes().get(at).is_some_and(|b| accepted.contains(b));
    let well_formed = is(4, b"-") && is(7, b"-") && is(10, b"Tt ") && is(13, b":") && is(16, b":") && text.is_ascii();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let in_range = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !well_formed || !in_range {
        return None;
    }
    let rest = text.get(19..)?;
    let zone = match rest.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    let offset_minutes = match zone {
        "Z" | "z" => 0,
        zone => {
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            let minutes = hours.parse::<u8>().ok().map(i64::from)? * 60 + minutes.parse::<u8>().ok().map(i64::from)?;
            match zone.as_bytes()[0] {
                b'+' => minutes,
                b'-' => -minutes,
                _ => return None,
            }
        }
    };
    // Years begin in March, so that the day that a leap year has more is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days =
        365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 719_469;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second - offset_minutes * 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_read_with_their_zones() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2024-02-29T12:30:05.25+01:00", Some(1_709_206_205)),
            ("2000-03-01t00:00:00z", Some(951_868_800)),
            ("1969-12-31T23:59:59-00:30", Some(1799)),
            ("0001-01-01T00:00:00Z", Some(-62_135_596_800)),
            ("2024-13-01T00:00:00Z", None),
            ("2024-01-01", None),
            ("2024-01-01T00:00:00", None),
            ("2024-01-01T00:00:00+1", None),
            ("+024-01-01T00:00:00Z", None),
            ("", None),
        ] {
            assert_eq!(unix_seconds(text), seconds, "{text}");
        }
    }

    #[test]
    fn labels_and_times_of_layers_are_found() {
        let config = br#"{"config":{"Labels":{"a":"b"}},"os":"linux","history":[
            {"created":"2024-02-29T12:30:05Z"},{"created":"1999-01-01T00:00:00Z","empty_layer":true},
            {"created":"2024-03-01T00:00:00Z"},{"created":"yesterday"},{}]}"#;
        let found = ImageConfig::parse(config);
        assert_eq!(found.labels, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert_eq!(
            (found.min_layer_created_at, found.max_layer_created_at),
            (Some(1_709_209_805), Some(1_709_251_200))
        );
        for other in [&b"{}"[..], b"[]", b"", b"{\"config\":null}", b"{\"config\":{\"Labels\":null}}", b"\xff"] {
            assert_eq!(ImageConfig::parse(other), ImageConfig::default());
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", near in "[0-9TZ:.+-]{0,30}") {
            let _ = (unix_seconds(&text), unix_seconds(&near), ImageConfig::parse(text.as_bytes()));
        }
    }
}
