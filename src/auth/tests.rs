//! The room as a whole: from a header to a decision, and from a request to a token.

use super::password::tests::quick_hasher;
use super::*;
use crate::model::policy::{AccountSettings, Secret};
use crate::model::{Clock as _, ManualClock};
use data_encoding::BASE64;
use keppel_federation::vocabulary::{NodeId, RepositoryName};
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;

const NOW: i64 = 1_000_000;

struct Region {
    auth: Auth,
    records: Arc<MemoryRecords>,
    clock: Arc<ManualClock>,
}

fn node() -> NodeId {
    NodeId::from_public_key([1; 32])
}

fn region_over(records: Arc<MemoryRecords>, clock: Arc<ManualClock>) -> Region {
    let keys = KeyRing::in_memory(node(), KeyOptions::default(), NOW).unwrap();
    for (id, document) in keys.documents() {
        records.put(RecordKind::IssuerKey, &id, document.to_bytes());
    }
    let tokens = Tokens::new(TokenOptions::default(), keys, records.clone(), clock.clone());
    let driver = Arc::new(LocalDriver::new(records.clone(), quick_hasher(), clock.clone(), 100));
    let auth = Auth::new(&AuthOptions::default(), driver, records.clone(), tokens, clock.clone());
    Region { auth, records, clock }
}

async fn region() -> Region {
    let region = region_over(Arc::default(), Arc::new(ManualClock::new(NOW)));
    let mut alice = UserDocument::default();
    alice.set_password(quick_hasher().hash(Secret::new("swordfish")).await.unwrap());
    alice.roles.insert("acme".parse().unwrap(), Role::Editor);
    region.records.put(RecordKind::User, "user:alice", alice.to_bytes());
    let settings = json!({"rbac_policies": [{"match_repository": "public/.*", "permissions": ["anonymous_pull"]}]});
    put_account(&region.records, "acme-prod", "acme", settings);
    put_account(&region.records, "other", "others", json!({}));
    region
}

fn put_account(records: &MemoryRecords, name: &str, tenant: &str, fields: serde_json::Value) {
    let settings = AccountSettings::from_request(fields).unwrap().to_stored();
    records.put_account(name.parse().unwrap(), tenant.parse().unwrap(), settings);
}

fn home() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}

fn basic(username: &str, secret: &str) -> String {
    format!("Basic {}", BASE64.encode(format!("{username}:{secret}").as_bytes()))
}

async fn token_for(auth: &Auth, query: &str, basic: Option<(&str, &str)>) -> TokenResponse {
    let basic = basic.map(|(username, secret)| Credentials::new(username, secret).unwrap());
    let request = TokenRequest::from_query(query, basic).unwrap();
    auth.issue(request, home(), |name| RepositoryName::parse(name).ok()).await.unwrap()
}

fn allowed(auth: &Auth, header: &str, repository: &str) -> Vec<Action> {
    let caller = auth.recall(Some(header)).unwrap().unwrap();
    auth.access(&caller, &repository.parse().unwrap(), home()).actions.iter().collect()
}

#[tokio::test]
async fn a_token_allows_what_was_asked_for_and_is_allowed_and_no_more() {
    let Region { auth, .. } = region().await;
    let query = "service=keppel&scope=repository:acme-prod/web:pull,push&scope=repository:other/web:pull\
                 &scope=repository:absent/web:pull&scope=repository:Bad:pull";
    let response = token_for(&auth, query, Some(("alice", "swordfish"))).await;
    assert_eq!((response.expires_in, response.refresh_token.is_none()), (600, true));
    assert_eq!(response.issued_at, "1970-01-12T13:46:40Z");
    let header = format!("Bearer {}", response.token);
    assert_eq!(allowed(&auth, &header, "acme-prod/web"), [Action::Pull, Action::Push]);
    assert_eq!(allowed(&auth, &header, "acme-prod/api"), []);
    assert_eq!(allowed(&auth, &header, "other/web"), []);
    let caller = auth.recall(Some(&*header)).unwrap().unwrap();
    assert!(!caller.may_list() && !caller.has(Right::ViewAccount, &"acme".parse().unwrap()));
    let request = TokenRequest::from_query("service=elsewhere", None).unwrap();
    assert!(matches!(auth.issue(request, home(), |_| None).await, Err(AuthError::BadRequest(_))));
}

