//! Three nodes in one process: the first founds a federation, invites two more, and all agree on who owns a name.
//!
//! Run it with `cargo run --example three_nodes`.

use std::error::Error;
use std::time::Duration;

use keppel_federation::claims::{Opaque, Outcome, Role};
use keppel_federation::identity::NodeKey;
use keppel_federation::transport::memory::MemoryNetwork;
use keppel_federation::vocabulary::{AccountName, Region, TenantId};
use keppel_federation::{Federation, FederationOptions};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let network = MemoryNetwork::new(1);
    let disk = tempfile::tempdir()?;
    let start = async |region: &str| -> Result<Federation, Box<dyn Error>> {
        let data_dir = disk.path().join(region);
        let key = NodeKey::load_or_create(&data_dir)?;
        let options = FederationOptions::short(&data_dir, Region::parse(region)?);
        Ok(Federation::start_on(options, network.join(key.id())).await?)
    };

    let eu = start("eu").await?;
    let us = start("us").await?;
    let ap = start("ap").await?;
    for node in [&us, &ap] {
        let invitation = eu.invite(node.region().clone(), Role::Full, DAY).await?;
        node.join(&invitation).await?;
        println!("{} joined with an invitation of {} letters", node.region(), invitation.to_text().len());
    }

    // Two regions want the same name. One gets it; the other learns who has it.
    let name = AccountName::parse("library")?;
    let tenant = TenantId::parse("acme")?;
    for node in [&ap, &us] {
        let decision = node.claim(name.clone(), tenant.clone(), Opaque::default()).await?;
        match decision.outcome {
            Outcome::Won { epoch, .. } => println!("{} won {name} in epoch {epoch}", node.region()),
            Outcome::Taken { region, .. } => println!("{} found {name} taken by {region}", node.region()),
            other => println!("{}: {other:?}", node.region()),
        }
    }
    // What was decided is readable on every node, without the network.
    for node in [&eu, &us, &ap] {
        let owner = node.linearize().await?.account(&name).map(|account| account.region.to_string());
        println!("{} knows that {name} belongs to {}", node.region(), owner.as_deref().unwrap_or("nobody"));
    }
    for node in [ap, us, eu] {
        node.shutdown().await;
    }
    Ok(())
}
