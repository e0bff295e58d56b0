//! Repositories and manifests in `/keppel/v1`: lists with all fields, pages, deletions.

use serde_json::{Value, json};

use crate::site::{Site, reply};

const BASE: &str = "/keppel/v1/accounts/acme-prod/repositories";

#[tokio::test]
async fn repositories_are_listed_with_what_they_hold_page_by_page() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    assert_eq!(site.ask("GET", BASE, "vi").await.json(), json!({"repositories": [], "truncated": false}));
    let (_, size) = site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    site.push("acme-prod/web", "v2", json!({}), json!({"n": "2"})).await;
    site.push("acme-prod/deep/er/still", "v1", json!({}), json!({})).await;
    site.put_account("acme-other", "ada", json!({})).await.expect(200, "");
    site.push("acme-other/web", "v1", json!({}), json!({})).await;
    let all = site.ask("GET", BASE, "vi").await.json();
    let names: Vec<&str> =
        all["repositories"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!((names, &all["truncated"]), (vec!["deep/er/still", "web"], &json!(false)));
    let first = &all["repositories"][0];
    assert_eq!((&first["manifest_count"], &first["tag_count"]), (&json!(1), &json!(1)));
    assert_eq!(first["size_bytes"], json!(size));
    let web = &all["repositories"][1];
    assert_eq!((&web["manifest_count"], &web["tag_count"]), (&json!(2), &json!(2)));
    assert!(web["pushed_at"].as_i64().unwrap() > 1_700_000_000);
    let one = site.ask("GET", &format!("{BASE}?limit=1"), "vi").await.json();
    assert_eq!((&one["repositories"][0]["name"], &one["truncated"]), (&json!("deep/er/still"), &json!(true)));
    let next = site.ask("GET", &format!("{BASE}?limit=1&marker=deep/er/still"), "vi").await.json();
    assert_eq!((&next["repositories"][0]["name"], &next["truncated"]), (&json!("web"), &json!(false)));
    let end = site.ask("GET", &format!("{BASE}?marker=web"), "vi").await.json();
    assert_eq!(end["repositories"], json!([]));
    for bad in ["0", "-1", "x"] {
        site.ask("GET", &format!("{BASE}?limit={bad}"), "vi").await.expect(422, "limit: ");
    }
    site.ask("GET", BASE, "stan").await.expect(404, "no such account");
    site.ask("GET", "/keppel/v1/accounts/absent/repositories", "ada").await.expect(404, "no such account");
}

#[tokio::test]
async fn manifests_are_listed_with_every_field_that_is_known() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let (plain, _) = site.push("acme-prod/web", "plain", json!({}), json!({})).await;
    let history = json!([{"created": "2024-02-29T12:30:05Z"}, {"created": "2024-03-01T00:00:00.5Z"}]);
    let config = json!({"config": {"Labels": {"team": "core"}}, "history": history});
    let (digest, size) = site.push("acme-prod/web", "v1", config, json!({"note": "first"})).await;
    site.push_about("acme-prod/web", &digest, "application/vnd.example.report").await;
    let path = format!("/v2/acme-prod/web/manifests/{digest}");
    let pulled = reply(site.request("GET", "/v2/acme-prod/web/manifests/v1", "vi")).await;
    assert_eq!(pulled.headers["x-keppel-min-layer-created-at"], "1709209805");
    assert_eq!(pulled.headers["x-keppel-max-layer-created-at"], "1709251200");
    assert_eq!(pulled.headers["x-keppel-vulnerability-status"], "Unsupported");
    let uncounted = site.request("GET", "/v2/acme-prod/web/manifests/plain", "vi");
    reply(uncounted.header("x-keppel-no-count-towards-last-pulled", "1")).await;
    let list = format!("{BASE}/web/_manifests");
    // Pull times are written by and by.
    let manifests = site.until(&list, |list| list["manifests"].to_string().contains("\"last_pulled_at\":1")).await;
    let of = |digest: &str| -> Value {
        let all = manifests["manifests"].as_array().unwrap();
        all.iter().find(|manifest| manifest["digest"] == digest).unwrap().clone()
    };
    let mut found = of(&digest);
    for field in ["pushed_at", "last_pulled_at"] {
        assert!(found[field].as_i64().unwrap() > 1_700_000_000 && found["tags"][0][field].as_i64().is_some());
        found.as_object_mut().unwrap().remove(field);
        found["tags"][0].as_object_mut().unwrap().remove(field);
    }
    let expected = json!({
        "digest": digest, "media_type": "application/vnd.oci.image.manifest.v1+json", "size_bytes": size,
        "tags": [{"name": "v1"}], "labels": {"team": "core"}, "annotations": {"note": "first"},
        "artifact_type": "application/vnd.oci.image.config.v1+json", "vulnerability_status": "Unsupported",
        "min_layer_created_at": 1_709_209_805, "max_layer_created_at": 1_709_251_200,
    });
    assert_eq!(found, expected);
    let never = of(&plain);
    assert_eq!((&never["last_pulled_at"], &never["tags"][0]["last_pulled_at"]), (&Value::Null, &Value::Null));
    assert!(never.get("labels").is_none() && never.get("subject").is_none(), "{never}");
    let all = manifests["manifests"].as_array().unwrap();
    let about = all.iter().find(|manifest| manifest.get("subject").is_some()).unwrap();
    assert_eq!((&about["subject"], &about["tags"]), (&json!(digest), &json!([])));
    assert_eq!(about["artifact_type"], json!("application/vnd.example.report"));

    let first = site.ask("GET", &format!("{list}?limit=2"), "vi").await.json();
    let marker = first["manifests"][1]["digest"].as_str().unwrap().to_owned();
    let rest = site.ask("GET", &format!("{list}?limit=2&marker={marker}"), "vi").await.json();
    assert_eq!((&first["truncated"], &rest["truncated"]), (&json!(true), &json!(false)));
    assert_eq!(rest["manifests"].as_array().unwrap().len(), 1);
    site.ask("GET", &format!("{list}?marker=x"), "vi").await.expect(422, "marker: ");
    site.ask("GET", &format!("{BASE}/absent/_manifests"), "vi").await.expect(404, "absent");
    site.ask("GET", &format!("{BASE}/Bad/_manifests"), "vi").await.expect(404, "no such repository");
    site.ask("GET", &list, "stan").await.expect(404, "no such account");
    assert_eq!(reply(site.request("HEAD", &path, "vi")).await.status, 200);
}

