//! `keppel user`, `keppel robot` and `keppel key`: who may log in, what they are, and what their tokens are signed with.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use keppel_federation::vocabulary::{AccountName, TenantId};

use super::Failure;
use super::federation::{ask_node, failure, lifetime, unexpected};
use super::federation_tables::{or_dash, table};
use super::overrides::Overrides;
use crate::app::admin::{Answer, Request};
use crate::auth::{Action, KeyInfo, Passphrase, PeopleAnswer, PeopleRequest, RobotInfo, RobotScope, Role, UserInfo};
use crate::config::{self, Config};
use crate::model::policy::Secret;

/// Which node is asked.
#[derive(Debug, Args)]
pub(super) struct Node {
    /// The configuration file of the node; it says where its data folder is.
    #[arg(long, value_name = "FILE", env = "KEPPEL_CONFIG", global = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Asks the node that runs on the data folder; a change holds at once in all regions that are not \
                        cut off, and in others as auth.trust_when_cut_off says. The users \
                        count where auth.driver is \"local\" or \"oidc\"."
)]
pub(super) struct User {
    #[command(flatten)]
    node: Node,
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// Make a user. Without --password-stdin a password is made and shown.
    Add {
        /// The name.
        name: String,
        /// They run the registry: they may do everything everywhere.
        #[arg(long)]
        operator: bool,
        /// A role in a tenant, such as acme=editor; viewer, editor or admin. May be repeated.
        #[arg(long = "role", value_name = "TENANT=ROLE", value_parser = tenant_role)]
        roles: Vec<(TenantId, Role)>,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Give a user another password; all their tokens end.
    Password {
        /// The name.
        name: String,
        /// Read the password from standard input.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Give a user a role in a tenant, or take it away.
    Role {
        /// The name.
        name: String,
        /// The tenant.
        tenant: TenantId,
        /// The role.
        role: RoleWord,
    },
    /// Let a user run the registry, or no longer.
    Operator {
        /// The name.
        name: String,
        /// Whether they do.
        #[arg(action = clap::ArgAction::Set)]
        operator: bool,
    },
    /// Do not let a user in any more; all they have stays.
    Disable {
        /// The name.
        name: String,
    },
    /// Let a user in again.
    Enable {
        /// The name.
        name: String,
    },
    /// Make a personal token, to be used in place of the password, and show it.
    Token {
        /// The name.
        name: String,
        /// The most that may be done with it: pull, push and delete, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "pull")]
        allow: Vec<ActionWord>,
        /// How long it is good for, such as 90d. Without it, until it is revoked.
        #[arg(long = "for", value_name = "DURATION", value_parser = lifetime)]
        lifetime: Option<Duration>,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// End one personal token, or everything that lets the user in without a new login.
    Revoke {
        /// The name.
        name: String,
        /// The id of the personal token.
        token: Option<String>,
    },
    /// Remove a user.
    Remove {
        /// The name.
        name: String,
    },
    /// List the users.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
#[command(
    after_help = "Asks the node that runs on the data folder; a change holds at once in all regions that are not cut off, and in \
                  others as auth.trust_when_cut_off says. The robots count where \
                  auth.driver is \"local\" or \"oidc\"."
)]
pub(super) struct Robot {
    #[command(flatten)]
    node: Node,
    #[command(subcommand)]
    command: RobotCommand,
}

#[derive(Debug, Subcommand)]
enum RobotCommand {
    /// Make a robot and show its secret.
    Add {
        /// The name: the tenant, a plus sign, and a word.
        name: String,
        /// What it may do: pull, push and delete, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "pull")]
        allow: Vec<ActionWord>,
        /// In which repositories, without the account: a regular expression. May be repeated.
        #[arg(long = "repository", value_name = "REGEX", default_value = ".*")]
        repositories: Vec<String>,
        /// In which account of the tenant. Without it, in all.
        #[arg(long)]
        account: Option<AccountName>,
        /// How long it is good for, such as 365d. Without it, until it is removed.
        #[arg(long = "for", value_name = "DURATION", value_parser = lifetime)]
        lifetime: Option<Duration>,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Make a new secret and show it; the one before stays good for a while.
    Rotate {
        /// The name.
        name: String,
        /// How long the secret before stays good.
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = lifetime)]
        overlap: Duration,
    },
    /// End all secrets and tokens of a robot.
    Revoke {
        /// The name.
        name: String,
    },
    /// Remove a robot.
    Remove {
        /// The name.
        name: String,
    },
    /// List the robots.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleWord {
    Viewer,
    Editor,
    Admin,
    /// No role in the tenant.
    None,
}

impl From<RoleWord> for Option<Role> {
    fn from(word: RoleWord) -> Self {
        match word {
            RoleWord::Viewer => Some(Role::Viewer),
            RoleWord::Editor => Some(Role::Editor),
            RoleWord::Admin => Some(Role::Admin),
            RoleWord::None => None,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ActionWord {
    Pull,
    Push,
    Delete,
}

impl From<ActionWord> for Action {
    fn from(word: ActionWord) -> Self {
        match word {
            ActionWord::Pull => Self::Pull,
            ActionWord::Push => Self::Push,
            ActionWord::Delete => Self::Delete,
        }
    }
}

fn tenant_role(text: &str) -> Result<(TenantId, Role), String> {
    let (tenant, role) = text.split_once('=').ok_or("write TENANT=ROLE, such as acme=editor")?;
    let word = RoleWord::from_str(role, true).map_err(|_| format!("{role:?} is not viewer, editor or admin"))?;
    let role = Option::<Role>::from(word).ok_or("a user without a role in a tenant needs no --role")?;
    Ok((TenantId::parse(tenant).map_err(|error| error.to_string())?, role))
}

#[derive(Debug, Args)]
#[command(
    after_help = "Asks the node that runs on the data folder. Each node signs tokens with keys of its own, makes new \
                        ones by itself, and all regions know them. After a revocation every token of the key is \
                        refused everywhere at once; its node takes another key within five seconds."
)]
pub(super) struct Key {
    #[command(flatten)]
    node: Node,
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// List the keys of all nodes.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Refuse all tokens that were signed with a key.
    Revoke {
        /// Its id, as the list and the `kid` of tokens have it.
        id: String,
    },
}

fn seconds(lifetime: Duration) -> i64 {
    i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX)
}

impl Node {
    pub(super) fn config(&self) -> Result<Config, Failure> {
        Ok(config::load(&self.overrides.sources(self.config.clone())?)?.config)
    }

