use std::net::IpAddr;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::ExternalOptions;
use super::origin::host_without_port;

/// Resolves names by the system, and refuses those that are in a forbidden network: a name that anybody may write into an
/// account's settings must not lead to what only this machine can reach.
pub(super) struct Resolver {
    options: ExternalOptions,
    /// Names that the operator listed, which may be anywhere, and the system's proxy.
    exempt: Vec<String>,
}

impl Resolver {
    pub(super) fn new(options: &ExternalOptions) -> Self {
        let listed = options.plain_http_hosts.iter().map(|host| host_without_port(host).to_ascii_lowercase());
        let proxies = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"].into_iter();
        let proxies =
            proxies.filter_map(|name| Url::parse(&std::env::var(name).ok()?).ok()?.host_str().map(str::to_owned));
        Self { exempt: listed.chain(proxies).collect(), options: options.clone() }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let is_exempt = self.exempt.iter().any(|host| host == name.as_str());
        let options = self.options.clone();
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let forbidden = found.iter().map(|address| address.ip()).find(|address| options.forbids(*address));
            match forbidden.filter(|_| !is_exempt) {
                Some(address) => Err(refusal(address).into()),
                None => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}

/// Why an address is not asked.
pub(super) fn refusal(address: IpAddr) -> String {
    format!("{address} is in a network that external.forbidden_networks keeps registries out of")
}
