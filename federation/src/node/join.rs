//! Inviting, letting in, and joining.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::time::Instant;

use super::{Federation, Inner, StartError, on_disk, start_claims};
use crate::admission::{
    Admitted, Door, FederationId, Introduction, IntroductionError, Invitation, JoinRequest, Secret,
};
use crate::claims::{
    Claims, ClaimsError, Command, Decision, DocumentKind, Member, Outcome, Role, SECRET_LIFETIME_MAX, SecretHash,
};
use crate::membership::Health;
use crate::transport::TransportError;
use crate::vocabulary::{NodeId, Region, RequestId};

/// The document that holds the federation's id.
const FEDERATION_ID: &str = "federation/id";
/// Members named in an invitation beside the one that makes it.
const OTHER_DOORS_MAX: usize = 2;
const PAUSE: Duration = Duration::from_millis(200);

/// Why no invitation was made.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// It would be good for too long, or for no time.
    #[error("an invitation is good for at least a second and at most {} days", SECRET_LIFETIME_MAX.as_secs() / 86400)]
    Lifetime,
    /// Nobody could use it: this node listens nowhere.
    #[error("this node listens on no address, so nobody could use an invitation: set an address to listen on")]
    Unreachable,
    /// The federation could not note it.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The federation did not want to note it.
    #[error("the invitation is refused: {0}")]
    Refused(String),
}

/// Why a node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The invitation is for a node elsewhere.
    #[error("the invitation is for region {invited}, but this node is configured for region {own}")]
    OtherRegion {
        /// The region in the invitation.
        invited: Region,
        /// The region of this node.
        own: Region,
    },
    /// The invitation is for another kind of node.
    #[error("the invitation is for a {} node, but this one is a {} node", .invited.as_str(), .own.as_str())]
    OtherRole {
        /// The role in the invitation.
        invited: Role,
        /// The role of this node.
        own: Role,
    },
    /// The node is in a federation with others.
    #[error(
        "this node belongs to a federation of {members} nodes: to join another one, or again after it was removed, \
         give it a new identity: stop it and run `federation reset-identity`"
    )]
    AlreadyMember {
        /// How many nodes.
        members: usize,
    },
    /// The node owns accounts, which would be lost.
    #[error(
        "this node owns {accounts} accounts in its federation of one, which joining would drop: \
         join with a fresh data directory"
    )]
    OwnsAccounts {
        /// How many.
        accounts: usize,
    },
    /// A member refused, with its reason.
    #[error("the invitation was refused: {0}")]
    Refused(String),
    /// None of the members named in the invitation could be reached.
    #[error("none of the members named in the invitation could be reached: {0}")]
    Unreachable(String),
    /// What the member answered makes no sense.
    #[error("the member's answer is not valid: {0}")]
    BadAnswer(String),
    /// The node could not note what it learned.
    #[error(transparent)]
    Introduction(#[from] IntroductionError),
    /// The node could not start anew as a member.
    #[error("the node was admitted, but could not start anew: restart it")]
    Restart(#[source] StartError),
    /// The state of the federation of one is in use and cannot be removed.
    #[error("the node was admitted, but its former state could not be removed: {0}: restart it")]
    Forget(String),
}

impl Federation {
    /// Makes an invitation for one node in `region`, good once and for `lifetime`. Whoever has the text can use it.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn invite(&self, region: Region, role: Role, lifetime: Duration) -> Result<Invitation, InviteError> {
        if lifetime < Duration::from_secs(1) || lifetime > SECRET_LIFETIME_MAX {
            return Err(InviteError::Lifetime);
        }
        let inner = &self.inner;
        let doors = doors(inner).await?;
        let claims = inner.claims();
        let federation = federation_id(&claims).await?;
        let secret = Secret::random();
        let lifetime_ms = millis(lifetime);
        let note = Command::IssueInvitation {
            secret: SecretHash::of(secret.as_bytes()),
            region: region.clone(),
            role,
            lifetime_ms,
            issuer: inner.transport.local(),
        };
        match submit_patiently(inner, &claims, note).await?.outcome {
            Outcome::Done => {
                let expires_at_ms = now_ms().saturating_add(lifetime_ms);
                Ok(Invitation { federation, secret, region, role, expires_at_ms, doors })
            }
            other => Err(InviteError::Refused(in_words(&other))),
        }
    }

    /// Joins the federation that made the invitation. This node's federation of one, which must be empty, is forgotten.
    /// When this returns, the node is a member; what was agreed on before reaches it within moments.
    ///
    /// May be called again with the same invitation after any error.
    ///
    /// # Errors
    /// [`JoinError`], with the reason in words.
    pub async fn join(&self, invitation: &Invitation) -> Result<Member, JoinError> {
        let inner = &self.inner;
        let _one_at_a_time = inner.joining.lock().await;
        self.check_joinable(invitation)?;
        let admitted = ask_doors(inner, invitation).await?;
        let member = admitted.member.clone();
        let introduction =
            Introduction { federation: admitted.federation, members: admitted.members, forgotten: false };
        self.start_anew(introduction).await?;
        tracing::info!(region = %member.region, role = member.role.as_str(), "this node has joined the federation");
        Ok(member)
    }

    fn check_joinable(&self, invitation: &Invitation) -> Result<(), JoinError> {
        let options = &self.inner.options;
        if invitation.region != options.region {
            return Err(JoinError::OtherRegion { invited: invitation.region.clone(), own: options.region.clone() });
        }
        if invitation.role != options.role {
            return Err(JoinError::OtherRole { invited: invitation.role, own: options.role });
        }
        let state = self.state();
        let members = state.members().len();
        if members > 1 {
            return Err(JoinError::AlreadyMember { members });
        }
        match state.accounts_len() {
            0 => Ok(()),
            accounts => Err(JoinError::OwnsAccounts { accounts }),
        }
    }

    /// Forgets the federation of one and starts as a learner of the other.
    async fn start_anew(&self, mut introduction: Introduction) -> Result<(), JoinError> {
        let inner = &self.inner;
        let data_dir = inner.options.data_dir.clone();
        introduction = on_disk({
            let data_dir = data_dir.clone();
            move || introduction.store(&data_dir).map(|()| introduction)
        })
        .await?;
        // From here on a crash is finished by the next start.
        inner.claims().shutdown().await;
        let introduction = on_disk(move || {
            crate::claims::forget(&data_dir).map_err(|e| JoinError::Forget(e.to_string()))?;
            introduction.forgotten = true;
            introduction.store(&data_dir)?;
            Ok::<_, JoinError>(introduction)
        })
        .await?;
        *inner.introduction() = Some(introduction);
        let claims = start_claims(&inner.options, None, &inner.transport).await.map_err(JoinError::Restart)?;
        *inner.claims.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(claims);
        super::roster::bring_in_step(inner).await;
        inner.rearranged.notify_one();
        Ok(())
    }
}

