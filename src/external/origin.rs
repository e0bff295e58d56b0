use std::net::IpAddr;
use std::sync::Arc;

use keppel_federation::vocabulary::AccountName;
use reqwest::Url;

use super::{ExternalError, ExternalOptions};
use crate::model::policy::ExternalSource;

/// Where an account's content comes from.
#[derive(Debug, Clone)]
pub struct Origin {
    pub(super) account: AccountName,
    pub(super) source: Arc<ExternalSource>,
}

impl Origin {
    /// The source of an account.
    pub fn new(account: AccountName, source: Arc<ExternalSource>) -> Self {
        Self { account, source }
    }

    /// The registry and the path there, as the account's settings have it.
    pub fn url(&self) -> &str {
        &self.source.url
    }

    /// The settings that name it.
    pub fn source(&self) -> &ExternalSource {
        &self.source
    }

    /// The name there of a repository, which is given without its account.
    pub(super) fn repository(&self, path: &str) -> String {
        match self.source.url.split_once('/') {
            Some((_, prefix)) if !prefix.is_empty() => format!("{prefix}/{path}"),
            _ => path.to_owned(),
        }
    }

    /// The URL of something in a repository there, such as `manifests/latest`.
    pub(super) fn locate(&self, options: &ExternalOptions, path: &str, rest: &str) -> Result<Url, ExternalError> {
        let host = host_of(&self.source.url);
        let scheme = if options.is_plain(host) { "http" } else { "https" };
        let text = format!("{scheme}://{host}/v2/{}/{rest}", self.repository(path));
        let url = Url::parse(&text).map_err(|error| ExternalError::unusable(format!("{text:?} is no URL: {error}")))?;
        options.check_place(&url)?;
        Ok(url)
    }

    /// Checks a URL that the registry sends us to: of a scheme that may be spoken there, and not into our own machine or
    /// network's innards unless the registry is there itself, nor into a forbidden network.
    pub(super) fn check_target(&self, options: &ExternalOptions, url: &Url) -> Result<(), ExternalError> {
        options.check_place(url)?;
        let authority = authority_of(url);
        match url.scheme() {
            "https" => {}
            "http" if options.is_plain(&authority) => {}
            scheme => {
                let reason = format!("it sends us to {authority:?} by {scheme}, which has to be https");
                return Err(ExternalError::unusable(reason));
            }
        }
        if is_inner(&authority) && !is_inner(host_of(&self.source.url)) && !options.is_plain(&authority) {
            return Err(ExternalError::unusable(format!("it sends us to {authority:?}, which is inside here")));
        }
        Ok(())
    }
}

impl ExternalOptions {
    /// Whether a host (with or without a port) is spoken to in plain HTTP.
    pub(super) fn is_plain(&self, authority: &str) -> bool {
        let name = host_without_port(authority);
        self.plain_http_hosts.iter().any(|plain| plain == authority || plain == name)
    }

    /// Refuses a URL whose host is an address in a forbidden network. Names are looked at once they are resolved.
    fn check_place(&self, url: &Url) -> Result<(), ExternalError> {
        let authority = authority_of(url);
        match address_of(&authority).filter(|address| self.forbids(*address) && !self.is_plain(&authority)) {
            Some(address) => Err(ExternalError::unusable(super::resolver::refusal(address))),
            None => Ok(()),
        }
    }

    /// Whether an address is in a forbidden network.
    pub(super) fn forbids(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.forbidden_networks.iter().any(|network| network.contains(&address))
    }
}

/// The host of an upstream. Docker Hub's registry has another name than people write.
fn host_of(url: &str) -> &str {
    match url.split('/').next().unwrap_or_default() {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        host => host,
    }
}

/// The host of a URL with the port where that is not the usual one.
fn authority_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(super) fn host_without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => authority,
    }
}