#[tokio::test]
async fn basic_credentials_are_checked_once_and_then_from_memory() {
    let Region { auth, .. } = region().await;
    let header = basic("alice", "swordfish");
    assert!(auth.recall(Some(&*header)).is_none());
    auth.identify(Some(&*header), home()).await.unwrap();
    assert_eq!(allowed(&auth, &header, "acme-prod/web"), Action::ALL);
    assert_eq!(allowed(&auth, &header, "other/web"), []);
    for (username, secret) in [("alice", "wrong"), ("nobody", "swordfish")] {
        assert_eq!(
            auth.identify(Some(&*basic(username, secret)), home()).await.unwrap_err(),
            AuthError::InvalidCredentials
        );
    }
    for bad in ["Digest x", "Basic", "Basic ***", "Basic YWJj", "", "Bearer"] {
        assert!(auth.identify(Some(bad), home()).await.is_err(), "{bad}");
    }
}

#[tokio::test]
async fn nobody_known_gets_what_anonymous_policies_grant() {
    let Region { auth, records, .. } = region().await;
    let query = "scope=repository:acme-prod/public/web:pull,push&scope=repository:acme-prod/web:pull\
                 &scope=registry:catalog:*&scope=keppel:api:*";
    let header = format!("Bearer {}", token_for(&auth, query, None).await.token);
    assert_eq!(allowed(&auth, &header, "acme-prod/public/web"), [Action::Pull]);
    assert_eq!(allowed(&auth, &header, "acme-prod/web"), []);
    assert!(!auth.recall(Some(&*header)).unwrap().unwrap().may_list());
    // A policy that changes decides at once, for tokens that are out too.
    put_account(&records, "acme-prod", "acme", json!({}));
    assert_eq!(allowed(&auth, &header, "acme-prod/public/web"), []);
}

#[tokio::test]
async fn hidden_and_absent_repositories_look_the_same() {
    let Region { auth, .. } = region().await;
    let caller = auth.identify(Some(&*basic("alice", "swordfish")), home()).await.unwrap();
    for caller in [&caller, &auth.identify(None, home()).await.unwrap()] {
        let access = |name: &str| auth.access(caller, &name.parse().unwrap(), home());
        assert_eq!(access("other/web"), access("absent/web"));
        assert_eq!(access("other/web"), Access::NONE);
    }
}

#[tokio::test]
async fn refresh_tokens_give_access_in_every_region_until_the_user_is_revoked() {
    let Region { auth, records, clock } = region().await;
    let elsewhere = region_over(records.clone(), clock.clone()).auth;
    let response = token_for(&auth, "offline_token=true", Some(("alice", "swordfish"))).await;
    let refresh = response.refresh_token.unwrap();
    let exchange = async |auth: &Auth| {
        let form = format!("grant_type=refresh_token&refresh_token={refresh}&scope=repository:acme-prod/web:pull,fly");
        let request = TokenRequest::from_form(form.as_bytes(), None).unwrap();
        auth.issue(request, home(), |name| RepositoryName::parse(name).ok()).await
    };
    clock.advance(24 * 3600);
    let fresh = exchange(&elsewhere).await.unwrap();
    assert_eq!(fresh.scope.as_deref(), Some("repository:acme-prod/web:pull"));
    let header = format!("Bearer {}", fresh.token);
    assert_eq!(allowed(&auth, &header, "acme-prod/web"), [Action::Pull]);
    assert!(auth.recall(Some(&*format!("Bearer {refresh}"))).unwrap().is_err(), "a refresh token opens nothing itself");

    let record = records.get(super::RecordKind::User, "user:alice").unwrap();
    let mut alice = UserDocument::from_bytes(&record.body).unwrap();
    alice.revoke_all();
    records.put(RecordKind::User, "user:alice", alice.to_bytes());
    for auth in [&auth, &elsewhere] {
        assert_eq!(exchange(auth).await.unwrap_err(), AuthError::Token(TokenError::Revoked));
        assert_eq!(auth.recall(Some(&*header)).unwrap().unwrap_err(), AuthError::Token(TokenError::Revoked));
    }
    records.remove(RecordKind::User, "user:alice");
    assert!(auth.recall(Some(&*header)).unwrap().is_err());
    assert!(auth.recall(Some(&*basic("alice", "swordfish"))).is_none_or(|verdict| verdict.is_err()));
}

