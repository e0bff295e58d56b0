//! `keppel repo`, `keppel tag` and `keppel manifest`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::super::federation::failure;
use super::super::{Failure, say};
use super::Target;
use super::account::{confirm, path};
use super::http::{Client, escape};
use super::output::{field, print, print_fields, size, time};

#[derive(Debug, Args)]
pub(in super::super) struct Repo {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: RepoCommand,
}

#[derive(Debug, Subcommand)]
enum RepoCommand {
    /// List the repositories of an account.
    List {
        /// The account.
        account: String,
    },
    /// Delete a repository with all its images.
    Delete {
        /// The repository, as ACCOUNT/NAME.
        repository: String,
        /// Do it without asking.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(in super::super) struct Tag {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: TagCommand,
}

#[derive(Debug, Subcommand)]
enum TagCommand {
    /// List the tags of a repository.
    List {
        /// The repository, as ACCOUNT/NAME.
        repository: String,
    },
    /// Delete a tag; the image stays.
    Delete {
        /// The tag, as ACCOUNT/NAME:TAG.
        tag: String,
    },
}

#[derive(Debug, Args)]
pub(in super::super) struct Manifest {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: ManifestCommand,
}

#[derive(Debug, Subcommand)]
enum ManifestCommand {
    /// List the images of a repository.
    List {
        /// The repository, as ACCOUNT/NAME.
        repository: String,
    },
    /// Show what is known of an image.
    Show {
        /// The image, as ACCOUNT/NAME:TAG or ACCOUNT/NAME@DIGEST.
        image: String,
    },
    /// Delete an image and the tags on it.
    Delete {
        /// The image, as ACCOUNT/NAME@DIGEST.
        image: String,
        /// Do it without asking.
        #[arg(long)]
        yes: bool,
    },
}

/// The path of a repository that is written as `ACCOUNT/NAME`.
fn repository_path(text: &str) -> Result<String, Failure> {
    let good = text.split_once('/').filter(|(account, name)| !account.is_empty() && !name.is_empty());
    let (account, name) = good.ok_or_else(|| failure(format!("{text:?} names no repository\n  write ACCOUNT/NAME")))?;
    let name: Vec<String> = name.split('/').map(escape).collect();
    Ok(format!("{}/repositories/{}", path(account), name.join("/")))
}

async fn manifests(client: &Client, repository: &str) -> Result<Vec<Value>, Failure> {
    let path = format!("{}/_manifests", repository_path(repository)?);
    client.list(&path, "manifests", |manifest| manifest.get("digest")?.as_str()).await
}

fn tags_of(manifest: &Value) -> impl Iterator<Item = &Value> {
    manifest.get("tags").and_then(Value::as_array).into_iter().flatten()
}

impl Repo {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.target.run(async |client, json| match command {
            RepoCommand::List { account } => {
                let path = format!("{}/repositories", path(&account));
                let found = client.list(&path, "repositories", |repository| repository.get("name")?.as_str()).await?;
                let rows = found.iter().map(|repository| {
                    let [name, manifests, tags] =
                        ["name", "manifest_count", "tag_count"].map(|name| field(repository, name));
                    [name, manifests, tags, size(repository.get("size_bytes")), time(repository.get("pushed_at"))]
                });
                let rows: Vec<_> = rows.collect();
                print(json, &json!({ "repositories": found }), ["NAME", "IMAGES", "TAGS", "SIZE", "PUSHED"], rows)
            }
            RepoCommand::Delete { repository, yes } => {
                let path = repository_path(&repository)?;
                confirm(yes, &format!("repository {repository} with all its images"))?;
                client.delete(&path).await?;
                say(&format!("repository {repository} was deleted\n"))
            }
        })
    }
}

