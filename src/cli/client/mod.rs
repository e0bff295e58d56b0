//! The commands that talk to a registry over HTTP, as anybody may from anywhere.
//!
//! | file | its job |
//! | --- | --- |
//! | `server` | which registry: a flag, a variable, or the last login |
//! | `http` | requests, and refusals with what to do about them |
//! | `credentials` | Docker's own file of logins, or the helper that it names |
//! | `login`, `device` | `keppel login` and `logout`; the flow for people with a browser elsewhere |
//! | `managed` | accounts as a declarative file asks for them: the difference, and making it so |
//! | `account`, `content`, `quota`, `policy`, `peers` | the commands, by what they are about |
//! | `output` | tables for people, JSON for programs |

mod account;
mod content;
mod credentials;
mod device;
mod http;
mod login;
mod managed;
mod output;
mod peers;
mod policy;
mod quota;
mod server;

pub(super) use account::{Account, ask};
pub(super) use content::{Manifest, Repo, Tag};
pub(super) use login::{Login, Logout};
pub(super) use peers::Peers;
pub(super) use policy::Policy;
pub(super) use quota::Quota;

use clap::Args;

use self::http::Client;
use super::Failure;

/// What all of these commands take.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// The registry, such as registry.example.org. Default: the one of the last `keppel login`.
    #[arg(long, value_name = "URL", env = "KEPPEL_SERVER", global = true)]
    server: Option<String>,
    /// Print JSON, as the registry's API answers it.
    #[arg(long, global = true)]
    json: bool,
}

impl Target {
    /// Finds the registry and the credentials for it, and runs `work` with them.
    fn run(self, work: impl AsyncFnOnce(&Client, bool) -> Result<(), Failure>) -> Result<(), Failure> {
        let server = server::choose(self.server.as_deref())?;
        block_on(async {
            let client = Client::connect(server).await?;
            work(&client, self.json).await
        })
    }
}

/// Runs the requests of one command.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
