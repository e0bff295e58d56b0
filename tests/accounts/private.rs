//! An image that not everybody may pull, in three regions: whoever may not have it where it was pushed gets it nowhere, on no
//! way, and neither while the region that decides about it is away.

use std::time::Duration;

use reqwest::RequestBuilder;
use serde_json::json;

use crate::{
    harness::{Image, images::Content},
    regions::{PATIENCE, Region, federation, within},
    site::{Reply, reply},
};

/// Longer than the leases of a default configuration.
const PAST_LEASE: Duration = Duration::from_secs(6);

/// A name and a password; without a name: nobody.
type User = (String, String);

fn request(region: &Region, method: &str, path: &str, user: &User) -> RequestBuilder {
    let request = region.client.request(method.parse().expect("a method"), path);
    if user.0.is_empty() { request } else { request.basic_auth(&user.0, Some(&user.1)) }
}

async fn ask(region: &Region, method: &str, path: &str, user: &User) -> Reply {
    reply(request(region, method, path, user).header("content-length", "0")).await
}

async fn put_manifest(region: &Region, repository: &str, tag: &str, manifest: &Content, user: &User) -> Reply {
    let path = format!("/v2/{repository}/manifests/{tag}");
    let put = request(region, "PUT", &path, user).header("content-type", &manifest.media_type);
    reply(put.body(manifest.bytes.clone())).await
}

async fn push(region: &Region, repository: &str, image: &Image, user: &User) {
    for blob in image.blobs() {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", blob.digest());
        let pushed = reply(request(region, "POST", &path, user).body(blob.bytes.clone())).await;
        assert_eq!(pushed.status, 201, "{}", pushed.text);
    }
    let put = put_manifest(region, repository, "v1", &image.manifest, user).await;
    assert_eq!(put.status, 201, "{}", put.text);
}

struct Site {
    nobody: User,
    /// Knows a password and has no role.
    stan: User,
    /// Runs a tenant of their own.
    mal: User,
    /// May push and pull in one repository of the account, and no other.
    robot: User,
    secret: Image,
}

impl Site {
    /// Asks a region for everything, as everybody who may not have it.
    async fn assert_shut(&self, region: &Region, when: &str) {
        let (layer, config) = (self.secret.layers[0].digest(), self.secret.config.digest());
        let digest = self.secret.digest();
        let refused = |reply: &Reply, what: &str| {
            let status = reply.status.as_u16();
            assert!(matches!(status, 401 | 403 | 404), "{when}: {what}: {status} {}", reply.text);
            assert!(!reply.text.contains(&layer), "{when}: {what}: {}", reply.text);
        };
        for who in [&self.nobody, &self.stan, &self.mal, &self.robot] {
            for (method, rest) in [
                ("GET", "manifests/v1".to_owned()),
                ("HEAD", "manifests/v1".to_owned()),
                ("GET", format!("manifests/{digest}")),
                ("HEAD", format!("manifests/{digest}")),
                ("GET", format!("blobs/{layer}")),
                ("HEAD", format!("blobs/{layer}")),
                ("GET", format!("blobs/{config}")),
                ("GET", "tags/list".to_owned()),
                ("GET", format!("referrers/{digest}")),
                ("DELETE", "manifests/v1".to_owned()),
                ("POST", "blobs/uploads/".to_owned()),
            ] {
                let path = format!("/v2/acme-prod/secret/{rest}");
                refused(&ask(region, method, &path, who).await, &format!("{method} {path} as {:?}", who.0));
            }
            let catalog = ask(region, "GET", "/v2/_catalog", who).await;
            assert!(!catalog.text.contains("secret"), "{when}: {}", catalog.text);
        }
        for who in [&self.nobody, &self.stan, &self.mal] {
            for rest in ["", "/repositories", "/repositories/secret/_manifests"] {
                let path = format!("/keppel/v1/accounts/acme-prod{rest}");
                refused(&ask(region, "GET", &path, who).await, &format!("GET {path} as {:?}", who.0));
            }
        }
        // Whoever knows digests learns nothing by them elsewhere: not by asking, by mounting, or by a manifest that names them.
        for (who, repository) in [(&self.mal, "evil/app"), (&self.robot, "acme-prod/open")] {
            for way in ["&from=acme-prod/secret", ""] {
                let path = format!("/v2/{repository}/blobs/uploads/?mount={layer}{way}");
                let mounted = ask(region, "POST", &path, who).await;
                assert!(matches!(mounted.status.as_u16(), 202 | 503), "{when}: {path}: {}", mounted.status);
            }
            let stolen = put_manifest(region, repository, "stolen", &self.secret.manifest, who).await;
            assert!(matches!(stolen.status.as_u16(), 404 | 503), "{when}: {repository}: {}", stolen.status);
            for rest in [format!("blobs/{layer}"), format!("manifests/{digest}"), "manifests/stolen".to_owned()] {
                for method in ["GET", "HEAD"] {
                    let path = format!("/v2/{repository}/{rest}");
                    let got = ask(region, method, &path, who).await;
                    assert!(matches!(got.status.as_u16(), 404 | 503), "{when}: {method} {path}: {}", got.status);
                }
            }
        }
    }
}

