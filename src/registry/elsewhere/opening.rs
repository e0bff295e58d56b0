//! How a flight learns what a blob is, and who may give it.
//!
//! What a blob's size and tree are, the primary says; another node is believed only where the primary agrees, or cannot
//! be asked: then nothing is passed on before the digest of the whole is right. Nodes of one region that miss the same
//! blob at once have it fetched by one of them, which all of them find by the same calculation.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use keppel_federation::vocabulary::{Digest, NodeId, RepositoryName};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::Elsewhere;
use super::board::FIRST_PART_BYTES;
use super::fetching::Giver;
use super::flight::Flight;
use super::standing::Fault;
use super::upstream::{BlobOpening, Primary, RemoteBlob};
use crate::registry::{Inner, Priority, RegistryError};
use crate::storage::{BEGINNING_BYTES, Outboard, Verifier};

/// How long nodes of the region may take to say that they have a blob, beyond the way there and back.
const NEAR_PATIENCE: Duration = Duration::from_millis(30);
/// How long the one that fetches for the region may take, beyond the ways there and to the primary.
const LEAD_PATIENCE: Duration = Duration::from_secs(1);
/// How long it may wait for a part that is asked of it.
const LEAD_WAIT: Duration = Duration::from_secs(2);
/// When others are asked beside a primary that says nothing, at the least.
const PRIMARY_PATIENCE: Duration = Duration::from_millis(1500);
/// How long others may take to say that they have a blob.
const SEARCH_PATIENCE: Duration = Duration::from_secs(5);
/// Nodes that are asked where it is not known who has a blob.
const SEARCHED_MAX: usize = 8;

const WHOLE: BlobOpening = BlobOpening { beginning_bytes: BEGINNING_BYTES, with_tree: true, to_lead: false };
const ROOT: BlobOpening = BlobOpening { beginning_bytes: 0, with_tree: false, to_lead: false };

/// What a blob is.
pub(super) struct Head {
    pub(super) verifier: Verifier,
    pub(super) root: [u8; 32],
    /// The pairs of its tree, for others.
    pub(super) tree: Bytes,
    /// Its first bytes, if they came with it, and what proves them to others.
    pub(super) beginning: Bytes,
    pub(super) proof: Vec<[u8; 32]>,
    /// Who may give parts of it.
    pub(super) givers: Vec<Giver>,
    /// Whether the primary says that this is the blob.
    pub(super) is_confirmed: bool,
}

/// The node, among those of one region, that fetches a blob for all of them.
fn leader(nodes: impl Iterator<Item = NodeId>, digest: &Digest) -> Option<NodeId> {
    let digest = digest.to_string();
    let weight = |node: &NodeId| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(node.to_string().as_bytes()).update(digest.as_bytes());
        *hasher.finalize().as_bytes()
    };
    nodes.max_by_key(weight)
}

impl Elsewhere {
    /// How long the primary may say nothing until others are asked beside it.
    fn patience(&self) -> Duration {
        let (upstream, primary) = (&self.upstream, self.primary.node);
        match upstream.is_down(primary) {
            true => Duration::ZERO,
            false => PRIMARY_PATIENCE.max(upstream.round_trip(primary).unwrap_or_default() * 3),
        }
    }
}

