//! Clients that claim, forfeit, move and read a few accounts from every node, and write down what they saw.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::model::Opaque;
use super::super::outcome::{ClaimsError, Decision, Outcome};
use super::super::{Claims, Command};
use super::chance::below;
use super::world::World;
use crate::vocabulary::{AccountName, NodeId, TenantId};

/// How many account names they fight over.
const NAMES: u64 = 4;

/// Who is primary of a name, and in which epoch; `None`: the name is free.
pub(super) type Owner = Option<(NodeId, u64)>;

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    Claim { owner: NodeId },
    Forfeit { epoch: u64 },
    Move { to: NodeId, epoch: u64 },
    Read,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// A claim: it is new, in this epoch.
    Won(u64),
    /// A claim: the asker held it already, in this epoch.
    Held(u64),
    /// A claim, forfeit or move that changed nothing, or a read: the name stood so.
    Stands(Owner),
    /// A forfeit was done.
    Forfeited,
    /// A move was done.
    Moved(u64),
    /// An admitted member is not one: the federation has lost what it acknowledged.
    MemberLost,
}

/// One question and its answer.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) name: u64,
    pub(super) question: Question,
    /// When it was asked, in simulated microseconds.
    pub(super) called: u64,
    /// When the answer came, and which; `None`: nothing is known, it may yet happen at any time.
    pub(super) returned: Option<(u64, Answer)>,
    /// The place in the order of all calls and returns, which breaks ties of time.
    pub(super) order: (u64, u64),
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, question, called, returned, .. } = self;
        write!(f, "account{name} {called:>9} µs {question:?} -> ")?;
        match returned {
            Some((at, answer)) => write!(f, "{at:>9} µs {answer:?}"),
            None => write!(f, "no answer"),
        }
    }
}

#[derive(Clone, Default)]
struct Notebook {
    operations: Rc<RefCell<Vec<Operation>>>,
    count: Rc<RefCell<u64>>,
}

impl Notebook {
    fn tick(&self) -> u64 {
        *self.count.borrow_mut() += 1;
        *self.count.borrow()
    }
}

pub(super) struct Clients {
    stop: CancellationToken,
    notebook: Notebook,
    start: Instant,
    tasks: Vec<JoinHandle<()>>,
    local: tokio::task::LocalSet,
}

fn name(number: u64) -> AccountName {
    AccountName::parse(&format!("account{number}")).unwrap()
}

/// Starts two clients on every node.
pub(super) fn spawn(world: &World) -> Clients {
    let (stop, notebook, start) = (CancellationToken::new(), Notebook::default(), Instant::now());
    let local = tokio::task::LocalSet::new();
    let tasks = (0..2 * world.len())
        .map(|client| {
            let (world, stop, notebook) = (world.clone(), stop.clone(), notebook.clone());
            local.spawn_local(async move { work(&world, client, &stop, &notebook, start).await })
        })
        .collect();
    Clients { stop, notebook, start, tasks, local }
}

impl Clients {
    /// Runs something while the clients work.
    pub(super) async fn alongside<T>(&self, future: impl Future<Output = T>) -> T {
        self.local.run_until(future).await
    }
}

/// Stops the clients and gives what they wrote down.
pub(super) async fn finish(clients: Clients) -> (Vec<Operation>, Instant) {
    let Clients { stop, notebook, start, tasks, local } = clients;
    stop.cancel();
    local
        .run_until(async {
            for task in tasks {
                task.await.expect("a client does not panic");
            }
        })
        .await;
    (notebook.operations.take(), start)
}

async fn work(world: &World, client: usize, stop: &CancellationToken, notebook: &Notebook, start: Instant) {
    let index = client / 2;
    // What this client last saw of each name, to ask sensible questions.
    let mut seen: Vec<Owner> = vec![None; NAMES as usize];
    while !stop.is_cancelled() {
        tokio::time::sleep(Duration::from_millis(20 + below(250))).await;
        let Some(claims) = world.claims(index) else { continue };
        let number = below(NAMES);
        let known = seen[number as usize];
        let question = match (below(10), known) {
            (0..4, _) => Question::Read,
            (4, Some((_, epoch))) => Question::Forfeit { epoch },
            (5..7, Some((_, epoch))) => Question::Move { to: world.id(below(world.len() as u64) as usize), epoch },
            _ => Question::Claim { owner: world.id(index) },
        };
        let answer = ask(&claims, number, question, notebook, start).await;
        seen[number as usize] = match answer {
            Some(Answer::Stands(owner)) => owner,
            Some(Answer::Won(epoch) | Answer::Held(epoch)) => Some((world.id(index), epoch)),
            Some(Answer::Forfeited | Answer::Moved(_) | Answer::MemberLost) | None => None,
        };
    }
}

/// Asks, and writes the question and its answer down.
async fn ask(
    claims: &Arc<Claims>,
    number: u64,
    question: Question,
    notebook: &Notebook,
    start: Instant,
) -> Option<Answer> {
    let now = || u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (called, order) = (now(), notebook.tick());
    let result = match &question {
        Question::Read => claims
            .linearize()
            .await
            .map(|view| Answer::Stands(view.account(&name(number)).map(|account| (account.owner, account.epoch)))),
        other => claims.submit(command(number, other)).await.map(answer),
    };
    let returned = match result {
        Ok(answer) => Some((now(), answer)),
        // Nothing happened, so there is nothing to explain.
        Err(ClaimsError::NoQuorum(_) | ClaimsError::Overloaded) => return None,
        Err(ClaimsError::NotMember) => Some((now(), Answer::MemberLost)),
        Err(_) if question == Question::Read => return None,
        Err(_) => None,
    };
    let answer = returned.as_ref().map(|(_, answer)| answer.clone());
    let order = (order, notebook.tick());
    notebook.operations.borrow_mut().push(Operation { name: number, question, called, returned, order });
    answer
}

fn command(number: u64, question: &Question) -> Command {
    let name = name(number);
    match *question {
        Question::Claim { owner } => {
            let tenant = TenantId::parse("tenant").unwrap();
            Command::Claim { name, tenant, settings: Opaque::from(vec![7; 100]), owner }
        }
        Question::Forfeit { epoch } => Command::Forfeit { name, epoch },
        Question::Move { to, epoch } => Command::MovePrimary { name, to, expected_epoch: epoch },
        Question::Read => unreachable!("a read is no command"),
    }
}

fn answer(decision: Decision) -> Answer {
    match decision.outcome {
        Outcome::Won { epoch, created: true, .. } => Answer::Won(epoch),
        Outcome::Taken { node, epoch, .. } => Answer::Stands(Some((node, epoch))),
        Outcome::StaleEpoch { epoch, owner } => Answer::Stands(Some((owner, epoch))),
        Outcome::NotFound => Answer::Stands(None),
        Outcome::Done => Answer::Forfeited,
        Outcome::Moved { epoch } => Answer::Moved(epoch),
        Outcome::Won { epoch, created: false, .. } => Answer::Held(epoch),
        Outcome::NotMember { .. } => Answer::MemberLost,
        other => panic!("a client cannot make sense of {other:?}"),
    }
}

/// Reads every name on every node once all is well again.
pub(super) async fn look_around(world: &World, start: Instant) -> Vec<Operation> {
    let notebook = Notebook { count: Rc::new(RefCell::new(1 << 60)), ..Notebook::default() };
    for index in 0..world.len() {
        let Some(claims) = world.claims(index) else { continue };
        for number in 0..NAMES {
            ask(&claims, number, Question::Read, &notebook, start).await;
        }
    }
    notebook.operations.take()
}