#[tokio::test]
async fn a_private_image_stays_private_in_every_region_by_every_route() {
    let folder = tempfile::tempdir().expect("a folder");
    let [mut eu, us, ap] = federation(folder.path()).await;
    let user = |name: &str, options: &[&str]| -> User {
        (name.to_owned(), eu.told(&[&["user", "add", name], options].concat()))
    };
    let ada = user("ada", &["--role", "acme=admin"]);
    let site = Site {
        nobody: User::default(),
        stan: user("stan", &[]),
        mal: user("mal", &["--role", "evil=admin"]),
        robot: ("acme+ci".into(), String::new()),
        secret: Image::small(1),
    };
    eu.put_account("acme-prod", (&ada.0, &ada.1), json!({})).await.expect(200, "");
    let add = ["robot", "add", "acme+ci", "--allow", "pull,push", "--repository", "open"];
    let site = Site { robot: (site.robot.0.clone(), eu.told(&add)), ..site };
    for region in [&us, &ap] {
        within(PATIENCE, "all are known", async || {
            ask(region, "GET", "/v2/", &site.robot).await.status == 200
                && ask(region, "GET", "/v2/", &site.mal).await.status == 200
        })
        .await;
    }
    let account = json!({"account": {"auth_tenant_id": "evil"}});
    us.ask("PUT", "/keppel/v1/accounts/evil", (&site.mal.0, &site.mal.1), Some(account)).await.expect(200, "");
    push(&us, "evil/app", &Image::small(2), &site.mal).await;
    push(&ap, "acme-prod/open", &Image::small(3), &site.robot).await;
    push(&eu, "acme-prod/secret", &site.secret, &ada).await;
    for (region, name) in
        [(&eu, "the primary"), (&us, "a region without it"), (&ap, "a region that has used the account")]
    {
        site.assert_shut(region, name).await;
    }
    // Those who may have it pull it in us, so that all of it is there.
    let layer = format!("/v2/acme-prod/secret/blobs/{}", site.secret.layers[0].digest());
    for path in ["/v2/acme-prod/secret/manifests/v1", &layer] {
        assert_eq!(ask(&us, "GET", path, &ada).await.status, 200);
    }
    site.assert_shut(&us, "a region that has it").await;
    eu.process.kill();
    tokio::time::sleep(PAST_LEASE).await;
    let stale = ask(&us, "GET", "/v2/acme-prod/secret/manifests/v1", &ada).await;
    assert!(stale.status == 200 && stale.headers.contains_key("warning"), "it is there, and marked: {}", stale.status);
    site.assert_shut(&us, "a region that has it, without the primary").await;
    site.assert_shut(&ap, "a region that has some of it, without the primary").await;
}
