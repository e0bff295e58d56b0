//! `keppel peers`.

use clap::Args;
use serde_json::Value;

use super::super::Failure;
use super::Target;
use super::output::{field, print};

/// Lists the other nodes of the registry's federation.
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
            let rows = peers.iter().map(|peer| ["hostname", "region", "role"].map(|name| field(peer, name)));
            print(json, &answer, ["HOSTNAME", "REGION", "ROLE"], rows)
        })
    }
}
