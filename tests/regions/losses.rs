//! What was acknowledged, when regions come back that were away or had a power failure.

use std::time::{Duration, Instant};

use rusqlite::types::Value;
use serde_json::json;

use crate::copies::{has_all, put_account, rows};
use crate::federation::{Region, three_regions, until};
use crate::harness::Image;
use crate::leases::until_it_answers_alone;

/// Waits until a region gives a tag without a mark, or says like that that there is none; gives the status.
async fn settled(region: &Region, path: &str) -> u16 {
    let start = Instant::now();
    loop {
        let answer = region.client.get(path).await;
        if answer.headers.get("warning").is_none() && [200, 404].contains(&answer.status) {
            return answer.status;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{path}: {} {}", answer.status, answer.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_third_region_has_is_kept_there_when_a_failover_goes_past_it() {
    let [mut eu, us, ap] = three_regions();
    put_account(&eu, "acme", json!({"copies": 2})).await.expect(200);
    let (first, second) = (Image::small(1), Image::small(2));
    eu.client.push_image("acme/app", "v1", &first).await;
    for region in [&us, &ap] {
        region.client.assert_image("acme/app", "v1", &first).await;
        until_it_answers_alone(region, "/v2/acme/app/manifests/v1").await;
    }
    us.signal(libc::SIGSTOP);
    // Its last question is answered without this.
    tokio::time::sleep(Duration::from_secs(1)).await;
    eu.client.push_image("acme/app", "v2", &second).await;
    eu.client.put_manifest("acme/app", "v1", &second.manifest).await.expect(201);
    eu.server.kill();
    us.signal(libc::SIGCONT);
    until("they find a leader", || us.told(&["status"]).starts_with("decisions are taken"));
    let said = us.operate(&["account", "failover", "acme", "--to", "us", "--yes", "--force"]);
    assert!(said.contains("or another region has beyond that is listed there"), "{said}");
    assert_eq!(settled(&us, "/v2/acme/app/manifests/v2").await, 404, "this test needs a region that was behind");
    assert_eq!(settled(&ap, "/v2/acme/app/manifests/v2").await, 404);

    let listed = ap.operate(&["account", "divergent", "acme"]);
    assert!(listed.contains(" v2 ") && listed.contains(" v1 ") && listed.contains(&second.digest()), "{listed}");
    assert_eq!(us.operate(&["account", "divergent", "acme"]).lines().count(), 1);
    ap.operate(&["account", "divergent", "acme", "--push"]);
    for region in [&us, &ap] {
        assert_eq!(settled(region, "/v2/acme/app/manifests/v2").await, 200);
        assert!(has_all(region, "acme/app", &second).await, "every byte that was acknowledged is there");
    }
    assert_eq!(ap.operate(&["account", "divergent", "acme"]).lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_region_whose_decisions_were_set_back_takes_nothing_away_before_it_has_asked() {
    let [eu, mut us, ap] = three_regions();
    us.server.kill();
    let decisions = us.server.data().join("federation.db");
    type Rows = Vec<Vec<Value>>;
    let read = |sql: &str| -> Rows {
        let database = rusqlite::Connection::open(&decisions).expect("it opens");
        let mut statement = database.prepare(sql).expect("a statement");
        let width = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..width).map(|at| row.get(at)).collect::<Result<Vec<Value>, _>>();
        let rows = statement.query_map([], row).expect("rows");
        rows.collect::<Result<_, _>>().expect("values")
    };
    let (state, place) = (
        read("SELECT kind, key, body FROM state"),
        read("SELECT key, value FROM meta WHERE key IN ('applied', 'committed')"),
    );
    us.restart();
    until("it is back", || us.told(&["status"]).starts_with("decisions are taken"));
    put_account(&eu, "late", json!({"copies": 3})).await.expect(200);
    let image = Image::small(1);
    eu.client.push_image("late/app", "v1", &image).await;
    let held = || (rows(&us, "SELECT count(*) FROM manifests"), rows(&us, "SELECT count(*) FROM blobs"));
    let before = held();
    assert!(before.0 == 1 && before.1 >= 2, "it was pushed with three copies: {before:?}");

    // As a power failure may leave it: the state of what was decided is written later than what content depends on.
    us.server.kill();
    let database = rusqlite::Connection::open(&decisions).expect("it opens");
    database.execute("DELETE FROM state", []).expect("it is emptied");
    for row in &state {
        let sql = "INSERT INTO state (kind, key, body) VALUES (?1, ?2, ?3)";
        database.execute(sql, rusqlite::params_from_iter(row)).expect("a row");
    }
    for row in &place {
        database.execute("UPDATE meta SET value = ?2 WHERE key = ?1", rusqlite::params_from_iter(row)).expect("a row");
    }
    drop(database);
    eu.signal(libc::SIGSTOP);
    ap.signal(libc::SIGSTOP);
    us.restart();
    assert_eq!(us.primary_of("late"), "", "this test needs a region that does not know the account");
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let database = rusqlite::Connection::open(us.server.data().join("metadata.db")).expect("it opens");
        let count = |sql: &str| database.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
        let now = (count("SELECT count(*) FROM manifests"), count("SELECT count(*) FROM blobs"));
        assert_eq!(now, before, "it took away what it holds a copy of");
    }
    eu.signal(libc::SIGCONT);
    ap.signal(libc::SIGCONT);
    until("it knows the account again", || us.primary_of("late") == "eu");
    assert!(has_all(&us, "late/app", &image).await);
}