/// Whether an address is this machine's own or one of its link; a cloud's metadata service has such a one.
fn is_inner(authority: &str) -> bool {
    let host = host_without_port(authority);
    if host == "localhost" || host.ends_with(".localhost") {
        return true;
    }
    match address_of(authority) {
        Some(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local() || address.is_unspecified(),
        Some(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unspecified() || address.is_unicast_link_local()
        }
        None => false,
    }
}

/// The address that a host is written as, with or without a port.
fn address_of(authority: &str) -> Option<IpAddr> {
    let host = host_without_port(authority).trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::policy::Secret;

    fn origin(url: &str) -> Origin {
        let source = ExternalSource {
            url: url.into(),
            username: String::new(),
            password: Secret::default(),
            platform_filter: Vec::new(),
        };
        Origin::new(AccountName::parse("mirror").unwrap(), Arc::new(source))
    }

    #[test]
    fn the_account_is_cut_off_and_the_path_of_the_upstream_put_before() {
        let mut options = ExternalOptions { forbidden_networks: Vec::new(), ..Default::default() };
        let locate = |url: &str, options: &ExternalOptions| {
            origin(url).locate(options, "library/alpine", "manifests/3").unwrap().to_string()
        };
        assert_eq!(locate("docker.io", &options), "https://registry-1.docker.io/v2/library/alpine/manifests/3");
        assert_eq!(locate("r.example.org/a/b", &options), "https://r.example.org/v2/a/b/library/alpine/manifests/3");
        options.plain_http_hosts = vec!["127.0.0.1:5001".into(), "near".into()];
        assert_eq!(locate("127.0.0.1:5001", &options), "http://127.0.0.1:5001/v2/library/alpine/manifests/3");
        assert_eq!(locate("near:80/x", &options), "http://near/v2/x/library/alpine/manifests/3");
        assert!(locate("127.0.0.1:5002", &options).starts_with("https://"));
        assert!(locate("[::1]:5001", &options).starts_with("https://[::1]:5001/"));
    }

    #[test]
    fn a_registry_cannot_send_us_into_our_own_machine_or_out_of_https() {
        let plain_http_hosts = vec!["127.0.0.1:5001".into()];
        let options = ExternalOptions { plain_http_hosts, forbidden_networks: Vec::new(), ..Default::default() };
        let sent = |from: &str, to: &str| origin(from).check_target(&options, &Url::parse(to).unwrap()).is_ok();
        assert!(sent("r.example.org", "https://storage.example.org/x?sig=1"));
        assert!(sent("r.example.org", "http://127.0.0.1:5001/x"), "the operator named that host");
        for inside in [
            "http://storage.example.org/x",
            "https://127.0.0.1/x",
            "https://localhost:8443/x",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/x",
            "https://[fe80::1]/x",
            "https://[::ffff:127.0.0.1]/x",
            "https://0.0.0.0/x",
            "ftp://r.example.org/x",
            "file:///etc/passwd",
        ] {
            assert!(!sent("r.example.org", inside), "{inside}");
        }
        assert!(sent("127.0.0.1:5002", "https://127.0.0.1:7000/x"), "it is there itself");
    }

    #[test]
    fn forbidden_networks_are_neither_asked_nor_gone_to() {
        let options = ExternalOptions {
            plain_http_hosts: vec!["127.0.0.1:5001".into()],
            forbidden_networks: ["127.0.0.0/8", "10.9.0.0/16", "::/127"].map(|text| text.parse().unwrap()).to_vec(),
            ..Default::default()
        };
        let asked = |url: &str| origin(url).locate(&options, "app", "manifests/1").is_ok();
        assert!(asked("127.0.0.1:5001") && asked("10.8.0.1") && asked("r.example.org"));
        for inside in ["127.0.0.1:5002", "127.1:443", "2130706433", "10.9.3.4", "[::1]:5001", "[::ffff:127.0.0.1]"] {
            assert!(!asked(inside), "{inside}");
        }
        let sent = |to: &str| origin("127.0.0.1:5001").check_target(&options, &Url::parse(to).unwrap()).is_ok();
        assert!(sent("http://127.0.0.1:5001/x") && !sent("https://127.0.0.1:7000/x") && !sent("https://10.9.0.1/x"));
    }
}
