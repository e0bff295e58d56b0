//! Keeps transport and membership in step with who the members are and where they say they are.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::broadcast;

use super::{FederationEvent, Inner, on_disk};
use crate::admission::Introduction;
use crate::claims::{Change, Notice};
use crate::membership::MembershipEvent;
use crate::vocabulary::NodeId;

/// Follows the changes of members until the node stops, and passes on what the host may want to know.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut health = inner.membership.subscribe();
    loop {
        let mut changes = inner.claims().state().watch_changes();
        bring_in_step(&inner).await;
        loop {
            tokio::select! {
                notice = changes.next() => match notice {
                    Some(Notice::Changed { change, .. }) => {
                        if matches!(change, Change::Member(_)) {
                            bring_in_step(&inner).await;
                        }
                        _ = inner.events.send(FederationEvent::Changed(change));
                    }
                    Some(Notice::Resync) => {
                        bring_in_step(&inner).await;
                        _ = inner.events.send(FederationEvent::Resync);
                    }
                    // The node joins another federation: its claims are being replaced.
                    None => {
                        inner.rearranged.notified().await;
                        break;
                    }
                },
                event = health.recv() => match event {
                    Ok(MembershipEvent::Health { node, health }) => {
                        _ = inner.events.send(FederationEvent::Health { node, health });
                    }
                    Ok(MembershipEvent::Described(node)) => set_addresses(&inner, node),
                    Err(broadcast::error::RecvError::Lagged(_)) => bring_in_step(&inner).await,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = inner.rearranged.notified() => break,
            }
        }
        _ = inner.events.send(FederationEvent::Resync);
    }
}

/// Tells transport and membership who the members are. A member that is none any more is cut off by this.
pub(super) async fn bring_in_step(inner: &Inner) {
    let local = inner.transport.local();
    let state = inner.claims().state();
    let members: BTreeSet<NodeId> = state.members().iter().map(|member| member.node).collect();
    let mut admitted = members.clone();
    if members.contains(&local) {
        retire_introduction(inner).await;
    } else if let Some(introduction) = &*inner.introduction() {
        // The state is yet to come; until then the word of the member that let this node in counts.
        admitted.extend(introduction.members.iter().map(|member| member.node));
    }
    let admitted: Vec<NodeId> = admitted.into_iter().collect();
    inner.transport.set_admitted(admitted.clone());
    for node in admitted.iter().filter(|node| **node != local) {
        set_addresses(inner, *node);
    }
    inner.membership.set_admitted(admitted).await;
}

async fn retire_introduction(inner: &Inner) {
    if inner.introduction().take().is_none() {
        return;
    }
    let data_dir = inner.options.data_dir.clone();
    if let Err(e) = on_disk(move || Introduction::remove(&data_dir)).await {
        tracing::warn!("{e}");
    }
}

/// The newest word first: what the node itself says, then what was agreed on, then what it said when this node joined.
fn set_addresses(inner: &Inner, node: NodeId) {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let mut add = |more: &[SocketAddr]| {
        for address in more {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
    };
    if let Some(card) = inner.membership.get_peer(node).and_then(|peer| peer.card) {
        add(&card.addresses);
    }
    if let Some(member) = inner.claims().state().member(node) {
        add(&member.addresses);
    }
    if let Some(introduction) = &*inner.introduction() {
        let introduced = introduction.members.iter().filter(|member| member.node == node);
        introduced.for_each(|member| add(&member.addresses));
    }
    if !addresses.is_empty() {
        inner.transport.set_addresses(node, addresses);
    }
}
