//! `keppel account plan` and `keppel account apply`: accounts as a declarative file asks for them.

use std::collections::BTreeSet;
use std::io::Read as _;

use serde_json::{Map, Value, json};

use super::super::federation::failure;
use super::super::{Failure, say};
use super::account::{ask, save};
use super::http::Client;
use super::output::print_json;
use crate::model::policy::{ManagedAccount, read_managed_accounts};

const FILE_BYTES_MAX: u64 = 16 << 20;

/// What has to be done about one account.
struct Step {
    account: ManagedAccount,
    is_new: bool,
    /// Each field that differs: its name, as it is, and as it is to be.
    changes: Vec<(String, Value, Value)>,
}

/// Shows what would have to be done.
pub(super) async fn plan(client: &Client, json: bool, file: &str) -> Result<(), Failure> {
    let steps = steps(client, file).await?;
    if json { print_json(&shown(&steps)) } else { say(&text(&steps)) }
}

/// Does it.
pub(super) async fn apply(client: &Client, json: bool, file: &str, yes: bool) -> Result<(), Failure> {
    let steps = steps(client, file).await?;
    match json {
        true => print_json(&shown(&steps))?,
        false => say(&text(&steps))?,
    }
    let due: Vec<&Step> = steps.iter().filter(|step| step.is_due()).collect();
    if due.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = due.iter().map(|step| step.account.name.as_str()).collect();
    ask(yes, "write", &format!("accounts {}", names.join(", ")), "nothing was changed")?;
    for step in due {
        save(client, step.account.name.as_str(), step.account.fields.clone(), None).await?;
        if !json {
            say(&format!("account {} was {}\n", step.account.name, if step.is_new { "made" } else { "changed" }))?;
        }
    }
    Ok(())
}

impl Step {
    fn is_due(&self) -> bool {
        self.is_new || !self.changes.is_empty()
    }
}

async fn steps(client: &Client, file: &str) -> Result<Vec<Step>, Failure> {
    let text = read(file)?;
    let accounts = read_managed_accounts(&text).map_err(|error| failure(format!("{file}: {error}")))?;
    let mut answer = client.get("/keppel/v1/accounts").await?;
    let known = match answer.get_mut("accounts").map(Value::take) {
        Some(Value::Array(known)) => known,
        _ => return Err(failure("the registry answered without accounts".to_owned())),
    };
    let step = |account: ManagedAccount| {
        let name = account.name.as_str();
        let current = known.iter().find(|known| known.get("name").and_then(Value::as_str) == Some(name));
        let current = current.and_then(Value::as_object).cloned();
        let changes = difference(current.as_ref().unwrap_or(&Map::new()), &wanted(&account));
        Step { is_new: current.is_none(), account, changes }
    };
    Ok(accounts.into_iter().map(step).collect())
}

fn read(file: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text),
        path => std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)),
    };
    read.map(|_| text).map_err(|error| failure(format!("{file}: {error}")))
}

/// The fields as the registry would show them: in its own spelling, with what it always shows.
fn wanted(account: &ManagedAccount) -> Map<String, Value> {
    let mut fields = match serde_json::to_value(&account.settings) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    fields.insert("auth_tenant_id".to_owned(), account.tenant.as_str().into());
    fields
}

fn difference(current: &Map<String, Value>, wanted: &Map<String, Value>) -> Vec<(String, Value, Value)> {
    let names: BTreeSet<&String> = current.keys().chain(wanted.keys()).collect();
    let names = names.into_iter().filter(|name| !matches!(name.as_str(), "name" | "state" | "replica"));
    let of = |fields: &Map<String, Value>, name: &str| fields.get(name).cloned().unwrap_or_default();
    names
        .map(|name| (name.clone(), of(current, name), of(wanted, name)))
        .filter(|(_, current, wanted)| current != wanted)
        .collect()
}

fn text(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        let word = match (step.is_new, step.is_due()) {
            (true, _) => "make    ",
            (false, true) => "change  ",
            (false, false) => "as it is",
        };
        text.push_str(&format!("{word}  {}\n", step.account.name));
        for (field, current, wanted) in &step.changes {
            if !current.is_null() {
                text.push_str(&format!("  - {field}: {current}\n"));
            }
            if !wanted.is_null() {
                text.push_str(&format!("  + {field}: {wanted}\n"));
            }
        }
    }
    let count = steps.iter().filter(|step| step.is_due()).count();
    text.push_str(&format!("{count} of {} accounts differ\n", steps.len()));
    text
}

fn shown(steps: &[Step]) -> Value {
    let step = |step: &Step| {
        let changes = step
            .changes
            .iter()
            .map(|(field, current, wanted)| json!({ "field": field, "current": current, "wanted": wanted }));
        json!({ "name": step.account.name.as_str(), "new": step.is_new, "changes": changes.collect::<Vec<_>>() })
    };
    json!({ "accounts": steps.iter().map(step).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_the_fields_that_differ_and_no_others() {
        let file = "[[accounts]]\nname = \"acme\"\nauth_tenant_id = \"payer\"\n\
                    [[accounts.tag_policies]]\nmatch_tag = \"v.*\"\nblock_delete = true\n";
        let account = read_managed_accounts(file).unwrap().remove(0);
        let current = json!({"name": "acme", "auth_tenant_id": "payer", "rbac_policies": [], "state": "deleting",
            "gc_policies": [{"match_repository": ".*", "action": "delete"}]});
        let changes = difference(current.as_object().unwrap(), &wanted(&account));
        let names: Vec<&str> = changes.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["gc_policies", "tag_policies"]);
        let same = difference(&wanted(&account), &wanted(&account));
        assert!(same.is_empty());
        let step = Step { account, is_new: false, changes };
        let shown = text(&[step]);
        assert!(shown.starts_with("change    acme\n  - gc_policies: ") && shown.ends_with("1 of 1 accounts differ\n"));
    }
}
