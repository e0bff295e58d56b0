//! Flags that change a configuration.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::config::{Flag, Sources};

/// Flags that set keys, whatever else a command takes.
#[derive(Debug, Args)]
pub(super) struct Overrides {
    /// Address and port to listen on [sets http.listen].
    #[arg(long, value_name = "ADDRESS", global = true)]
    listen: Option<String>,
    /// The folder for everything the node keeps [sets node.data].
    #[arg(long, value_name = "FOLDER", global = true)]
    data: Option<String>,
    /// Sets any key, such as --set log.format=json; lists are written with commas, such as
    /// --set registry.accounts=one,two. May be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value, global = true)]
    set: Vec<(String, String)>,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write section.key=value")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl Overrides {
    /// These flags, `file`, and this process's environment.
    pub(super) fn sources(&self, file: Option<PathBuf>) -> std::io::Result<Sources> {
        let flag = |name: String, key: &str, value: &str| Flag { name, key: key.to_owned(), value: value.to_owned() };
        let named = [("--listen", "http.listen", &self.listen), ("--data", "node.data", &self.data)];
        let named =
            named.into_iter().filter_map(|(name, key, value)| Some(flag(name.to_owned(), key, value.as_ref()?)));
        let set = self.set.iter().map(|(key, value)| flag(format!("--set {key}"), key, value));
        let ours = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok().filter(|name| name.starts_with("KEPPEL_"))?;
            Some((name, value.to_string_lossy().into_owned()))
        };
        Ok(Sources {
            preset: None,
            file,
            environment: std::env::vars_os().filter_map(ours).collect(),
            flags: named.chain(set).collect(),
            folder: std::env::current_dir()?,
        })
    }
}