impl Tag {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.target.run(async |client, json| match command {
            TagCommand::List { repository } => {
                let mut tags = Vec::new();
                for manifest in manifests(client, &repository).await? {
                    for tag in tags_of(&manifest) {
                        let mut tag = tag.clone();
                        tag["digest"] = manifest.get("digest").cloned().unwrap_or_default();
                        tags.push(tag);
                    }
                }
                tags.sort_by_key(|tag| field(tag, "name"));
                let rows: Vec<_> = tags
                    .iter()
                    .map(|tag| {
                        let (pushed, pulled) = (time(tag.get("pushed_at")), time(tag.get("last_pulled_at")));
                        [field(tag, "name"), field(tag, "digest"), pushed, pulled]
                    })
                    .collect();
                print(json, &json!({ "tags": tags }), ["TAG", "DIGEST", "PUSHED", "PULLED"], rows)
            }
            TagCommand::Delete { tag } => {
                let (repository, name) =
                    with_tag(&tag).ok_or_else(|| failure(format!("{tag:?} names no tag\n  write ACCOUNT/NAME:TAG")))?;
                client.delete(&format!("{}/_tags/{}", repository_path(repository)?, escape(name))).await?;
                say(&format!("tag {tag} was deleted\n"))
            }
        })
    }
}

impl Manifest {
    pub(in super::super) fn run(self) -> Result<(), Failure> {
        let command = self.command;
        self.target.run(async |client, json| match command {
            ManifestCommand::List { repository } => {
                let found = manifests(client, &repository).await?;
                let rows: Vec<_> = found
                    .iter()
                    .map(|manifest| {
                        let tags: Vec<String> = tags_of(manifest).map(|tag| field(tag, "name")).collect();
                        let tags = if tags.is_empty() { "-".to_owned() } else { tags.join(",") };
                        let times = [time(manifest.get("pushed_at")), time(manifest.get("last_pulled_at"))];
                        let [pushed, pulled] = times;
                        [field(manifest, "digest"), tags, size(manifest.get("size_bytes")), pushed, pulled]
                    })
                    .collect();
                print(json, &json!({ "manifests": found }), ["DIGEST", "TAGS", "SIZE", "PUSHED", "PULLED"], rows)
            }
            ManifestCommand::Show { image } => {
                let (repository, digest, tag) = match (image.split_once('@'), with_tag(&image)) {
                    (Some((repository, digest)), _) => (repository, Some(digest), None),
                    (None, Some((repository, tag))) => (repository, None, Some(tag)),
                    (None, None) => (image.as_str(), None, Some("latest")),
                };
                let found = manifests(client, repository).await?;
                let fits = |manifest: &&Value| match digest {
                    Some(digest) => field(manifest, "digest") == digest,
                    None => tags_of(manifest).any(|known| known.get("name").and_then(Value::as_str) == tag),
                };
                let manifest = found.iter().find(fits);
                let manifest = manifest.ok_or_else(|| {
                    failure(format!(
                        "there is no such image\n  `keppel manifest list {repository}` shows those that are there"
                    ))
                })?;
                print_fields(json, manifest)
            }
            ManifestCommand::Delete { image, yes } => {
                let (repository, digest) = image.split_once('@').ok_or_else(|| {
                    failure(format!(
                        "{image:?} names no image\n  write ACCOUNT/NAME@DIGEST; `keppel manifest list` shows digests"
                    ))
                })?;
                let path = format!("{}/_manifests/{}", repository_path(repository)?, escape(digest));
                confirm(yes, &format!("image {image} and the tags on it"))?;
                client.delete(&path).await?;
                say(&format!("image {image} was deleted\n"))
            }
        })
    }
}

/// Takes `ACCOUNT/NAME:TAG` apart.
fn with_tag(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once(':').filter(|(_, tag)| !tag.is_empty() && !tag.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths_that_cannot_lead_elsewhere() {
        assert_eq!(repository_path("acme/a/b").unwrap(), "/keppel/v1/accounts/acme/repositories/a/b");
        assert_eq!(repository_path("acme/a?b#c%2f").unwrap(), "/keppel/v1/accounts/acme/repositories/a%3Fb%23c%252f");
        for bad in ["", "acme", "acme/", "/web"] {
            assert!(repository_path(bad).is_err(), "{bad}");
        }
        assert_eq!(with_tag("acme/web:1.0"), Some(("acme/web", "1.0")));
        assert_eq!((with_tag("acme/web"), with_tag("host:5000/web")), (None, None));
    }
}