/// Asks the members named in the invitation, in turn, until one answers. A refusal is final: the others would say the
/// same.
async fn ask_doors(inner: &Inner, invitation: &Invitation) -> Result<Admitted, JoinError> {
    let request = JoinRequest {
        federation: invitation.federation,
        secret: invitation.secret.clone(),
        addresses: inner.advertised().await,
        api_url: inner.options.api_url.clone(),
    };
    let request = request.encode();
    let mut causes = Vec::new();
    for door in &invitation.doors {
        let asked =
            inner.transport.knock(door.node, door.addresses.clone(), request.clone(), inner.options.join_timeout);
        match asked.await {
            Ok(answer) => return check_answer(inner, invitation, &answer),
            Err(TransportError::Refused { reason, .. }) => return Err(JoinError::Refused(reason)),
            Err(e) => causes.push(e.to_string()),
        }
    }
    Err(JoinError::Unreachable(causes.join("; ")))
}

fn check_answer(inner: &Inner, invitation: &Invitation, answer: &[u8]) -> Result<Admitted, JoinError> {
    let admitted = Admitted::decode(answer).map_err(|e| JoinError::BadAnswer(e.to_string()))?;
    let own = &admitted.member;
    let as_invited = admitted.federation == invitation.federation
        && own.node == inner.transport.local()
        && own.region == invitation.region
        && own.role == invitation.role;
    match as_invited {
        true => Ok(admitted),
        false => Err(JoinError::BadAnswer("it admits another node, or elsewhere, than the invitation says".into())),
    }
}