#[tokio::test]
async fn tokens_of_somebody_who_was_removed_are_good_for_nobody_who_gets_the_name() {
    let Region { auth, records, clock } = region().await;
    let people = People::new(records.clone(), quick_hasher(), clock.clone());
    let add = |name: &str, operator| {
        let password = Some(Passphrase(Secret::new("swordfish")));
        PeopleRequest::AddUser { name: name.into(), password, operator, roles: Default::default() }
    };
    people.carry_out(add("bob", false)).await.unwrap();
    let response = token_for(&auth, "offline_token=true&scope=keppel:api:*", Some(("bob", "swordfish"))).await;
    let (access, refresh) = (format!("Bearer {}", response.token), response.refresh_token.unwrap());
    assert!(auth.recall(Some(&*access)).unwrap().is_ok());
    people.carry_out(PeopleRequest::RemoveUser { name: "bob".into() }).await.unwrap();
    people.carry_out(add("bob", true)).await.unwrap();
    assert_eq!(auth.recall(Some(&*access)).unwrap().unwrap_err(), AuthError::Token(TokenError::Revoked));
    let form = format!("grant_type=refresh_token&refresh_token={refresh}");
    let request = TokenRequest::from_form(form.as_bytes(), None).unwrap();
    let again = auth.issue(request, home(), |name| RepositoryName::parse(name).ok()).await;
    assert_eq!(again.unwrap_err(), AuthError::Token(TokenError::Revoked));
    // The new one logs in as anybody does, and may revoke as often as they like.
    assert!(!token_for(&auth, "", Some(("bob", "swordfish"))).await.token.is_empty());
    let record = records.get(super::RecordKind::User, "user:bob").unwrap();
    let mut last = UserDocument { epoch: u64::MAX, ..UserDocument::from_bytes(&record.body).unwrap() };
    last.revoke_all();
    assert_eq!(last.epoch, 0);
    // A robot's tokens end with its secret; its epoch is new as well.
    let robot = || PeopleRequest::AddRobot {
        name: "acme+ci".into(),
        description: String::new(),
        scopes: Vec::new(),
        lifetime_seconds: None,
    };
    let mut epochs = Vec::new();
    for _ in 0..2 {
        people.carry_out(robot()).await.unwrap();
        let record = records.get(super::RecordKind::User, "robot:acme+ci").unwrap();
        epochs.push(RobotDocument::from_bytes(&record.body).unwrap().epoch);
        people.carry_out(PeopleRequest::RemoveRobot { name: "acme+ci".into() }).await.unwrap();
    }
    assert_ne!(epochs[0], epochs[1]);
}

#[tokio::test]
async fn refresh_tokens_outlive_rotations_of_keys_and_restarts_for_as_long_as_they_are_good() {
    const DAY: i64 = 24 * 3600;
    let Region { records, clock, .. } = region().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token-keys.json");
    let publish = |tokens: &Tokens| {
        for (id, document) in tokens.keys().documents() {
            records.put(RecordKind::IssuerKey, &id, document.to_bytes());
        }
    };
    // A node as it starts: keys from its file, public ones in the records.
    let start = || {
        let options = KeyOptions { rotation_seconds: 2 * DAY, ..KeyOptions::default() };
        let keys = KeyRing::open(&path, node(), options, clock.now()).unwrap();
        let tokens = Tokens::new(TokenOptions::default(), keys, records.clone(), clock.clone());
        publish(&tokens);
        let driver = Arc::new(LocalDriver::new(records.clone(), quick_hasher(), clock.clone(), 100));
        Auth::new(&AuthOptions::default(), driver, records.clone(), tokens, clock.clone())
    };
    let mut auth = start();
    let first_key = auth.tokens().keys().documents().remove(0).0;
    let refresh = token_for(&auth, "offline_token=true", Some(("alice", "swordfish"))).await.refresh_token.unwrap();
    let exchange = async |auth: &Auth| {
        let form = format!("grant_type=refresh_token&refresh_token={refresh}");
        let request = TokenRequest::from_form(form.as_bytes(), None).unwrap();
        auth.issue(request, home(), |name| RepositoryName::parse(name).ok()).await
    };
    for day in 1..14 {
        clock.advance(DAY);
        auth.tokens().keys().maintain(clock.now()).unwrap();
        publish(auth.tokens());
        if day % 3 == 0 {
            auth = start();
        }
        exchange(&auth).await.unwrap_or_else(|error| panic!("day {day}: {error}"));
    }
    let keys = auth.tokens().keys().documents();
    assert!(keys.iter().all(|(id, _)| *id != first_key), "the key that signed it has gone: {keys:?}");
    let record = records.get(RecordKind::IssuerKey, &first_key).unwrap();
    assert!(IssuerKeyDocument::from_bytes(&record.body).unwrap().expires_at > clock.now() + DAY);
    clock.advance(DAY);
    assert_eq!(exchange(&auth).await.unwrap_err(), AuthError::Token(TokenError::Expired));
}

