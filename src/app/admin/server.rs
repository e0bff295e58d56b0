//! Answers the operator of a running node.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keppel_federation::Federation;
use keppel_federation::admission::Invitation;
use keppel_federation::claims::{Account, Outcome, VoterPolicy};
use keppel_federation::vocabulary::{NodeId, Reference};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::socket::SocketPath;
use super::{AccountInfo, Answer, CopyInfo, EagerInfo, HoldingInfo, MemberInfo, Request};
use crate::auth::People;
use crate::janitor::{JanitorWork, Task};
use crate::metadata::FollowState;
use crate::peering::wait::{RegionHolding, hold_image};
use crate::registry::{CopyStatus, ImageHolding, Registry};

const REQUEST_BYTES_MAX: u64 = 64 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const WORK_TIMEOUT: Duration = Duration::from_secs(80);
/// How long an operator waits for a task of the janitor.
const RUN_TIMEOUT: Duration = Duration::from_secs(70);
const CONNECTIONS_MAX: usize = 16;
/// How many accounts one answer lists.
const ACCOUNTS_PAGE: usize = 10_000;

/// The socket while it is served. Dropping it ends that and removes the socket.
#[derive(Debug)]
pub struct AdminServer {
    task: JoinHandle<()>,
    path: PathBuf,
    audit: AuditSlot,
    janitor: JanitorSlot,
}

/// The registry, whose audit log tells what operators did, once there is one: a witness has none.
#[derive(Clone, Default)]
struct AuditSlot(Arc<OnceLock<Registry>>);

impl std::fmt::Debug for AuditSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditSlot")
    }
}

/// The janitor's work, once there is one: a witness has none.
#[derive(Clone, Default)]
struct JanitorSlot(Arc<OnceLock<JanitorWork>>);

impl std::fmt::Debug for JanitorSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JanitorSlot")
    }
}

impl AdminServer {
    /// Serves the socket of a data folder, whose lock the caller holds: what is there is of a dead process.
    pub fn spawn(data: &Path, federation: Federation, people: People) -> io::Result<Self> {
        let (temporary, socket) = (SocketPath::of(data, ".new")?, SocketPath::of(data, "")?);
        match std::fs::remove_file(temporary.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(temporary.path())?;
        // Closed to others before it has the name under which anyone looks for it.
        std::fs::set_permissions(temporary.path(), std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(temporary.path(), socket.path())?;
        let audit = AuditSlot::default();
        let janitor = JanitorSlot::default();
        let task = tokio::spawn(serve(listener, federation, people, audit.clone(), janitor.clone()));
        Ok(Self { task, path: data.join("admin.sock"), audit, janitor })
    }

    /// Lets operators ask for this work from now on.
    pub fn janitor_is(&self, janitor: JanitorWork) {
        let _ = self.janitor.0.set(janitor);
    }

    /// Notes from now on in this registry's audit log what operators do.
    pub fn audit_with(&self, registry: Registry) {
        let _ = self.audit.0.set(registry);
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the operator's socket was not removed");
        }
    }
}

async fn serve(listener: UnixListener, federation: Federation, people: People, audit: AuditSlot, janitor: JanitorSlot) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (federation, people) = (federation.clone(), people.clone());
                let (audit, janitor) = (audit.clone(), janitor.clone());
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &federation, &people, &audit, &janitor).await {
                        tracing::debug!(%error, "an operator's request failed");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the operator's socket failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    federation: &Federation,
    people: &People,
    audit: &AuditSlot,
    janitor: &JanitorSlot,
) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    // SAFETY: takes nothing and cannot fail.
    let own = unsafe { libc::geteuid() };
    if peer != own && peer != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let (read, mut write) = stream.split();
    let mut line = String::new();
    timeout(REQUEST_TIMEOUT, BufReader::new(read.take(REQUEST_BYTES_MAX)).read_line(&mut line)).await??;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => {
            let change = super::audit::change_of(&request, peer);
            let work = carry_out(federation, people, audit.0.get(), janitor.0.get(), request);
            let answer = match timeout(WORK_TIMEOUT, work).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(reason)) => Answer::Refused { reason },
                Err(_) => Answer::Refused { reason: format!("not done within {WORK_TIMEOUT:?}") },
            };
            if let (Some(event), Some(registry)) = (change, audit.0.get()) {
                registry.note_audit(super::audit::finish(event, &answer));
            }
            answer
        }
        Err(error) => Answer::Refused { reason: format!("not a request this version knows: {error}") },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    timeout(REQUEST_TIMEOUT, write.write_all(&line)).await?
}

