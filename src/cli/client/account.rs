//! `keppel account`.

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::super::federation::failure;
use super::super::{Failure, moves, say};
use super::http::{Client, escape};
use super::output::{count, field, print, print_fields, print_json};
use super::{Target, managed, policy::read_json};

/// Fields that the registry sets, and that it takes from nobody.
const READ_ONLY: [&str; 3] = ["name", "state", "replica"];

#[derive(Debug, Args)]
pub(in super::super) struct Account {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the accounts that you may see.
    List,
    /// Show an account.
    Show {
        /// The account.
        name: String,
    },
    /// Make an account.
    Create {
        /// The account.
        name: String,
        /// The tenant it belongs to, for good.
        #[arg(long)]
        tenant: String,
        /// Its other fields as a JSON object, in a file or (-) on standard input.
        #[arg(long, value_name = "FILE")]
        file: Option<String>,
        #[command(flatten)]
        pushes: Pushes,
        /// Make a replica of the account of the same name, whose primary is in this region.
        #[arg(long, value_name = "REGION")]
        replica_of: Option<String>,
        /// Have the replica hold everything, and not only what is pulled.
        #[arg(long, requires = "replica_of")]
        eager: bool,
        /// The token of `keppel account sublease` in the primary's region, to make a replica.
        #[arg(long, value_name = "TOKEN")]
        sublease_token: Option<String>,
    },
    /// Change fields of an account; those that are not named stay.
    Update {
        /// The account.
        name: String,
        /// The fields as a JSON object, in a file or (-) on standard input; null takes one away.
        #[arg(long, value_name = "FILE", required_unless_present_any = ["copies", "ack", "strategy"])]
        file: Option<String>,
        #[command(flatten)]
        pushes: Pushes,
        /// How much a replica holds: what was pulled, or everything.
        #[arg(long, value_parser = ["on_first_use", "eager"])]
        strategy: Option<String>,
    },
    /// Delete an account with all that is in it.
    Delete {
        /// The account.
        name: String,
        /// Do it without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Show what would have to be made or changed for accounts to be as a declarative file has them.
    Plan {
        /// The file, in JSON or TOML: `accounts` is a list of accounts, each with name, auth_tenant_id and other fields.
        file: String,
    },
    /// Make and change accounts so that they are as a declarative file has them. Others are left alone.
    Apply {
        /// The file, as for plan.
        file: String,
        /// Do it without asking.
        #[arg(long)]
        yes: bool,
    },
    /// Make another region the primary of an account. Nothing is lost, and clients go on; asks a node that runs here.
    Move(moves::Move),
    /// Make another region the primary of an account whose own is lost; asks a node that runs here.
    Failover(moves::Failover),
    /// Show what only this region has of an account that it was the primary of, to push it again or to drop it; asks a node
    /// that runs here.
    Divergent(moves::Divergent),
    /// Make a token, good once, with which another region makes a replica of an account.
    Sublease {
        /// The account.
        name: String,
    },
}

/// When a push is acknowledged.
#[derive(Debug, Args)]
struct Pushes {
    /// How many regions hold a push before it is acknowledged, the primary's among them.
    #[arg(long, value_name = "N")]
    copies: Option<u8>,
    /// Whether a change waits until no region gives the old answer.
    #[arg(long, value_parser = ["everywhere", "primary"])]
    ack: Option<String>,
}

impl Pushes {
    fn set(self, fields: &mut Map<String, Value>) {
        if let Some(copies) = self.copies {
            fields.insert("copies".to_owned(), copies.into());
        }
        if let Some(ack) = self.ack {
            fields.insert("ack".to_owned(), ack.into());
        }
    }
}

/// The path of an account.
pub(super) fn path(name: &str) -> String {
    format!("/keppel/v1/accounts/{}", escape(name))
}

/// The fields of an account.
pub(super) async fn load(client: &Client, name: &str) -> Result<Map<String, Value>, Failure> {
    match client.get(&path(name)).await?.get_mut("account").map(Value::take) {
        Some(Value::Object(fields)) => Ok(fields),
        _ => Err(failure("the registry answered without an account".to_owned())),
    }
}

/// Writes the fields of an account; gives those that it has then.
pub(super) async fn save(
    client: &Client,
    name: &str,
    mut fields: Map<String, Value>,
    header: Option<(&str, &str)>,
) -> Result<Value, Failure> {
    fields.retain(|field, _| !READ_ONLY.contains(&field.as_str()));
    let mut answer = client.put(&path(name), &json!({ "account": fields }), header).await?;
    Ok(answer.get_mut("account").map(Value::take).unwrap_or_default())
}

impl Account {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        let command = match self.command {
            Command::Move(wish) => return wish.run(),
            Command::Failover(wish) => return wish.run(),
            Command::Divergent(wish) => return wish.run(self.target.json),
            command => command,
        };
        self.target.run(async |client, json| match command {
            Command::List => {
                let answer = client.get("/keppel/v1/accounts").await?;
                let accounts = answer.get("accounts").and_then(Value::as_array).cloned().unwrap_or_default();
                let rows = accounts.iter().map(|account| {
                    let replication =
                        account.get("replication").map_or_else(|| "primary".to_owned(), |r| field(r, "strategy"));
                    let policies = ["rbac_policies", "gc_policies", "tag_policies"].map(|name| count(account, name));
                    let [rbac, gc, tag] = policies;
                    [
                        field(account, "name"),
                        field(account, "auth_tenant_id"),
                        field(account, "state"),
                        replication,
                        rbac,
                        gc,
                        tag,
                    ]
                });
                print(json, &answer, ["NAME", "TENANT", "STATE", "REPLICATION", "RBAC", "GC", "TAG"], rows)
            }
            Command::Show { name } => print_fields(json, &Value::Object(load(client, &name).await?)),
            Command::Create { name, tenant, file, pushes, replica_of, eager, sublease_token } => {
                let mut fields = match file {
                    Some(file) => object(&file)?,
                    None => Map::new(),
                };
                fields.insert("auth_tenant_id".to_owned(), tenant.into());
                pushes.set(&mut fields);
                if let Some(upstream) = replica_of {
                    let strategy = if eager { "eager" } else { "on_first_use" };
                    let replication = json!({ "strategy": strategy, "upstream": upstream });
                    fields.insert("replication".to_owned(), replication);
                }
                let header = sublease_token.as_deref().map(|token| ("X-Keppel-Sublease-Token", token));
                let made = save(client, &name, fields, header).await?;
                if json { print_json(&made) } else { say(&format!("account {name} is there\n")) }
            }
            Command::Update { name, file, pushes, strategy } => {
                let mut changes = match file {
                    Some(file) => object(&file)?,
                    None => Map::new(),
                };
                pushes.set(&mut changes);
                let mut fields = load(client, &name).await?;
                for (field, value) in changes {
                    match value {
                        Value::Null => drop(fields.remove(&field)),
                        value => drop(fields.insert(field, value)),
                    }
                }
                if let Some(strategy) = strategy {
                    match fields.get_mut("replication") {
                        Some(replication) => replication["strategy"] = strategy.into(),
                        None => return Err(failure(format!("{name} is no replica there: --strategy is for replicas"))),
                    }
                }
                let changed = save(client, &name, fields, None).await?;
                if json { print_json(&changed) } else { say(&format!("account {name} was changed\n")) }
            }
            Command::Delete { name, yes } => {
                confirm(yes, &format!("account {name} with all its images"))?;
                client.delete(&path(&name)).await?;
                say(&format!("account {name} is being deleted\n"))
            }
            Command::Plan { file } => managed::plan(client, json, &file).await,
            Command::Apply { file, yes } => managed::apply(client, json, &file, yes).await,
            // They ask no registry.
            Command::Move(_) | Command::Failover(_) | Command::Divergent(_) => Ok(()),
            Command::Sublease { name } => {
                let answer = client.post(&format!("{}/sublease", path(&name))).await?;
                if json { print_json(&answer) } else { say(&format!("{}\n", field(&answer, "sublease_token"))) }
            }
        })
    }
}

fn object(file: &str) -> Result<Map<String, Value>, Failure> {
    match read_json(file)? {
        Value::Object(mut fields) => match fields.remove("account") {
            // As the API takes and gives it.
            Some(Value::Object(inner)) => Ok(inner),
            Some(_) => Err(failure("account: must be an object".to_owned())),
            None => Ok(fields),
        },
        _ => Err(failure(format!("{file} does not hold a JSON object"))),
    }
}

/// Asks whether something is to be deleted.
pub(super) fn confirm(yes: bool, what: &str) -> Result<(), Failure> {
    ask(yes, "delete", what, "nothing was deleted")
}

/// Asks whether something is to be done.
pub(in super::super) fn ask(yes: bool, verb: &str, what: &str, otherwise: &str) -> Result<(), Failure> {
    use std::io::{IsTerminal as _, Write as _};
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(failure(format!("this would {verb} {what}\n  add --yes to do it")));
    }
    let (first, rest) = verb.split_at(1);
    eprint!("{}{rest} {what}? [y/N] ", first.to_uppercase());
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    match line.trim().eq_ignore_ascii_case("y") || line.trim().eq_ignore_ascii_case("yes") {
        true => Ok(()),
        false => Err(failure(otherwise.to_owned())),
    }
}