#[tokio::test]
async fn a_robot_token_ends_with_its_secret_and_reaches_its_own_tenant_only() {
    let Region { auth, records, clock } = region().await;
    let mut robot = RobotDocument {
        scopes: vec![RobotScope {
            account: None,
            match_repository: "web|public/.*".into(),
            actions: vec![Action::Pull, Action::Push],
        }],
        ..RobotDocument::default()
    };
    let secret = robot.rotate_secret(NOW, 0);
    records.put(RecordKind::User, "robot:acme+ci", robot.to_bytes());
    let query = "scope=repository:acme-prod/web:*&scope=repository:other/web:*&scope=repository:acme-prod/api:*";
    let response = token_for(&auth, query, Some(("acme+ci", secret.reveal()))).await;
    let header = format!("Bearer {}", response.token);
    assert_eq!(allowed(&auth, &header, "acme-prod/web"), [Action::Pull, Action::Push]);
    for other in ["other/web", "acme-prod/api"] {
        assert_eq!(allowed(&auth, &header, other), []);
    }
    let next = robot.rotate_secret(NOW, 100);
    records.put(RecordKind::User, "robot:acme+ci", robot.to_bytes());
    clock.advance(99);
    assert!(auth.recall(Some(&*header)).unwrap().is_ok());
    clock.advance(1);
    assert!(auth.recall(Some(&*header)).unwrap().is_err(), "the secret that the token came from has ended");
    assert!(auth.identify(Some(&*basic("acme+ci", next.reveal())), home()).await.is_ok());
    assert!(auth.identify(Some(&*basic("acme+ci", secret.reveal())), home()).await.is_err());
}

#[tokio::test]
async fn policies_that_cannot_be_used_close_an_account() {
    let Region { auth, records, .. } = region().await;
    records.put_account("acme-prod".parse().unwrap(), "acme".parse().unwrap(), b"{broken".to_vec());
    let header = basic("alice", "swordfish");
    auth.identify(Some(&*header), home()).await.unwrap();
    assert_eq!(allowed(&auth, &header, "acme-prod/web"), []);
    assert!(auth.account(&"acme-prod".parse().unwrap()).is_none());
}

#[tokio::test]
async fn an_open_registry_asks_nobody_for_anything() {
    let (records, clock) = (Arc::new(MemoryRecords::default()), Arc::new(ManualClock::new(NOW)));
    let keys = KeyRing::in_memory(node(), KeyOptions::default(), NOW).unwrap();
    let tokens = Tokens::new(TokenOptions::default(), keys, records.clone(), clock.clone());
    let auth = Auth::new(&AuthOptions::default(), Arc::new(OpenDriver::default()), records, tokens, clock);
    for header in [None, Some("Basic ***"), Some("Bearer x")] {
        let caller = auth.recall(header).unwrap().unwrap();
        assert!(auth.access(&caller, &"any/thing".parse().unwrap(), home()).allows(Action::Delete));
        assert!(caller.has(Right::EditTenant, &"any".parse().unwrap()) && caller.may_list());
    }
    let response = token_for(&auth, "offline_token=1&scope=repository:a/b:pull", Some(("any", "body"))).await;
    assert!(!response.token.is_empty());
}
