//! Where requests come from when they come through proxies.
//!
//! Anybody can write any header, so what proxies add is believed only when it comes from an address that the configuration
//! trusts, and only as far back as the chain of such addresses goes. There are two families of such headers; the one that
//! the proxies do not write is what clients wrote, and is not looked at.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Uri, header::HOST};

use super::serve::Peer;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// How many proxies of a chain are looked at, from the nearest on.
const HOPS_MAX: usize = 32;

/// A proxy whose headers are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustedProxy {
    /// Those with addresses in a network.
    Net(ipnet::IpNet),
    /// Those that come through a Unix socket.
    Unix,
}

impl std::str::FromStr for TrustedProxy {
    type Err = ();

    /// Reads a network, a single address, or `unix`.
    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let net = text.parse::<ipnet::IpNet>().map(|net| net.trunc()).ok();
        net.or_else(|| text.parse::<IpAddr>().ok().map(ipnet::IpNet::from)).map(Self::Net).ok_or(())
    }
}

impl std::fmt::Display for TrustedProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// The headers in which proxies tell whom they speak for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyHeaders {
    /// `X-Forwarded-For`, `X-Forwarded-Proto` and `X-Forwarded-Host`, which is what most write.
    XForwarded,
    /// `Forwarded`. Source: RFC 7239.
    Forwarded,
}

fn trusts(proxies: &[TrustedProxy], address: Option<IpAddr>) -> bool {
    proxies.iter().any(|proxy| match (proxy, address) {
        (TrustedProxy::Net(net), Some(address)) => net.contains(&address),
        (TrustedProxy::Unix, None) => true,
        (TrustedProxy::Net(_), None) | (TrustedProxy::Unix, Some(_)) => false,
    })
}

/// Who a request comes from that a trusted proxy passed on; `None`: from whoever is at the other end of the connection.
pub(super) fn client_of(
    proxies: &[TrustedProxy],
    written: ProxyHeaders,
    peer: &Peer,
    headers: &HeaderMap,
) -> Option<Peer> {
    if proxies.is_empty() || !trusts(proxies, peer.address) {
        return None;
    }
    let mut client = peer.address;
    for hop in hops(written, headers).into_iter().rev().take(HOPS_MAX) {
        // What cannot be read was not written by a proxy of ours, or hides somebody: who sent it counts.
        let Some(address) = hop else { break };
        client = Some(address);
        if !trusts(proxies, client) {
            break;
        }
    }
    Some(peer.through_proxy(client, written))
}

/// The addresses of the chain, from the client on; `None` in the place of one that cannot be read.
///
/// Source: RFC 7239, section 4, for `Forwarded`; custom for `X-Forwarded-For`.
fn hops(written: ProxyHeaders, headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let name = match written {
        ProxyHeaders::XForwarded => X_FORWARDED_FOR,
        ProxyHeaders::Forwarded => FORWARDED,
    };
    // One hop that is no text must not take the others of its line with it.
    let parts = headers.get_all(name).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let address_in = |part: &[u8]| {
        let text = std::str::from_utf8(part).ok()?.trim();
        match written {
            ProxyHeaders::XForwarded => address(text),
            ProxyHeaders::Forwarded => address(parameter(text, "for")?),
        }
    };
    parts.map(address_in).collect()
}

/// An address, perhaps with a port: `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None if text.matches(':').count() == 1 => text.split_once(':')?.0,
        None => text,
    };
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// A parameter of an element of `Forwarded`, without its quotes.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.into_iter().find(|(key, _)| key.trim().eq_ignore_ascii_case(name))?;
    let value = value.trim();
    Some(value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value))
}

/// The first value that trusted proxies give for the scheme or host.
fn told<'a>(peer: &Peer, headers: &'a HeaderMap, name: &HeaderName, parameter_name: &str) -> Option<&'a str> {
    let first =
        |name: &HeaderName| -> Option<&'a str> { Some(headers.get(name)?.to_str().ok()?.split(',').next()?.trim()) };
    let told = match peer.proxied_by? {
        ProxyHeaders::XForwarded => first(name)?,
        ProxyHeaders::Forwarded => parameter(first(&FORWARDED)?, parameter_name)?,
    };
    Some(told).filter(|text| !text.is_empty())
}

