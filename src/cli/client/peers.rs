//! `keppel peers`.

use clap::Args;
use serde_json::Value;

use super::super::Failure;
use super::Target;
use super::output::{field, print};

/// Lists the other nodes of the registry's federation, and how far the copies of their accounts are behind.
#[derive(Debug, Args)]
pub(in super::super) struct Peers {
    #[command(flatten)]
    target: Target,
}

impl Peers {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        self.target.run(async |client, json| {
            let answer = client.get("/keppel/v1/peers").await?;
            let peers = answer.get("peers").and_then(Value::as_array).cloned().unwrap_or_default();
            let rows = peers.iter().map(|peer| {
                let [hostname, region, role] = ["hostname", "region", "role"].map(|name| field(peer, name));
                let lag = peer.get("lag").cloned().unwrap_or_default();
                let [events, bytes] = ["events", "bytes"].map(|name| field(&lag, name));
                let seconds =
                    lag.get("seconds").and_then(Value::as_f64).map_or_else(String::new, |s| format!("{s:.1}"));
                [hostname, region, role, events, bytes, seconds]
            });
            let head = ["HOSTNAME", "REGION", "ROLE", "EVENTS BEHIND", "BYTES BEHIND", "SECONDS BEHIND"];
            print(json, &answer, head, rows)
        })
    }
}
