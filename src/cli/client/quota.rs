//! `keppel quota`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::super::Failure;
use super::super::federation::failure;
use super::Target;
use super::http::escape;
use super::output::{field, print, size};

#[derive(Debug, Args)]
pub(in super::super) struct Quota {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what a tenant may have and has.
    Show {
        /// The tenant.
        tenant: String,
    },
    /// Decide what a tenant may have.
    Set {
        /// The tenant.
        tenant: String,
        /// How many manifests; none: no limit.
        #[arg(long, value_parser = |text: &str| limit(text, count))]
        manifests: Option<Limit>,
        /// How many bytes, such as 500GiB; none: no limit.
        #[arg(long, value_parser = |text: &str| limit(text, bytes))]
        bytes: Option<Limit>,
    },
}

/// The most there may be; `None`: there is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit(Option<u64>);

fn limit(text: &str, number: fn(&str) -> Result<u64, String>) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => number(text).map(|number| Limit(Some(number))),
    }
}

fn count(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "write a number, or none".to_owned())
}

/// Reads a size.
fn bytes(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().map_err(|_| "write a number and B, KiB, MiB, GiB or TiB")?;
    let factor = match text[end..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1_u64 << 40,
        _ => return Err("write a number and B, KiB, MiB, GiB or TiB".to_owned()),
    };
    number.checked_mul(factor).ok_or_else(|| "that is too much".to_owned())
}

impl Quota {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.target.run(async |client, json| {
            let path = |tenant: &str| format!("/keppel/v1/quotas/{}", escape(tenant));
            let answer = match command {
                Command::Show { tenant } => client.get(&path(&tenant)).await?,
                Command::Set { manifests: None, bytes: None, .. } => {
                    return Err(failure("nothing is to be set\n  give --manifests, --bytes or both".to_owned()));
                }
                Command::Set { tenant, manifests, bytes } => {
                    let mut body = json!({});
                    if let Some(Limit(quota)) = manifests {
                        body["manifests"] = json!({ "quota": quota });
                    }
                    if let Some(Limit(quota)) = bytes {
                        body["bytes"] = json!({ "quota": quota });
                    }
                    client.put(&path(&tenant), &body, None).await?
                }
            };
            let row = |name: &'static str| answer.get(name).map(|entry| (name, entry));
            let rows = ["manifests", "bytes"].into_iter().filter_map(row).map(|(name, entry)| {
                let shown = |what: &str| match name {
                    "bytes" => size(entry.get(what)),
                    _ => field(entry, what),
                };
                let unlimited = entry.get("quota").is_none_or(Value::is_null);
                [name.to_owned(), if unlimited { "no limit".to_owned() } else { shown("quota") }, shown("usage")]
            });
            print(json, &answer, ["WHAT", "QUOTA", "USAGE"], rows)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read_with_their_units() {
        assert_eq!((bytes("5"), bytes("2KiB"), bytes("3 TiB")), (Ok(5), Ok(2048), Ok(3 << 40)));
        for bad in ["", "x", "1 parsec", "99999999999TiB", "-1"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