impl Inner {
    /// The size of a blob that is not here, in bytes: of one that is on its way from that, else as the primary says, else as
    /// whoever says that would give its bytes.
    pub(in crate::registry) async fn size_elsewhere(
        &self,
        elsewhere: Elsewhere,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<u64, RegistryError> {
        if let Some(flight) = self.flights.under_way(repository, digest)
            && flight.head().is_ok()
        {
            return Ok(flight.size_bytes());
        }
        let asked = elsewhere.upstream.blob_size_bytes(&elsewhere.primary, repository, digest);
        match timeout(elsewhere.patience(), asked).await {
            Ok(Err(error)) if is_unreachable(&error) => {}
            Ok(said) => return said,
            Err(_) => {}
        }
        Ok(self.join_flight_for_client(elsewhere, repository, digest).await?.size_bytes())
    }
}

impl Flight {
    /// Asks what the blob is.
    pub(super) async fn open(&self) -> Result<Head, RegistryError> {
        let primary = &self.source.primary;
        if !self.is_open_to_all() {
            let blob = self.ask_far(primary).await?;
            return self.head_of(primary, blob, vec![self.giver(primary, Duration::ZERO)], true);
        }
        let neighbours: Vec<Primary> = self.good(self.source.upstream.neighbours()).collect();
        if neighbours.is_empty() || self.is_near(primary) {
            return self.open_far().await;
        }
        let confirmation = self.ask(primary, ROOT);
        tokio::pin!(confirmation);
        let (near, early) = {
            let near = self.open_near(&neighbours);
            tokio::pin!(near);
            tokio::select! {
                near = &mut near => (near, None),
                confirmed = &mut confirmation => match confirmed {
                    Err(error) if !is_unreachable(&error) => return Err(error),
                    confirmed => (near.await, Some(confirmed)),
                }
            }
        };
        let Some((giver, blob)) = near else {
            let mut head = self.open_far().await?;
            // The one that fetches for the region was too slow to say so, but may be at it.
            let known = |node: &Primary| head.givers.iter().any(|giver| giver.node == *node);
            if let Some(leader) = self.leader(&neighbours).filter(|leader| !known(leader)) {
                head.givers.push(self.giver(leader, LEAD_WAIT));
            }
            return Ok(head);
        };
        let confirmed = match early {
            Some(confirmed) => confirmed,
            None => timeout(self.primary_patience() + NEAR_PATIENCE, confirmation).await.unwrap_or(Err(self.silent())),
        };
        match confirmed {
            Ok(root) if (root.size_bytes, root.root) == (blob.size_bytes, blob.root) => {
                let mut givers = vec![giver.clone(), self.giver(primary, Duration::ZERO)];
                givers.extend(self.named(&root.holders, &givers));
                self.head_of(&giver.node, blob, givers, true)
            }
            Ok(_) => {
                self.blame(&giver.node, Fault::Wrong);
                self.open_far().await
            }
            Err(error) if is_unreachable(&error) => {
                let givers = vec![giver.clone(), self.giver(primary, Duration::ZERO)];
                self.head_of(&giver.node, blob, givers, false)
            }
            Err(error) => Err(error),
        }
    }

