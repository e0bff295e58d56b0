//! A node that is no member any more, and what it could still do with what it has: its keys, and invitations.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use crate::regions::{ONE_SECOND, PATIENCE, Region, federation, signed_with, within};

/// A token that a node's own key signed, as whoever has its folder can make one.
fn minted(region: &Region, key_id: &str, user: &str, epoch: u64, lifetime: i64) -> String {
    let stored = std::fs::read(format!("{}/token-keys.json", region.data)).expect("its keys");
    let stored: Value = serde_json::from_slice(&stored).expect("JSON");
    let private = stored["keys"][0]["private"].as_str().expect("a key");
    let private = data_encoding::BASE64.decode(private.as_bytes()).expect("base64");
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
    let now = i64::try_from(since.as_secs()).expect("it is not so late");
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(key_id.to_owned());
    let claims = json!({
        "iss": "keppel", "aud": "keppel", "sub": format!("user:{user}"), "iat": now, "nbf": now, "exp": now + lifetime,
        "jti": "x", "kind": "access", "epoch": epoch, "limit": ["pull", "push", "delete"],
        "access": [{"type": "keppel", "name": "api", "actions": ["pull", "push", "delete"]}],
    });
    jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&private)).expect("it can sign")
}

/// What a token says.
fn payload(token: &str) -> Value {
    let payload = token.split('.').nth(1).expect("it has one");
    serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(payload.as_bytes()).expect("base64")).expect("JSON")
}

#[tokio::test]
async fn a_removed_node_signs_for_nobody_and_does_not_let_itself_in_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let [eu, mut us, ap] = federation(folder.path()).await;
    let secret = eu.told(&["user", "add", "root", "--operator"]);
    let root = ("root", secret.as_str());
    within(ONE_SECOND, "the operator can log in", async || us.ask("GET", "/v2/", root, None).await.status == 200).await;
    let token = us.token(root, "keppel:api:*").await;
    let (key, epoch) = (signed_with(&token), payload(&token)["epoch"].as_u64().expect("a number"));
    let status = async |region: &Region, token: &str| {
        let request = region.client.request("GET".parse().expect("a method"), "/keppel/v1/accounts");
        crate::site::reply(request.bearer_auth(token)).await.status.as_u16()
    };
    let keys = |region: &Region| -> Vec<Value> {
        let keys: Value = serde_json::from_str(&region.told(&["key", "list", "--json"])).expect("JSON");
        keys.as_array().expect("a list").clone()
    };
    // Its key says whose it is; what it signs is good everywhere, but for no longer than tokens are.
    let known = keys(&eu);
    assert_eq!(known.len(), 3, "{known:?}");
    let node = known.iter().find(|known| known["id"] == *key).expect("it is listed")["node"].clone();
    let node = node.as_str().expect("an id").to_owned();
    assert!(eu.told(&["key", "list"]).contains(&node[..10]));
    let brief = minted(&us, &key, "root", epoch, 600);
    assert_eq!((status(&eu, &token).await, status(&eu, &brief).await), (200, 200));
    let lasting = minted(&us, &key, "root", epoch, 30 * 86_400);
    assert_eq!(status(&eu, &lasting).await, 401, "it would outlive everything");

    // It made invitations, one of which an operator takes back at once.
    let kept = us.told(&["federation", "invite", "--region", "sa", "--for", "30d"]);
    let taken_back = us.told(&["federation", "invite", "--region", "sa", "--for", "1h"]);
    let list = |region: &Region| -> Vec<Value> {
        let list: Value = serde_json::from_str(&region.told(&["federation", "invitations", "--json"])).expect("JSON");
        list.as_array().expect("a list").clone()
    };
    let open = |list: Vec<Value>| list.into_iter().filter(|one| one["used_by"].is_null()).collect::<Vec<_>>();
    within(ONE_SECOND, "they are known", async || open(list(&eu)).len() == 2).await;
    let all = open(list(&eu));
    assert!(
        all.iter().all(|one| one["issuer"] == *node && one["region"] == "sa" && one["expired"] == false),
        "{all:?}"
    );
    let shorter = all[1]["id"].as_str().expect("an id");
    assert_eq!(eu.told(&["federation", "invitations", "--revoke", &shorter[..10]]), "revoked");
    let table = eu.told(&["federation", "invitations"]);
    assert!(table.contains("MADE BY") && table.contains(&node[..10]) && table.contains("used"), "{table}");
    assert!(!table.contains(&shorter[..10]), "{table}");
    let again = eu.run(&["federation", "invitations", "--revoke", &shorter[..10]]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("no invitation has an id that begins with"), "{again:?}");

    eu.told(&["federation", "remove", &node]);
    for region in [&eu, &ap] {
        for token in [&token, &brief] {
            within(ONE_SECOND, "its tokens are refused", async || status(region, token).await == 401).await;
        }
        let fresh = minted(&us, &key, "root", epoch, 600);
        assert_eq!(status(region, &fresh).await, 401, "and new ones");
        assert!(keys(region).iter().all(|known| known["node"] != *node), "{:?}", keys(region));
        assert!(open(list(region)).is_empty(), "{:?}", list(region));
    }
    assert_eq!(status(&eu, &eu.token(root, "keppel:api:*").await).await, 200, "others' tokens stay good");
    // Neither it nor anybody whom it gave the text gets in.
    us.process.kill();
    let stranger = Region::start(folder.path(), "sa");
    for invitation in [&kept, &taken_back] {
        let refused = stranger.run(&["federation", "join", invitation]);
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && words.contains("no such invitation"), "{words}");
    }
    assert!(!eu.told(&["federation", "members"]).contains("sa"));

    // With a new identity it has new keys: whoever copied the old ones signs nothing under it.
    let words = us.told(&["federation", "reset-identity", "--yes"]);
    assert!(words.contains(&node), "{words}");
    assert!(!std::path::Path::new(&us.data).join("token-keys.json").exists());
    within(PATIENCE, "the rest is well", async || status(&ap, &ap.token(root, "keppel:api:*").await).await == 200)
        .await;
}