/// Answers a node that asks to become a member.
pub(super) async fn answer(inner: &Inner, from: NodeId, request: &[u8]) -> Result<Bytes, String> {
    let request = JoinRequest::decode(request).map_err(|e| e.to_string())?;
    let claims = inner.claims();
    let secret = SecretHash::of(request.secret.as_bytes());
    // A stranger must not be able to fill the log: only what may be an invitation is decided about.
    if claims.state().invitation(&secret).is_none() {
        let state = claims.linearize().await.map_err(|e| e.to_string())?;
        if state.invitation(&secret).is_none() {
            return Err(in_words(&Outcome::NotFound));
        }
    }
    let federation = known_federation_id(&claims).ok_or("this federation has never invited anyone")?;
    if federation != request.federation {
        return Err("the invitation is for another federation".into());
    }
    let redeem =
        Command::RedeemInvitation { secret, node: from, addresses: request.addresses, api_url: request.api_url };
    let decision = submit_patiently(inner, &claims, redeem).await.map_err(|e| e.to_string())?;
    let Outcome::Admitted(member) = decision.outcome else {
        tracing::warn!(peer = %from, "a node was not let in: {}", in_words(&decision.outcome));
        return Err(in_words(&decision.outcome));
    };
    tracing::info!(peer = %from, region = %member.region, role = member.role.as_str(), "a node was admitted");
    let mut members: Vec<Member> = claims.state().members().iter().map(|member| (**member).clone()).collect();
    if !members.iter().any(|other| other.node == member.node) {
        // The decision was taken elsewhere and has not arrived here yet.
        members.push(member.clone());
    }
    Ok(Admitted { federation, member, members }.encode())
}

/// Asks again while an election runs: whoever joins should not have to. The same request id, so it is done once.
async fn submit_patiently(inner: &Inner, claims: &Claims, command: Command) -> Result<Decision, ClaimsError> {
    let request = RequestId::random();
    let give_up = Instant::now() + inner.options.join_timeout / 2;
    loop {
        match claims.submit_as(request.clone(), command.clone()).await {
            Err(ClaimsError::NoQuorum(_) | ClaimsError::Timeout { .. } | ClaimsError::Overloaded)
                if Instant::now() < give_up =>
            {
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

fn in_words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::NotFound => {
            "the federation knows no such invitation: it was altered, taken back, or is long forgotten".into()
        }
        Outcome::Expired => "the invitation has expired: ask for a new one".into(),
        Outcome::AlreadyUsed => "the invitation has been used already: each is good for one node".into(),
        Outcome::Refused(refusal) => refusal.to_string(),
        other => format!("unexpected outcome: {other:?}"),
    }
}

/// This node, and some others that live.
async fn doors(inner: &Inner) -> Result<Vec<Door>, InviteError> {
    let state = inner.claims().state();
    let own = Door { node: inner.transport.local(), addresses: inner.advertised().await };
    if own.addresses.is_empty() && !inner.options.listen.is_empty() {
        return Err(InviteError::Unreachable);
    }
    let others = inner.membership.peers().into_iter().filter(|peer| peer.health == Health::Alive);
    let others = others.filter_map(|peer| {
        let member = state.member(peer.node)?;
        let addresses = peer.card.map_or_else(|| member.addresses.clone(), |card| card.addresses);
        Some(Door { node: peer.node, addresses })
    });
    Ok(std::iter::once(own).chain(others.take(OTHER_DOORS_MAX)).collect())
}

/// The federation's id, made when it is first needed.
async fn federation_id(claims: &Claims) -> Result<FederationId, ClaimsError> {
    if let Some(id) = known_federation_id(claims) {
        return Ok(id);
    }
    let id = FederationId::random();
    let put = Command::PutDocument {
        kind: DocumentKind::Setting,
        id: FEDERATION_ID.into(),
        body: id.to_string().as_bytes().into(),
        expected_revision: Some(0),
    };
    match claims.submit(put).await?.outcome {
        Outcome::Stored { .. } => Ok(id),
        // Another node was quicker.
        _ => {
            claims.linearize().await?;
            known_federation_id(claims).ok_or_else(|| ClaimsError::Storage("the federation's id cannot be read".into()))
        }
    }
}

fn known_federation_id(claims: &Claims) -> Option<FederationId> {
    let document = claims.state().document(DocumentKind::Setting, FEDERATION_ID)?;
    FederationId::parse(std::str::from_utf8(document.body.as_bytes()).ok()?)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
}
