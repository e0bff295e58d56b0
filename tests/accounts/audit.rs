//! The audit log: what leaves an event, who may read it, and where it is sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::images::sha256;
use crate::site::{Site, reply};

/// The events of a page, as `actor action kind target outcome`.
fn lines(page: &Value) -> Vec<String> {
    let event = |event: &Value| {
        let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = text("/target/typeURI");
        let kind = kind.rsplit('/').next().unwrap_or_default().to_owned();
        format!("{} {} {kind} {} {}", text("/initiator/id"), text("/action"), text("/target/id"), text("/outcome"))
    };
    page["events"].as_array().expect("events").iter().map(event).collect()
}

async fn push(site: &Site, user: &str) -> u16 {
    let path = format!("/v2/acme-prod/web/blobs/uploads/?digest={}", sha256(b"{}"));
    let pushed = reply(site.request("POST", &path, user).body("{}")).await;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": [],
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(b"{}"), "size": 2},
    });
    let request = site.request("PUT", "/v2/acme-prod/web/manifests/latest", user);
    let request = request.header("content-type", "application/vnd.oci.image.manifest.v1+json");
    let put = reply(request.header("user-agent", "test/1").body(manifest.to_string())).await;
    assert_eq!(pushed.status == 201, put.status == 201, "{}", put.text);
    put.status.as_u16()
}

#[tokio::test]
async fn every_change_leaves_an_event_for_those_who_may_see_it() {
    let mut site = Site::start();
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    assert_eq!(push(&site, "ed").await, 201);
    assert_eq!(push(&site, "vi").await, 403);
    assert_eq!(reply(site.request("GET", "/v2/acme-prod/web/manifests/latest", "vi")).await.status, 200);
    site.ask("DELETE", "/v2/acme-prod/web/manifests/latest", "ed").await;
    site.put_account("acme-prod", "ed", json!({})).await.expect(403, "");
    // A stranger who is refused leaves no event: whoever likes could fill the log.
    assert_eq!(site.ask("DELETE", "/v2/acme-prod/web/manifests/latest", "").await.status, 401);

    let page = site.ask("GET", "/keppel/v1/audit?tenant=acme", "ada").await.expect(200, "").json();
    assert_eq!(
        lines(&page),
        [
            "user:ed update account acme-prod failure",
            "user:ed delete tag acme-prod/web:latest success",
            "user:vi create manifest acme-prod/web:latest failure",
            "user:vi create blob acme-prod/web failure",
            "user:ed create manifest acme-prod/web:latest success",
            "user:ed create blob acme-prod/web success",
            "user:ada create account acme-prod success",
        ]
    );
    let event = &page["events"][4];
    assert_eq!(event["typeURI"], "http://schemas.dmtf.org/cloud/audit/1.0/event");
    assert_eq!(event["initiator"]["host"], json!({"address": "127.0.0.1", "agent": "test/1"}));
    assert_eq!((&event["target"]["project_id"], &event["reason"]["reasonCode"]), (&json!("acme"), &json!("201")));
    let attached = event["attachments"].to_string();
    assert!(attached.contains("sha256:") && attached.contains("request_id"), "{attached}");

    // Operators see everything, what was done on the node itself too, page by page.
    let all = site.ask("GET", "/keppel/v1/audit?limit=1000", "root").await.json();
    let all = lines(&all);
    assert!(
        all.iter().any(|line| line.starts_with("operator:uid ") && line.ends_with(" create user stan success")),
        "{all:?}"
    );
    let (mut paged, mut marker) = (Vec::new(), String::new());
    loop {
        let page = site.ask("GET", &format!("/keppel/v1/audit?limit=3{marker}"), "root").await.json();
        paged.extend(lines(&page));
        let Some(last) = page["events"].as_array().unwrap().last().filter(|_| page["truncated"] == true) else { break };
        marker = format!("&marker={}", last["id"].as_str().unwrap());
    }
    assert_eq!(paged, all);
    for (user, path, status) in [
        ("ada", "/keppel/v1/audit", 403),
        ("ada", "/keppel/v1/audit?tenant=other", 403),
        ("ed", "/keppel/v1/audit?tenant=acme", 403),
        ("stan", "/keppel/v1/audit", 403),
        ("", "/keppel/v1/audit", 401),
        ("root", "/keppel/v1/audit?marker=x", 422),
        ("root", "/keppel/v1/audit?limit=0", 422),
        ("root", "/keppel/v1/audit?tenant=..%2f", 422),
    ] {
        assert_eq!(site.ask("GET", path, user).await.status, status, "{user} {path}");
    }
    // What was answered is written before an orderly end.
    site.put_account("acme-late", "ada", json!({})).await.expect(200, "");
    site.server.stop();
    site.restart();
    let page = site.ask("GET", "/keppel/v1/audit?tenant=acme&limit=1", "ada").await.json();
    assert_eq!(lines(&page), ["user:ada create account acme-late success"]);
}

/// A webhook that refuses the first two requests and keeps the bodies of those that it takes.
async fn webhook() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/events", listener.local_addr().unwrap());
    let taken: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = taken.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let mut body = vec![0; length.trim().parse().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            let good = number >= 2 && head.contains("authorization: bearer sesame");
            if good {
                let Value::Array(events) = serde_json::from_slice(&body).unwrap() else { panic!("not a list") };
                kept.lock().unwrap().extend(events);
            }
            let status = if good { "204 No Content" } else { "503 Busy" };
            let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n").as_bytes()).await;
        }
    });
    (url, taken)
}

#[tokio::test]
async fn events_are_sent_on_to_a_file_and_a_webhook_that_is_busy_at_first() {
    let (url, taken) = webhook().await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("audit.jsonl");
    let settings = [
        format!("audit.webhook_url={url}"),
        "audit.webhook_authorization=Bearer sesame".to_owned(),
        format!("audit.file={}", file.display()),
        "audit.export_interval=100ms".to_owned(),
    ];
    let site = Site::start_with(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    site.put_account("acme-prod", "ada", json!({})).await.expect(200, "");
    let has = |events: &[Value]| events.iter().any(|event| event["target"]["id"] == "acme-prod");
    let arrived = async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            if has(&events) && has(&taken.lock().unwrap()) {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let events = tokio::time::timeout(Duration::from_secs(30), arrived).await.expect("events arrive");
    let ids =
        |events: &[Value]| -> Vec<i64> { events.iter().map(|e| e["id"].as_str().unwrap().parse().unwrap()).collect() };
    for ids in [ids(&events), ids(&taken.lock().unwrap())] {
        assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1) && ids[0] == 1, "each once, in order: {ids:?}");
    }
    assert!(!site.server.log().contains("sesame"));
}
