//! `Accept`, `If-None-Match` and `If-Range`.

use http::{
    HeaderMap,
    header::{ACCEPT, IF_NONE_MATCH, IF_RANGE},
};

/// Whether a client that has these entity tags has the current content. Compares weakly, and takes a digest without
/// quotes too, as old Docker clients send it. Source: RFC 9110, section 13.1.2.
pub(super) fn none_match_holds(headers: &HeaderMap, etag: &[u8]) -> bool {
    let bare = etag.trim_ascii().strip_prefix(b"\"").and_then(|tag| tag.strip_suffix(b"\"")).unwrap_or(etag);
    headers.get_all(IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|b| *b == b',')).any(|tag| {
        let tag = tag.trim_ascii();
        let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
        tag == b"*" || tag.strip_prefix(b"\"").and_then(|tag| tag.strip_suffix(b"\"")).unwrap_or(tag) == bare
    })
}

/// Whether a `Range` may be honoured: there is no `If-Range`, or it names the current content. A date never does, since
/// content here has none. Source: RFC 9110, section 13.1.5.
pub(super) fn range_may_be_honoured(headers: &HeaderMap, etag: &[u8]) -> bool {
    headers.get(IF_RANGE).is_none_or(|value| value.as_bytes() == etag)
}

/// Whether a client can take this media type. One that names no manifest types at all (`application/json`, say) is not
/// choosing between them, and takes what there is.
pub(super) fn accepts(headers: &HeaderMap, media_type: &[u8]) -> bool {
    let (mut listed, mut chooses) = (false, false);
    for range in headers.get_all(ACCEPT).iter().flat_map(|value| value.as_bytes().split(|b| *b == b',')) {
        let mut parts = range.split(|b| *b == b';');
        let name = parts.next().unwrap_or_default().trim_ascii();
        if name.is_empty() {
            continue;
        }
        listed = true;
        let refused = parts.any(|parameter| is_zero_quality(parameter.trim_ascii()));
        let matches =
            name == b"*/*" || name.eq_ignore_ascii_case(b"application/*") || name.eq_ignore_ascii_case(media_type);
        if matches && !refused {
            return true;
        }
        chooses |= names_a_manifest(name);
    }
    !(listed && chooses)
}

fn is_zero_quality(parameter: &[u8]) -> bool {
    let Some((key, value)) = parameter.split_at_checked(2) else { return false };
    key.eq_ignore_ascii_case(b"q=") && value.starts_with(b"0") && value[1..].iter().all(|b| matches!(b, b'.' | b'0'))
}

fn names_a_manifest(media_type: &[u8]) -> bool {
    let prefixes: [&[u8]; 4] = [
        b"application/vnd.docker.distribution.manifest.",
        b"application/vnd.oci.image.manifest.",
        b"application/vnd.oci.image.index.",
        b"application/vnd.oci.artifact.manifest.",
    ];
    prefixes.iter().any(|prefix| media_type.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(name: HeaderName, values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn entity_tags_are_compared_weakly_in_lists_and_several_lines() {
        let holds = |values: &[&str]| none_match_holds(&headers(IF_NONE_MATCH, values), b"\"sha256:aa\"");
        for good in ["\"sha256:aa\"", "W/\"sha256:aa\"", "\"x\", \"sha256:aa\"", "*", "sha256:aa"] {
            assert!(holds(&[good]), "{good}");
        }
        assert!(holds(&["\"x\"", "\"sha256:aa\""]));
        for bad in ["", "\"sha256:ab\"", "\"sha256:a", "x"] {
            assert!(!holds(&[bad]), "{bad}");
        }
        assert!(!holds(&[]));
    }

    #[test]
    fn if_range_compares_strongly() {
        let may = |values: &[&str]| range_may_be_honoured(&headers(IF_RANGE, values), b"\"sha256:aa\"");
        assert!(may(&[]));
        assert!(may(&["\"sha256:aa\""]));
        for bad in ["W/\"sha256:aa\"", "\"other\"", "Wed, 21 Oct 2015 07:28:00 GMT"] {
            assert!(!may(&[bad]), "{bad}");
        }
    }

    #[test]
    fn only_a_choice_of_other_manifest_types_is_a_refusal() {
        const INDEX: &str = "application/vnd.oci.image.index.v1+json";
        let takes = |values: &[&str]| accepts(&headers(ACCEPT, values), INDEX.as_bytes());
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        assert!(takes(&[]));
        assert!(takes(&[""]));
        assert!(takes(&[INDEX]));
        assert!(takes(&[docker, INDEX]));
        assert!(takes(&[&format!("{docker}, {INDEX};q=0.5")]));
        assert!(takes(&[&format!("{docker}, */*;q=0.1")]));
        assert!(takes(&["application/json"]));
        assert!(takes(&["text/html"]));
        assert!(takes(&["application/*"]));
        assert!(!takes(&[docker]));
        assert!(!takes(&[&format!("{docker}, {INDEX};q=0")]));
        assert!(!takes(&[&format!("{docker}, */*;q=0.000")]));
    }
}