#[tokio::test]
async fn manifests_tags_and_repositories_are_deleted_unless_they_are_protected() {
    let site = Site::start();
    let guard = json!({"tag_policies": [{"match_tag": "v.*", "block_delete": true}]});
    site.put_account("acme-prod", "ada", guard).await.expect(200, "");
    let (digest, _) = site.push("acme-prod/deep/web", "v1", json!({}), json!({})).await;
    let (other, _) = site.push("acme-prod/deep/web", "latest", json!({}), json!({"n": "2"})).await;
    let repository = format!("{BASE}/deep/web");
    let delete = async |path: &str, user: &str| site.ask("DELETE", &format!("{repository}{path}"), user).await;
    let protected = "tag v1 is protected: account.tag_policies[0] sets block_delete";
    for path in ["/_tags/v1", &format!("/_manifests/{digest}"), ""] {
        delete(path, "ed").await.expect(409, protected);
        delete(path, "vi").await.expect(403, "not allowed");
        delete(path, "stan").await.expect(404, "no such account");
    }
    // The distribution API refuses the same.
    for reference in ["v1", &digest] {
        let path = format!("/v2/acme-prod/deep/web/manifests/{reference}");
        let refused = site.ask("DELETE", &path, "ed").await;
        assert_eq!((refused.status.as_u16(), &refused.json()["errors"][0]["code"]), (409, &json!("DENIED")));
    }
    assert_eq!(delete("/_tags/latest", "ed").await.status, 204);
    delete("/_tags/latest", "ed").await.expect(404, "latest");
    delete("/_tags/.bad", "ed").await.expect(404, "no such tag");
    assert_eq!(delete(&format!("/_manifests/{other}"), "ed").await.status, 204);
    delete(&format!("/_manifests/{other}"), "ed").await.expect(404, "not known");
    delete("/_manifests/v1", "ed").await.expect(404, "no such manifest");
    let upper = digest.to_uppercase().replace("SHA256", "sha256");
    delete(&format!("/_manifests/{upper}"), "ed").await.expect(404, "no such manifest");
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    assert_eq!(delete("", "ed").await.status, 204);
    delete("", "ed").await.expect(404, "not known");
    assert_eq!(site.ask("GET", BASE, "vi").await.json()["repositories"], json!([]));
    let gone = site.ask("GET", "/v2/acme-prod/deep/web/manifests/v1", "vi").await;
    assert_eq!(gone.status, 404);
}

#[tokio::test]
async fn no_manifest_has_a_report_as_its_status_says() {
    let site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let (image, _) = site.push("acme-prod/web", "v1", json!({}), json!({})).await;
    let report = site.push_about("acme-prod/web", &image, "application/vnd.example.report").await;
    let ask = async |digest: &str, query: &str| {
        let path = format!("{BASE}/web/_manifests/{digest}/trivy_report{query}");
        site.ask("GET", &path, "vi").await
    };
    for query in ["", "?format=json", "?format=spdx-json"] {
        for digest in [&image, &report] {
            let answer = ask(digest, query).await;
            assert_eq!((answer.status.as_u16(), &*answer.text), (204, ""), "the listing says Unsupported");
        }
    }
    ask(&image, "?format=pdf").await.expect(422, "format: \"pdf\"");
    ask(&format!("sha256:{}", "0".repeat(64)), "").await.expect(404, "not known");
    ask("v1", "").await.expect(404, "no such manifest");
}
