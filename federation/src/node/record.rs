//! Sees to it that the federation knows where this node is: its own record among the members, and its card.

use std::sync::Arc;

use super::{Inner, jittered};
use crate::claims::{Command, Outcome};

/// Compares and corrects, again and again: addresses change while a node runs, too.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        bring_up_to_date(&inner).await;
        tokio::time::sleep(jittered(inner.options.record_interval)).await;
    }
}

async fn bring_up_to_date(inner: &Inner) {
    let addresses = inner.advertised().await;
    let api_url = inner.options.api_url.clone();
    let card = {
        let mut card = inner.card();
        let changed = card.addresses != addresses;
        card.addresses.clone_from(&addresses);
        changed.then(|| card.clone())
    };
    if let Some(card) = card {
        inner.membership.publish(card).await;
    }
    let claims = inner.claims();
    let node = inner.transport.local();
    let Some(member) = claims.state().member(node) else { return };
    if member.addresses == addresses && member.api_url == api_url {
        return;
    }
    match claims.submit(Command::UpdateMember { node, addresses, api_url }).await {
        Ok(decision) if decision.outcome == Outcome::Done => {
            tracing::info!("the federation knows this node's new addresses");
        }
        Ok(decision) => tracing::warn!("this node's new addresses were not taken: {:?}", decision.outcome),
        // The next round tries again; meanwhile gossip tells those who can be reached.
        Err(e) => tracing::debug!("this node's new addresses are not recorded yet: {e}"),
    }
}
