//! `keppel tenant`: who belongs to a tenant, and what it has. A tenant is there while anything names it.

use std::collections::BTreeMap;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use keppel_federation::vocabulary::{AccountName, TenantId};
use serde::Serialize;

use super::Failure;
use super::federation::{accounts_of, failure};
use super::federation_tables::{or_dash, table};
use super::people::{Node, unfit};
use crate::auth::{PeopleAnswer, PeopleRequest, Role};

#[derive(Debug, Args)]
#[command(
    after_help = "Asks the node that runs on the data folder. A tenant needs not be made: it begins with the first \
                        role, robot or account that names it (`keppel user role`, `keppel robot add`, `keppel account \
                        create`). What it may have, `keppel quota` says."
)]
pub(super) struct Tenant {
    #[command(flatten)]
    node: Node,
    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// List the tenants, and how much belongs to each.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show who has a role in a tenant, its robots and its accounts.
    Show {
        /// The tenant.
        tenant: TenantId,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take away all roles in a tenant, and remove its robots. Its accounts have to be deleted before.
    Remove {
        /// The tenant.
        tenant: TenantId,
    },
}

/// What names a tenant.
#[derive(Debug, Default, Serialize)]
struct Belongings {
    users: BTreeMap<String, Role>,
    robots: Vec<String>,
    accounts: Vec<AccountName>,
}

impl Tenant {
    pub(super) fn run(self) -> Result<(), Failure> {
        let all = belongings(&self.node)?;
        match self.command {
            TenantCommand::List { json: true } => print_json(&all),
            TenantCommand::List { json: false } => {
                let count = |count: usize| count.to_string();
                let rows = all.iter().map(|(tenant, has)| {
                    let Belongings { users, robots, accounts } = has;
                    [tenant.to_string(), count(users.len()), count(robots.len()), count(accounts.len())]
                });
                print!("{}", table(["NAME", "USERS", "ROBOTS", "ACCOUNTS"], rows));
                Ok(())
            }
            TenantCommand::Show { tenant, json } => {
                let has = all.get(&tenant).ok_or_else(|| unknown(&tenant))?;
                match json {
                    true => print_json(has)?,
                    false => print!("{}", belongings_table(has)),
                }
                Ok(())
            }
            TenantCommand::Remove { tenant } => {
                let has = all.get(&tenant).ok_or_else(|| unknown(&tenant))?;
                if let Some(account) = has.accounts.first() {
                    let count = has.accounts.len();
                    return Err(failure(format!(
                        "tenant {tenant} has {count} accounts, {account} first: delete them before"
                    )));
                }
                for name in has.users.keys() {
                    let request = PeopleRequest::SetRole { name: name.clone(), tenant: tenant.clone(), role: None };
                    self.node.ask(request)?;
                }
                for name in &has.robots {
                    self.node.ask(PeopleRequest::RemoveRobot { name: name.clone() })?;
                }
                println!("done");
                Ok(())
            }
        }
    }
}

fn unknown(tenant: &TenantId) -> Failure {
    failure(format!("nothing belongs to a tenant {tenant}: `keppel tenant list` shows which there are"))
}

fn belongings(node: &Node) -> Result<BTreeMap<TenantId, Belongings>, Failure> {
    let mut all: BTreeMap<TenantId, Belongings> = BTreeMap::new();
    let users = match node.ask(PeopleRequest::ListUsers)? {
        PeopleAnswer::Users(users) => users,
        _ => return Err(unfit()),
    };
    for user in users {
        for (tenant, role) in user.roles {
            all.entry(tenant).or_default().users.insert(user.name.clone(), role);
        }
    }
    let robots = match node.ask(PeopleRequest::ListRobots)? {
        PeopleAnswer::Robots(robots) => robots,
        _ => return Err(unfit()),
    };
    for robot in robots {
        if let Some(tenant) = robot.name.split_once('+').and_then(|(tenant, _)| TenantId::parse(tenant).ok()) {
            all.entry(tenant).or_default().robots.push(robot.name);
        }
    }
    for account in accounts_of(&node.config()?)? {
        if let Some(tenant) = account.tenant {
            all.entry(tenant).or_default().accounts.push(account.name);
        }
    }
    Ok(all)
}

fn belongings_table(has: &Belongings) -> String {
    let users = has.users.iter().map(|(name, role)| ["user", name, &format!("{role:?}").to_lowercase()].map(or_dash));
    let robots = has.robots.iter().map(|name| ["robot", name, ""].map(or_dash));
    let accounts = has.accounts.iter().map(|name| ["account", name.as_str(), ""].map(or_dash));
    table(["KIND", "NAME", "ROLE"], users.chain(robots).chain(accounts))
}

fn print_json(what: &impl Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string_pretty(what).context("the tenants")?);
    Ok(())
}