    /// The other node of the region that fetches this blob for all of them, if it is not this one.
    fn leader<'a>(&self, neighbours: &'a [Primary]) -> Option<&'a Primary> {
        let nodes = neighbours.iter().map(|node| node.node).chain([self.source.upstream.node()]);
        let leader = leader(nodes, &self.digest);
        let is_leader = |node: &&Primary| Some(node.node) == leader && !*self.leads.borrow();
        neighbours.iter().find(is_leader)
    }

    /// From a node of the region: the one that fetches for all, or one that has the blob already.
    async fn open_near(&self, neighbours: &[Primary]) -> Option<(Giver, RemoteBlob)> {
        let upstream = &self.source.upstream;
        if let Some(leader) = self.leader(neighbours) {
            let far = upstream.round_trip(self.source.primary.node).unwrap_or_default();
            let near = upstream.round_trip(leader.node).unwrap_or_default();
            let asked =
                timeout((far + near) * 2 + LEAD_PATIENCE, self.ask(leader, BlobOpening { to_lead: true, ..WHOLE }));
            let mut leads = self.leads.subscribe();
            tokio::select! {
                asked = asked => if let Ok(Ok(blob)) = asked {
                    return Some((self.giver(leader, LEAD_WAIT), blob));
                },
                // The other one waits for us.
                _ = leads.wait_for(|leads| *leads) => {}
            }
        }
        let slowest = neighbours.iter().filter_map(|node| upstream.round_trip(node.node)).max().unwrap_or_default();
        let first = self.first_of(neighbours.iter().take(SEARCHED_MAX).cloned().collect());
        let (node, blob) = timeout(slowest + NEAR_PATIENCE, first).await.ok()??;
        Some((self.giver(&node, Duration::ZERO), blob))
    }

    /// From the primary, or, where that cannot be asked, from whoever else has the blob.
    async fn open_far(&self) -> Result<Head, RegistryError> {
        let primary = &self.source.primary;
        let asked = self.ask_far(primary);
        tokio::pin!(asked);
        let error = match timeout(self.primary_patience(), &mut asked).await {
            Ok(Ok(blob)) => match self.head_of_primary(blob) {
                Ok(head) => return Ok(head),
                Err(unfit) => Some(unfit),
            },
            Ok(Err(error)) if is_unreachable(&error) => Some(error),
            Ok(Err(error)) => return Err(error),
            Err(_) => None,
        };
        let others = self.others(&BTreeSet::from([primary.node]));
        let others = self.first_of(others);
        tokio::pin!(others);
        let found = match error {
            Some(error) => others.await.ok_or(error)?,
            None => {
                let mut nobody = false;
                loop {
                    tokio::select! {
                        answer = &mut asked => match answer {
                            Ok(blob) => return self.head_of_primary(blob),
                            Err(error) if is_unreachable(&error) && !nobody => break others.await.ok_or(error)?,
                            Err(error) => return Err(error),
                        },
                        found = &mut others, if !nobody => match found {
                            Some(found) => break found,
                            None => nobody = true,
                        },
                    }
                }
            }
        };
        let (node, blob) = found;
        let givers = vec![self.giver(&node, Duration::ZERO), self.giver(primary, Duration::ZERO)];
        self.head_of(&node, blob, givers, false)
    }

    fn head_of_primary(&self, blob: RemoteBlob) -> Result<Head, RegistryError> {
        let primary = &self.source.primary;
        let mut givers = vec![self.giver(primary, Duration::ZERO)];
        givers.extend(self.named(&blob.holders, &givers));
        self.head_of(primary, blob, givers, true)
    }

    /// The first of these nodes that has the blob, with all that is needed to begin.
    async fn first_of(&self, nodes: Vec<Primary>) -> Option<(Primary, RemoteBlob)> {
        let ask = |node: Primary| async move {
            let asked = timeout(SEARCH_PATIENCE, self.ask(&node, WHOLE)).await;
            (node, asked)
        };
        let mut asked: FuturesUnordered<_> = nodes.into_iter().map(ask).collect();
        while let Some((node, answer)) = asked.next().await {
            if let Ok(Ok(blob)) = answer {
                match self.check(&node, &blob) {
                    Ok(_) => return Some((node, blob)),
                    Err(_) => self.blame(&node, Fault::Wrong),
                }
            }
        }
        None
    }

    /// Other nodes that have the same blob.
    pub(super) async fn search(&self, known: &BTreeSet<NodeId>) -> Vec<Giver> {
        let Ok(head) = self.head() else { return Vec::new() };
        let ask = |node: Primary| async move {
            let asked = timeout(SEARCH_PATIENCE, self.ask(&node, ROOT)).await;
            (node, asked)
        };
        let asked: FuturesUnordered<_> = self.others(known).into_iter().map(ask).collect();
        let same = |(node, answer): (Primary, Result<Result<RemoteBlob, RegistryError>, _>)| {
            let blob = answer.ok()?.ok()?;
            let is_same = (blob.size_bytes, blob.root) == (self.size_bytes(), head.root);
            is_same.then(|| self.giver(&node, Duration::ZERO))
        };
        let found: Vec<Giver> = asked.collect::<Vec<_>>().await.into_iter().filter_map(same).collect();
        tracing::debug!(digest = %self.digest, found = found.len(), "looked for other nodes that have a blob");
        found
    }

    async fn ask(&self, node: &Primary, opening: BlobOpening) -> Result<RemoteBlob, RegistryError> {
        self.source.upstream.open_blob(node, &self.repository, &self.digest, opening).await
    }

    /// The same of a node that is far away: the rest of the first part is asked for at once, so as not to wait for another
    /// round trip. The beginning goes before it, and needs none of it to be checked.
    async fn ask_far(&self, node: &Primary) -> Result<RemoteBlob, RegistryError> {
        let (upstream, repository, digest) = (self.source.upstream.clone(), self.repository.clone(), self.digest);
        let asked = node.clone();
        let rest = async move {
            let range = BEGINNING_BYTES..FIRST_PART_BYTES;
            upstream.blob_part(&asked, &repository, &digest, range, Duration::ZERO, Priority::Pull).await
        };
        self.expect_rest(node.node, AbortOnDropHandle::new(tokio::spawn(rest)));
        self.ask(node, WHOLE).await
    }

    /// Nodes that may have the blob, the likeliest first.
    fn others(&self, known: &BTreeSet<NodeId>) -> Vec<Primary> {
        let others = self.source.upstream.others(&self.repository.account());
        self.good(others).filter(|node| !known.contains(&node.node)).take(SEARCHED_MAX).collect()
    }

    fn good(&self, nodes: Vec<Primary>) -> impl Iterator<Item = Primary> {
        nodes.into_iter().filter(|node| self.standing.is_good(node.node))
    }

    /// Those far away who are said to hold the blob. Nodes of the region may only be about to, from this one.
    fn named(&self, holders: &[NodeId], known: &[Giver]) -> Vec<Giver> {
        let upstream = &self.source.upstream;
        let is_new = |node: &NodeId| known.iter().all(|giver| giver.node.node != *node);
        let holders = holders.iter().filter(|node| is_new(node)).filter_map(|node| upstream.holder(*node));
        let far = self.good(holders.collect()).filter(|node| !self.is_near(node));
        far.map(|node| self.giver(&node, Duration::ZERO)).collect()
    }

    fn giver(&self, node: &Primary, wait: Duration) -> Giver {
        Giver { node: node.clone(), is_near: self.is_near(node), wait }
    }

    fn is_near(&self, node: &Primary) -> bool {
        self.source.upstream.region().is_some_and(|region| region == node.region)
    }

    fn primary_patience(&self) -> Duration {
        self.source.patience()
    }

    fn silent(&self) -> RegistryError {
        self.unusable(&self.source.primary, "no answer in time")
    }

    /// What tells right parts from wrong ones, where the answer is what it should be.
    fn check(&self, node: &Primary, blob: &RemoteBlob) -> Result<Verifier, RegistryError> {
        let outboard = Outboard { blob_size_bytes: blob.size_bytes, pairs: blob.tree.clone() };
        let verifier = Verifier::new(&outboard, blob.root);
        let unfit = || self.unusable(node, "the beginning of a blob does not fit its hashes");
        let fits = |verifier: &Verifier| {
            let is_whole = blob.beginning.len() as u64 == blob.size_bytes.min(FIRST_PART_BYTES);
            let has_none = blob.beginning.is_empty() && blob.size_bytes > 0;
            match is_whole {
                true => verifier.is_part(0, &blob.beginning),
                false => has_none || verifier.is_beginning(&blob.beginning, &blob.proof),
            }
        };
        verifier.filter(fits).ok_or_else(unfit)
    }

    fn head_of(
        &self,
        node: &Primary,
        blob: RemoteBlob,
        givers: Vec<Giver>,
        is_confirmed: bool,
    ) -> Result<Head, RegistryError> {
        let verifier = self.check(node, &blob).inspect_err(|_| self.blame(node, Fault::Wrong))?;
        let RemoteBlob { root, tree, beginning, proof, .. } = blob;
        Ok(Head { verifier, root, tree, beginning, proof, givers, is_confirmed })
    }
}

/// Whether the primary cannot give the blob now, which says nothing of others: it cannot be asked, or its bytes are bad.
fn is_unreachable(error: &RegistryError) -> bool {
    matches!(error, RegistryError::PrimaryUnreachable { .. } | RegistryError::BlobOnTheWay { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_nodes_agree_on_who_fetches_and_blobs_are_spread_over_them() {
        let nodes: Vec<NodeId> = (0..3).map(|number| NodeId::from_public_key([number; 32])).collect();
        let mut chosen = [0; 3];
        for number in 0..90 {
            let digest = Digest::from_sha256([number; 32]);
            let one = leader(nodes.iter().copied(), &digest);
            assert_eq!(one, leader(nodes.iter().rev().copied(), &digest));
            let at = nodes.iter().position(|node| Some(*node) == one).unwrap();
            chosen[at] += 1;
            // Where one that is not chosen goes, nothing changes.
            let rest = nodes.iter().copied().enumerate().filter(|(other, _)| *other != (at + 1) % 3);
            assert_eq!(one, leader(rest.map(|(_, node)| node), &digest));
        }
        assert!(chosen.iter().all(|count| *count > 10), "{chosen:?}");
    }
}