    pub(super) fn ask(&self, people: PeopleRequest) -> Result<PeopleAnswer, Failure> {
        match ask_node(&self.config()?, &Request::People { people })? {
            Answer::People { people } => Ok(people),
            other => Err(unexpected(&other)),
        }
    }
}

impl User {
    pub(super) fn run(self) -> Result<(), Failure> {
        use UserCommand as C;
        let mut made = None;
        let mut password = |stdin| match stdin {
            true => read_password(),
            false => {
                let password = Passphrase(Secret::new(data_encoding::HEXLOWER.encode(&rand::random::<[u8; 16]>())));
                made = Some(password.clone());
                Ok(password)
            }
        };
        let (json, request) = match self.command {
            C::Add { name, operator, roles, password_stdin } => {
                let (password, roles) = (Some(password(password_stdin)?), BTreeMap::from_iter(roles));
                (false, PeopleRequest::AddUser { name, password, operator, roles })
            }
            C::Password { name, password_stdin } => {
                (false, PeopleRequest::SetPassword { name, password: password(password_stdin)? })
            }
            C::Role { name, tenant, role } => (false, PeopleRequest::SetRole { name, tenant, role: role.into() }),
            C::Operator { name, operator } => (false, PeopleRequest::SetOperator { name, operator }),
            C::Disable { name } => (false, PeopleRequest::SetDisabled { name, disabled: true }),
            C::Enable { name } => (false, PeopleRequest::SetDisabled { name, disabled: false }),
            C::Token { name, allow, lifetime, description } => {
                let actions = allow.into_iter().map(Action::from).collect();
                let lifetime_seconds = lifetime.map(seconds);
                (false, PeopleRequest::AddToken { name, description, actions, lifetime_seconds })
            }
            C::Revoke { name, token } => (false, PeopleRequest::RevokeTokens { name, id: token }),
            C::Remove { name } => (false, PeopleRequest::RemoveUser { name }),
            C::List { json } => (json, PeopleRequest::ListUsers),
        };
        let answer = self.node.ask(request)?;
        match made {
            Some(password) if answer == PeopleAnswer::Done => {
                println!("{}", password.0.reveal());
                note("This is the password; it is not shown again.");
                Ok(())
            }
            _ => show(answer, json),
        }
    }
}

impl Robot {
    pub(super) fn run(self) -> Result<(), Failure> {
        use RobotCommand as C;
        let (json, request) = match self.command {
            C::Add { name, allow, repositories, account, lifetime, description } => {
                let actions: Vec<Action> = allow.into_iter().map(Action::from).collect();
                let scope = |match_repository| RobotScope {
                    account: account.clone(),
                    match_repository,
                    actions: actions.clone(),
                };
                let scopes = repositories.into_iter().map(scope).collect();
                let lifetime_seconds = lifetime.map(seconds);
                (false, PeopleRequest::AddRobot { name, description, scopes, lifetime_seconds })
            }
            C::Rotate { name, overlap } => {
                (false, PeopleRequest::RotateRobot { name, overlap_seconds: seconds(overlap) })
            }
            C::Revoke { name } => (false, PeopleRequest::RevokeRobot { name }),
            C::Remove { name } => (false, PeopleRequest::RemoveRobot { name }),
            C::List { json } => (json, PeopleRequest::ListRobots),
        };
        show(self.node.ask(request)?, json)
    }
}

impl Key {
    pub(super) fn run(self) -> Result<(), Failure> {
        let (json, request) = match self.command {
            KeyCommand::List { json } => (json, PeopleRequest::ListKeys),
            KeyCommand::Revoke { id } => (false, PeopleRequest::RevokeKey { id }),
        };
        show(self.node.ask(request)?, json)
    }
}

/// The first line of standard input.
fn read_password() -> Result<Passphrase, Failure> {
    let mut line = String::new();
    std::io::stdin().lock().take(64 << 10).read_line(&mut line)?;
    let password = line.trim_end_matches(['\r', '\n']);
    match password.is_empty() {
        true => Err(failure("standard input holds no password".to_owned())),
        false => Ok(Passphrase(Secret::new(password))),
    }
}

/// The node answered, but not what it was asked.
pub(super) fn unfit() -> Failure {
    failure("the node answered something else: is it of the same version?".to_owned())
}

/// Words for a person only: what a program reads is on standard output.
fn note(text: &str) {
    if std::io::stdout().is_terminal() {
        eprintln!("{text}");
    }
}

fn show(answer: PeopleAnswer, json: bool) -> Result<(), Failure> {
    match answer {
        PeopleAnswer::Done => println!("done"),
        PeopleAnswer::Secret { id, secret } => {
            println!("{}", secret.0.reveal());
            let id = id.map_or_else(String::new, |id| format!(" Revoke it by its id, {id}."));
            note(&format!("This is the secret; it is not shown again.{id}"));
        }
        PeopleAnswer::Users(users) if json => print_json(&users)?,
        PeopleAnswer::Robots(robots) if json => print_json(&robots)?,
        PeopleAnswer::Keys(keys) if json => print_json(&keys)?,
        PeopleAnswer::Users(users) => print!("{}", users_table(&users)),
        PeopleAnswer::Robots(robots) => print!("{}", robots_table(&robots)),
        PeopleAnswer::Keys(keys) => print!("{}", keys_table(&keys)),
    }
    Ok(())
}

fn print_json(list: &impl serde::Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string_pretty(list).context("the list")?);
    Ok(())
}