/// The scheme that the client used, as a trusted proxy tells it.
pub(super) fn scheme(peer: &Peer, headers: &HeaderMap) -> Option<&'static str> {
    match told(peer, headers, &X_FORWARDED_PROTO, "proto")? {
        text if text.eq_ignore_ascii_case("https") => Some("https"),
        text if text.eq_ignore_ascii_case("http") => Some("http"),
        _ => None,
    }
}

/// The host that the client asked for, with its port where it gave one: as a trusted proxy tells it, else as the request
/// says. What is no host is none.
pub(super) fn host<'a>(peer: &Peer, headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let told = told(peer, headers, &X_FORWARDED_HOST, "host");
    let own = || uri.authority().map(|authority| authority.as_str()).or_else(|| headers.get(HOST)?.to_str().ok());
    told.or_else(own).filter(|host| is_host(host))
}

fn is_host(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    !text.is_empty() && text.len() <= 260 && text.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn proxies() -> Vec<TrustedProxy> {
        ["10.0.0.0/8", "192.0.2.7", "2001:db8::/32", "unix"].map(|text| text.parse().unwrap()).to_vec()
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
        };
        let mut all = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            all.append(name, value);
        }
        all
    }

    fn seen(peer: Option<&str>, lines: &[(&'static str, &str)]) -> Option<String> {
        seen_in(ProxyHeaders::XForwarded, peer, &headers(lines))
    }

    fn seen_in(written: ProxyHeaders, peer: Option<&str>, headers: &HeaderMap) -> Option<String> {
        let peer = Peer::at(peer.map(|text| text.parse().unwrap()));
        let client = client_of(&proxies(), written, &peer, headers)?;
        assert_eq!(client.header.to_str().unwrap(), client.address.map_or("local".into(), |a| a.to_string()));
        Some(client.address.map_or_else(String::new, |address| address.to_string()))
    }

    #[test]
    fn the_client_is_whoever_the_nearest_trusted_proxies_say() {
        let xff = "x-forwarded-for";
        assert_eq!(seen(Some("203.0.113.9"), &[(xff, "198.51.100.1")]), None, "strangers are not believed");
        assert_eq!(seen(None, &[(xff, "198.51.100.1")]).unwrap(), "198.51.100.1");
        for (line, client) in [
            ("198.51.100.1", "198.51.100.1"),
            ("198.51.100.1, 10.1.1.1", "198.51.100.1"),
            ("1.2.3.4, 198.51.100.1, 10.1.1.1", "198.51.100.1"),
            ("10.2.2.2, 10.1.1.1", "10.2.2.2"),
            ("198.51.100.1:4711", "198.51.100.1"),
            ("[2001:db9::1]:4711", "2001:db9::1"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
            ("1.2.3.4, unknown", "10.0.0.1"),
            ("1.2.3.4, , 10.1.1.1", "10.1.1.1"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(seen(Some("10.0.0.1"), &[(xff, line)]).unwrap(), client, "{line}");
        }
        let two = [(xff, "1.2.3.4"), (xff, "198.51.100.1")];
        assert_eq!(seen(Some("192.0.2.7"), &two).unwrap(), "198.51.100.1");
        assert_eq!(seen(Some("10.0.0.1"), &[]).unwrap(), "10.0.0.1");
        // Where proxies write one family of headers, the other one is what the client wrote.
        let both =
            headers(&[("forwarded", "for=1.2.3.4;proto=http, For=\"[2001:db9::1]:80\";by=x"), (xff, "198.51.100.1")]);
        assert_eq!(seen_in(ProxyHeaders::Forwarded, Some("10.0.0.1"), &both).unwrap(), "2001:db9::1");
        assert_eq!(seen_in(ProxyHeaders::XForwarded, Some("10.0.0.1"), &both).unwrap(), "198.51.100.1");
        let foreign = headers(&[("forwarded", "for=1.2.3.4")]);
        assert_eq!(seen_in(ProxyHeaders::XForwarded, Some("10.0.0.1"), &foreign).unwrap(), "10.0.0.1");
    }

    #[test]
    fn a_hop_that_is_no_text_hides_no_other() {
        for (line, client) in [
            (&b"\xff, 198.51.100.1"[..], "198.51.100.1"),
            (b"1.2.3.4, \xff", "10.0.0.1"),
            (b"1.2.3.4, 198.51.100.1\xff", "10.0.0.1"),
        ] {
            let mut all = headers(&[("forwarded", "for=1.2.3.4")]);
            all.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line).unwrap());
            assert_eq!(seen_in(ProxyHeaders::XForwarded, Some("10.0.0.1"), &all).unwrap(), client);
        }
    }

    #[test]
    fn scheme_and_host_are_believed_from_trusted_proxies_only() {
        let lines =
            headers(&[("x-forwarded-proto", "https"), ("x-forwarded-host", "acme.r.example"), ("host", "inner:1")]);
        let uri: Uri = "/v2/".parse().unwrap();
        let direct = Peer::at("203.0.113.9".parse().ok());
        assert_eq!((scheme(&direct, &lines), host(&direct, &lines, &uri)), (None, Some("inner:1")));
        let behind = |written, lines: &HeaderMap| {
            client_of(&proxies(), written, &Peer::at("10.0.0.1".parse().ok()), lines).unwrap()
        };
        let (by_forwarded, behind) =
            (behind(ProxyHeaders::Forwarded, &lines), behind(ProxyHeaders::XForwarded, &lines));
        assert_eq!((scheme(&behind, &lines), host(&behind, &lines, &uri)), (Some("https"), Some("acme.r.example")));
        let rfc = headers(&[("forwarded", "for=1.2.3.4;proto=HTTPS;host=\"r.example\"")]);
        let read = (scheme(&by_forwarded, &rfc), host(&by_forwarded, &rfc, &uri));
        assert_eq!(read, (Some("https"), Some("r.example")));
        assert_eq!((scheme(&by_forwarded, &lines), host(&by_forwarded, &lines, &uri)), (None, Some("inner:1")));
        assert_eq!((scheme(&behind, &rfc), host(&behind, &rfc, &uri)), (None, None));
        for bad in ["a/b", "user@host", "a\"b", "a b", "a?b", ""] {
            let lines = headers(&[("x-forwarded-host", bad)]);
            assert_eq!(host(&behind, &lines, &uri), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_strangers_write_never_passes_for_a_trusted_address(lines in prop::collection::vec(prop::collection::vec(prop_oneof![9 => 0x20_u8..0x7f, 1 => 0x80_u8..], 0..40), 0..4), name in prop::sample::select(vec!["x-forwarded-for", "forwarded"])) {
            // A trusted proxy appends the address it saw, 198.51.100.1: nothing before that counts.
            let mut all = HeaderMap::new();
            for line in &lines {
                all.append(HeaderName::from_static(name), HeaderValue::from_bytes(line).unwrap());
            }
            let (written, seen) = match name {
                "forwarded" => (ProxyHeaders::Forwarded, "for=198.51.100.1"),
                _ => (ProxyHeaders::XForwarded, "198.51.100.1"),
            };
            all.append(HeaderName::from_static(name), HeaderValue::from_static(seen));
            let client = client_of(&proxies(), written, &Peer::at("10.0.0.1".parse().ok()), &all).unwrap();
            prop_assert_eq!(client.address, "198.51.100.1".parse().ok());
        }

        #[test]
        fn networks_are_read_or_refused_and_never_widened(text in "[0-9a-f.:/]{0,40}") {
            if let Ok(TrustedProxy::Net(net)) = text.parse::<TrustedProxy>() {
                let again: TrustedProxy = TrustedProxy::Net(net).to_string().parse().unwrap();
                prop_assert_eq!(again, TrustedProxy::Net(net));
                match text.split_once('/') {
                    Some((_, bits)) => prop_assert_eq!(bits.parse::<u8>().unwrap(), net.prefix_len()),
                    None => prop_assert_eq!(net.prefix_len(), net.max_prefix_len()),
                }
            }
        }
    }
}