/// How far this node's copies of other regions' accounts are.
fn copies(federation: &Federation, registry: &Registry) -> Vec<CopyInfo> {
    let state = federation.state();
    let info = |copy: CopyStatus| CopyInfo {
        region: copy.source.and_then(|source| state.member(source)).map(|member| member.region.clone()),
        account: copy.account,
        state: match (copy.source, copy.state) {
            (None, _) | (_, FollowState::Pulled) => "waiting",
            (_, FollowState::Listing) => "listing",
            (_, FollowState::Following) => "following",
        }
        .to_owned(),
        behind_events: copy.behind_events,
        behind_bytes: copy.behind_bytes.map(|bytes| bytes + copy.backfill.map_or(0, |it| it.missing_bytes)),
        eager: copy.backfill.map(|backfill| EagerInfo {
            counted: backfill.is_counted,
            missing_blobs: backfill.missing_blobs,
            missing_bytes: backfill.missing_bytes,
            proven_ms: backfill.proven.map(in_ms),
        }),
        behind_ms: copy.behind.map(in_ms),
        fresh: copy.is_fresh,
    };
    registry.copy_status().into_iter().map(info).collect()
}

fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn carry_out(
    federation: &Federation,
    people: &People,
    registry: Option<&Registry>,
    janitor: Option<&JanitorWork>,
    request: Request,
) -> Result<Answer, String> {
    let janitor = || janitor.ok_or_else(|| "this node has no janitor".to_owned());
    match request {
        Request::Invite { region, role, lifetime_s } => {
            let lifetime = Duration::from_secs(lifetime_s);
            let invitation = federation.invite(region, role.into(), lifetime).await.map_err(in_words)?;
            Ok(Answer::Invitation { text: invitation.to_text() })
        }
        Request::Invitations => Ok(Answer::Invitations { invitations: super::invitations::list(federation) }),
        Request::RevokeInvitation { id } => super::invitations::revoke(federation, &id).await,
        Request::Join { invitation } => {
            let invitation = Invitation::parse(&invitation).map_err(in_words)?;
            let member = federation.join(&invitation).await.map_err(in_words)?;
            Ok(Answer::Joined { node: member.node, region: member.region })
        }
        Request::Members => {
            let info = |member: keppel_federation::claims::Member| MemberInfo {
                node: member.node,
                region: member.region,
                role: member.role.as_str().to_owned(),
                addresses: member.addresses,
                api_url: member.api_url,
            };
            Ok(Answer::Members { members: federation.members().into_iter().map(info).collect() })
        }
        Request::Remove { node } => {
            let node = find_member(federation, &node)?;
            done(federation.remove(node).await.map_err(in_words)?.outcome)
        }
        Request::Status => {
            let status = Box::new(federation.status().await);
            Ok(Answer::Status {
                status,
                copies: registry.map(|registry| copies(federation, registry)).unwrap_or_default(),
            })
        }
        Request::Accounts { after } => {
            let accounts = federation.state().accounts_after(after.as_ref(), ACCOUNTS_PAGE);
            let info = |account: &Account| AccountInfo {
                name: account.name.clone(),
                tenant: Some(account.tenant.clone()),
                region: account.region.clone(),
                node: account.owner,
                epoch: account.epoch,
                note: registry.and_then(|registry| registry.primacy_word(&account.name)).map(str::to_owned),
            };
            Ok(Answer::Accounts { accounts: accounts.iter().map(|account| info(account)).collect() })
        }
        Request::Hold { repository, reference, regions } => {
            let registry = registry.ok_or("this node keeps no content")?;
            let reference = Reference::parse(&reference).map_err(in_words)?;
            let held = hold_image(federation, registry, &repository, &reference, &regions).await?;
            let info = |held: RegionHolding| {
                let (holding, problem) = match held.holding {
                    Ok(holding) => (Some(holding), None),
                    Err(problem) => (None, Some(problem)),
                };
                let missing = holding.map(|holding| holding.missing);
                let ImageHolding { manifests, blobs, .. } = holding.unwrap_or_default();
                HoldingInfo { region: held.region, manifests, blobs, missing, problem }
            };
            Ok(Answer::Held { digest: held.0, holdings: held.1.into_iter().map(info).collect() })
        }
        Request::FindCandidate { .. }
        | Request::Prepare { .. }
        | Request::Install { .. }
        | Request::ListDivergent { .. }
        | Request::PushDivergent { .. }
        | Request::DropDivergent { .. } => {
            let registry = registry.ok_or("this node keeps no content")?;
            super::succession::carry_out(federation, registry, request).await
        }
        Request::People { people: request } => {
            let people = people.carry_out(request).await.map_err(in_words)?;
            Ok(Answer::People { people })
        }
        Request::JanitorStatus => Ok(Answer::JanitorStatus { status: janitor()?.status().await.map_err(in_words)? }),
        Request::JanitorRun { task, account, dry_run } => {
            let task = Task::parse(&task).ok_or_else(|| {
                let known: Vec<&str> = Task::ALL.iter().map(|task| task.as_str()).collect();
                format!("there is no task {task:?}: the tasks are {}", known.join(", "))
            })?;
            let janitor = janitor()?.clone();
            // It goes on when it takes longer than anybody waits.
            let run = tokio::spawn(async move { janitor.run(task, account.as_ref(), dry_run).await });
            match timeout(RUN_TIMEOUT, run).await {
                Ok(Ok(report)) => Ok(Answer::JanitorRun { report: Some(report.map_err(in_words)?) }),
                Ok(Err(_)) => Err("the task ended unexpectedly".to_owned()),
                Err(_) => Ok(Answer::JanitorRun { report: None }),
            }
        }
        Request::Scrub { account } => {
            janitor()?.start_scrub(&account).await.map_err(in_words)?;
            Ok(Answer::Done)
        }
        Request::ScrubProgress { account } => {
            Ok(Answer::ScrubProgress { progress: janitor()?.scrub_progress(&account) })
        }
        Request::SetVoters { nodes } => {
            let nodes: Result<Vec<NodeId>, String> = nodes.iter().map(|node| find_member(federation, node)).collect();
            let nodes = nodes?;
            let policy = match nodes.is_empty() {
                true => VoterPolicy::Automatic,
                false => VoterPolicy::Fixed(nodes.into_iter().collect()),
            };
            done(federation.set_voters(policy).await.map_err(in_words)?.outcome)
        }
    }
}

fn done(outcome: Outcome) -> Result<Answer, String> {
    match outcome {
        Outcome::Done => Ok(Answer::Done),
        Outcome::NotFound | Outcome::NotMember { .. } => Err("it is not a member".into()),
        Outcome::Refused(refusal) => Err(refusal.to_string()),
        other => Err(format!("unexpected outcome: {other:?}")),
    }
}

fn find_member(federation: &Federation, text: &str) -> Result<NodeId, String> {
    let members = federation.members().into_iter().map(|member| member.node);
    let found: Vec<NodeId> = members.filter(|node| !text.is_empty() && node.to_string().starts_with(text)).collect();
    match found[..] {
        [node] => Ok(node),
        [] => Err(format!("no member has an id that begins with {text:?}: see `keppel federation members`")),
        _ => Err(format!("{} members have ids that begin with {text:?}: write more of it", found.len())),
    }
}

/// An error with all its causes.
pub(super) fn in_words(error: impl std::error::Error) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        // Some errors already hold the words of their cause.
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = error.source();
    }
    words
}