fn keys_table(keys: &[KeyInfo]) -> String {
    let rows = keys.iter().map(|key| {
        let state = match key.node {
            _ if key.revoked => "revoked",
            Some(_) => "-",
            None => "refused: of an older version",
        };
        let name = key.id.split_once('/').map_or(&*key.id, |(_, name)| name);
        let node = key.node.map_or_else(|| "-".to_owned(), |node| node.short());
        [name.to_owned(), node, key.created_at.to_string(), key.expires_at.to_string(), state.to_owned()]
    });
    table(["ID", "NODE", "CREATED", "EXPIRES", "STATE"], rows)
}

fn users_table(users: &[UserInfo]) -> String {
    let rows = users.iter().map(|user| {
        let mut roles: Vec<String> = user
            .roles
            .iter()
            .map(|(tenant, role)| format!("{tenant}={}", format!("{role:?}").to_lowercase()))
            .collect();
        if user.operator {
            roles.insert(0, "operator".to_owned());
        }
        let tokens: Vec<&str> = user.tokens.iter().map(|(id, _)| id.as_str()).collect();
        let state = if user.disabled { "disabled" } else { "-" };
        [user.name.clone(), or_dash(&roles.join(" ")), or_dash(&tokens.join(" ")), state.to_owned()]
    });
    table(["NAME", "ROLES", "TOKENS", "STATE"], rows)
}

fn robots_table(robots: &[RobotInfo]) -> String {
    let rows = robots.iter().map(|robot| {
        let scopes = robot.scopes.iter().map(|scope| {
            let account = scope.account.as_ref().map_or("*", |account| account.as_str());
            let actions: Vec<&str> = scope.actions.iter().map(|action| action.as_str()).collect();
            format!("{account}/{}:{}", scope.match_repository, actions.join(","))
        });
        let scopes = scopes.collect::<Vec<_>>().join(" ");
        let end = robot.expires_at.map_or_else(|| "-".to_owned(), |end| end.to_string());
        [robot.name.clone(), or_dash(&scopes), end, or_dash(&robot.description)]
    });
    table(["NAME", "SCOPES", "EXPIRES", "DESCRIPTION"], rows)
}
