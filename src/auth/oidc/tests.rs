//! The driver against an issuer of this process. A real provider is asked in the tests of the whole program.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::super::password::tests::quick_hasher;
use super::super::{Action, MemoryRecords, Records as _, RobotDocument, Role, UserDocument};
use super::*;
use crate::model::ManualClock;

const NOW: i64 = 1_000_000;

/// A key pair of P-256 and its public half as a JWK.
struct Pair {
    signs: EncodingKey,
    jwk: Value,
}

fn pair(id: &str) -> Pair {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
    let pkcs8 =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &aws_lc_rs::rand::SystemRandom::new()).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref()).unwrap();
    let point = key.public_key().as_ref();
    let (x, y) = (BASE64URL_NOPAD.encode(&point[1..33]), BASE64URL_NOPAD.encode(&point[33..]));
    let jwk = json!({"kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "alg": "ES256", "x": x, "y": y});
    Pair { signs: EncodingKey::from_ec_der(pkcs8.as_ref()), jwk }
}

/// An issuer that answers by HTTP/1.1 with its two documents.
struct FakeIssuer {
    url: String,
    keys: Arc<Mutex<String>>,
    fetched: Arc<AtomicUsize>,
}

impl FakeIssuer {
    async fn start(keys: &[&Pair]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let issuer = Self { url: url.clone(), keys: Arc::default(), fetched: Arc::default() };
        issuer.publish(keys);
        let (keys, fetched) = (issuer.keys.clone(), issuer.fetched.clone());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let body = match String::from_utf8_lossy(&request).split(' ').nth(1) {
                    Some("/.well-known/openid-configuration") => {
                        json!({"issuer": url, "jwks_uri": format!("{url}/keys")}).to_string()
                    }
                    _ => {
                        fetched.fetch_add(1, Ordering::SeqCst);
                        keys.lock().unwrap().clone()
                    }
                };
                let (status, length) = (if body.is_empty() { 500 } else { 200 }, body.len());
                let head = format!("HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        issuer
    }

    fn publish(&self, keys: &[&Pair]) {
        let keys: Vec<&Value> = keys.iter().map(|pair| &pair.jwk).collect();
        *self.keys.lock().unwrap() = json!({ "keys": keys }).to_string();
    }

    /// Answers with an error from now on.
    fn fail(&self) {
        self.keys.lock().unwrap().clear();
    }

    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::SeqCst)
    }
}

struct Fixture {
    issuer: FakeIssuer,
    pair: Pair,
    records: Arc<MemoryRecords>,
    clock: Arc<ManualClock>,
    driver: OidcDriver,
}

async fn fixture() -> Fixture {
    let pair = pair("one");
    let issuer = FakeIssuer::start(&[&pair]).await;
    let (records, clock) = (Arc::new(MemoryRecords::default()), Arc::new(ManualClock::new(NOW)));
    let local = LocalDriver::new(records.clone(), quick_hasher(), clock.clone(), 100);
    let provider = ProviderOptions {
        issuer: issuer.url.clone(),
        client_id: "keppel".into(),
        scopes: vec!["openid".into()],
        username_claim: "preferred_username".into(),
        groups_claim: "groups".into(),
        roles: vec!["dev=acme:editor".parse().unwrap(), "ops=operator".parse().unwrap()],
        roleless_users: false,
        session_seconds: 1000,
    };
    let rule = format!("issuer={} audience=registry claim.sub=repo:acme/.* robot=acme+ci allow=pull+push", issuer.url);
    let options = OidcOptions {
        provider: Some(provider),
        workloads: vec![rule.parse().unwrap()],
        skew_seconds: 60,
        authorities_pem: None,
    };
    let driver = OidcDriver::new(options, local, records.clone(), clock.clone()).unwrap();
    Fixture { issuer, pair, records, clock, driver }
}

impl Fixture {
    /// The claims of a person's ID token.
    fn person(&self) -> Value {
        json!({"iss": self.issuer.url, "sub": "1234", "aud": "keppel", "exp": NOW + 300, "iat": NOW,
               "preferred_username": "alice", "groups": ["dev", "x"]})
    }

    fn workload(&self) -> Value {
        json!({"iss": self.issuer.url, "sub": "repo:acme/web", "aud": ["registry"], "exp": NOW + 300, "nbf": NOW})
    }

    fn sign(&self, claims: &Value) -> String {
        sign(&self.pair, claims)
    }

    async fn login(&self, username: &str, token: &str) -> Result<Login, AuthError> {
        self.driver.authenticate(&Credentials::new(username, token)?).await
    }

    async fn refused(&self, token: &str) {
        assert_eq!(self.login("oidc", token).await, Err(AuthError::InvalidCredentials), "{token}");
    }

    /// Claims with some replaced; `null` removes.
    fn with(&self, mut claims: Value, changes: Value) -> Value {
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        claims
    }
}

fn sign(pair: &Pair, claims: &Value) -> String {
    let mut header = Header::new(Algorithm::ES256);
    header.kid = pair.jwk["kid"].as_str().map(str::to_owned);
    jsonwebtoken::encode(&header, claims, &pair.signs).unwrap()
}

#[tokio::test]
async fn a_person_gets_the_roles_of_their_groups_for_a_session() {
    let f = fixture().await;
    let login = f.login("oidc", &f.sign(&f.person())).await.unwrap();
    let alice = Identity::from_username("alice").unwrap();
    assert_eq!((&login.identity, login.ends_at), (&alice, None));
    let session = login.credential.as_deref();
    assert!(session.is_some_and(|session| session.starts_with("oidc:")), "{session:?}");
    let standing = f.driver.standing(&alice).unwrap();
    let epoch = standing.epoch;
    assert_eq!(standing.authority.role(&"acme".parse().unwrap()), Some(Role::Editor));
    assert!(!standing.authority.operator);
    assert!(standing.honours(epoch, session, NOW + 999) && !standing.honours(epoch, session, NOW + 1000));
    // Under their own name too; the same again costs no write; other groups do.
    let before = f.records.get(RecordKind::User, "user:alice").unwrap().revision;
    f.login("alice", &f.sign(&f.person())).await.unwrap();
    assert_eq!(f.records.get(RecordKind::User, "user:alice").unwrap().revision, before);
    f.login("alice", &f.sign(&f.with(f.person(), json!({"groups": "ops"})))).await.unwrap();
    let authority = f.driver.standing(&alice).unwrap().authority.clone();
    assert!(authority.operator && authority.roles.is_empty());
    // The session is prolonged by a login when a quarter of it is over.
    f.clock.advance(251);
    f.login("oidc", &f.sign(&f.person())).await.unwrap();
    assert!(f.driver.standing(&alice).unwrap().honours(epoch, session, NOW + 1250));
}

#[tokio::test]
async fn id_tokens_that_are_wrong_in_one_thing_are_refused() {
    let f = fixture().await;
    for changes in [
        json!({"iss": "http://127.0.0.1:1"}),
        json!({"iss": format!("{}/", f.issuer.url)}),
        json!({"iss": null}),
        json!({"aud": "other"}),
        json!({"aud": null}),
        json!({"aud": ["keppel", "other"]}),
        json!({"aud": ["keppel", "other"], "azp": "other"}),
        json!({"azp": "other"}),
        json!({"exp": NOW - 60}),
        json!({"exp": null}),
        json!({"exp": "soon"}),
        json!({"nbf": NOW + 61}),
        json!({"nbf": "now"}),
        json!({"iat": NOW + 61}),
        json!({"iat": null}),
        json!({"sub": null}),
        json!({"sub": ""}),
        json!({"preferred_username": null}),
        json!({"preferred_username": "acme+ci"}),
        json!({"preferred_username": ["alice"]}),
        json!({"preferred_username": "a b"}),
        json!({"groups": []}),
        json!({"groups": {"dev": true}}),
        json!({"events": {}}),
    ] {
        f.refused(&f.sign(&f.with(f.person(), changes))).await;
    }
    for good in
        [json!({"exp": NOW - 59}), json!({"nbf": NOW + 60}), json!({"aud": ["keppel"]}), json!({"azp": "keppel"})]
    {
        f.login("oidc", &f.sign(&f.with(f.person(), good))).await.unwrap();
    }
    assert!(f.login("bob", &f.sign(&f.person())).await.is_err(), "another's name beside the token");
}

#[tokio::test]
async fn nobody_becomes_a_local_user_or_another_person_by_having_their_name() {
    let f = fixture().await;
    f.records.put(
        RecordKind::User,
        "user:alice",
        UserDocument { operator: true, ..UserDocument::default() }.to_bytes(),
    );
    f.refused(&f.sign(&f.person())).await;
    f.records.remove(RecordKind::User, "user:alice");
    f.login("oidc", &f.sign(&f.person())).await.unwrap();
    f.refused(&f.sign(&f.with(f.person(), json!({"sub": "5678"})))).await;
}

#[tokio::test]
async fn a_session_is_good_for_nobody_who_has_the_name_afterwards() {
    let f = fixture().await;
    let before = f.login("oidc", &f.sign(&f.person())).await.unwrap();
    let epoch = f.driver.standing(&before.identity).unwrap().epoch;
    f.records.remove(RecordKind::User, "user:alice");
    let after = f.login("oidc", &f.sign(&f.with(f.person(), json!({"sub": "5678"})))).await.unwrap();
    assert_eq!(after.identity, before.identity);
    let standing = f.driver.standing(&after.identity).unwrap();
    assert!(standing.honours(standing.epoch, after.credential.as_deref(), NOW));
    // Either would do; the credential also keeps a verdict that is still remembered from counting.
    assert_ne!(standing.epoch, epoch);
    assert!(!standing.honours(standing.epoch, before.credential.as_deref(), NOW));
    // A user of the registry itself who takes the name over has no session at all.
    let local = UserDocument { operator: true, ..UserDocument::fresh() };
    f.records.put(RecordKind::User, "user:alice", local.to_bytes());
    let standing = f.driver.standing(&after.identity).unwrap();
    assert!(!standing.honours(standing.epoch, after.credential.as_deref(), NOW));
}

#[tokio::test]
async fn a_session_that_is_ended_or_forbidden_needs_a_new_login_or_none_helps() {
    let f = fixture().await;
    let token = f.sign(&f.person());
    let login = f.login("oidc", &token).await.unwrap();
    let change = |change: &dyn Fn(&mut UserDocument)| {
        let record = f.records.get(RecordKind::User, "user:alice").unwrap();
        let mut user = UserDocument::from_bytes(&record.body).unwrap();
        change(&mut user);
        f.records.put(RecordKind::User, "user:alice", user.to_bytes());
    };
    f.clock.advance(10);
    change(&|user| user.end_session(NOW + 10));
    let standing = f.driver.standing(&login.identity).unwrap();
    assert!(!standing.honours(standing.epoch, login.credential.as_deref(), NOW + 10));
    f.refused(&token).await;
    let newer = f.sign(&f.with(f.person(), json!({"iat": NOW + 11})));
    f.login("oidc", &newer).await.unwrap();
    change(&|user| user.disabled = true);
    f.refused(&newer).await;
    assert!(f.driver.standing(&Identity::from_username("alice").unwrap()).is_none());
}

#[tokio::test]
async fn a_workload_is_the_robot_of_its_rule_as_long_as_its_token_lasts() {
    let f = fixture().await;
    let token = f.sign(&f.workload());
    let login = f.login("oidc", &token).await.unwrap();
    assert_eq!((login.identity.subject().as_str(), login.ends_at), ("robot:acme+ci", Some(NOW + 360)));
    let standing = f.driver.standing(&login.identity).unwrap();
    assert!(standing.honours(0, login.credential.as_deref(), NOW) && !standing.honours(0, Some("rule:other"), NOW));
    assert!(standing.authority.roles.is_empty() && !standing.authority.operator);
    assert!(f.login("acme+ci", &token).await.is_ok() && f.login("acme+other", &token).await.is_err());
    for changes in [
        json!({"sub": "repo:other/web"}),
        json!({"sub": null}),
        json!({"aud": "keppel"}),
        json!({"aud": "Registry"}),
        json!({"exp": NOW - 61}),
    ] {
        f.refused(&f.sign(&f.with(f.workload(), changes))).await;
    }
    // A robot that is recorded under the name takes it over: so a rule is out of force everywhere at once.
    let record = RobotDocument { disabled: true, ..RobotDocument::default() };
    f.records.put(RecordKind::User, "robot:acme+ci", record.to_bytes());
    f.refused(&token).await;
    assert!(f.driver.standing(&login.identity).is_none());
}

#[tokio::test]
async fn tokens_that_choose_their_own_algorithm_or_key_are_refused() {
    let f = fixture().await;
    let good = f.sign(&f.person());
    let payload = good.split('.').nth(1).unwrap().to_owned();
    let signature = good.split('.').nth(2).unwrap().to_owned();
    let encode = |header: Value| BASE64URL_NOPAD.encode(header.to_string().as_bytes());
    let secret = f.pair.jwk["x"].as_str().unwrap();
    let stranger = pair("one");
    for header in [
        json!({"alg": "none", "kid": "one"}),
        json!({"alg": "None", "kid": "one"}),
        json!({"alg": "HS256", "kid": "one"}),
        json!({"alg": "HS512", "kid": "one"}),
        json!({"alg": "RS256", "kid": "one"}),
        json!({"alg": "ES384", "kid": "one"}),
        json!({"alg": "EdDSA", "kid": "one"}),
        json!({"alg": "ES256", "kid": "two"}),
        json!({"alg": "ES256", "kid": "../one"}),
        json!({"alg": "ES256", "kid": "x".repeat(300)}),
        json!({"alg": "ES256", "kid": "one", "crit": ["exp"]}),
        json!({"alg": "ES256", "kid": "one", "b64": false}),
        json!({"alg": "ES256", "kid": "one", "jwk": stranger.jwk}),
        json!({"kid": "one"}),
    ] {
        let message = format!("{}.{payload}", encode(header));
        let mac = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        let mac = BASE64URL_NOPAD.encode(aws_lc_rs::hmac::sign(&mac, message.as_bytes()).as_ref());
        for signature in [String::new(), signature.clone(), mac] {
            f.refused(&format!("{message}.{signature}")).await;
        }
    }
    // The right id, but signed by someone else.
    f.refused(&sign(&stranger, &f.person())).await;
    let endless = format!("{good}{}", "A".repeat(20_000));
    assert!(f.login("oidc", &endless).await.is_err());
}

#[tokio::test]
async fn a_symmetric_key_among_those_of_an_issuer_signs_nothing() {
    let f = fixture().await;
    let secret = BASE64URL_NOPAD.encode(b"0123456789abcdef0123456789abcdef");
    *f.issuer.keys.lock().unwrap() =
        json!({"keys": [{"kty": "oct", "kid": "shared", "alg": "HS256", "k": secret}, {"kty": "?"}, 5]}).to_string();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("shared".into());
    let key = EncodingKey::from_secret(b"0123456789abcdef0123456789abcdef");
    f.refused(&jsonwebtoken::encode(&header, &f.person(), &key).unwrap()).await;
}

#[tokio::test]
async fn keys_are_fetched_once_again_when_new_and_not_at_the_wish_of_strangers() {
    let f = fixture().await;
    for _ in 0..3 {
        f.login("oidc", &f.sign(&f.person())).await.unwrap();
    }
    assert_eq!(f.issuer.fetched(), 1);
    // The issuer begins to sign with another key. Whoever comes within the pause has to come again.
    let next = pair("two");
    f.issuer.publish(&[&f.pair, &next]);
    for _ in 0..5 {
        f.refused(&sign(&next, &f.person())).await;
    }
    assert_eq!(f.issuer.fetched(), 1);
    f.clock.advance(31);
    f.login("oidc", &sign(&next, &f.person())).await.unwrap();
    assert_eq!(f.issuer.fetched(), 2);
    // A key that the issuer takes back is gone when the keys are an hour old, and those that stay are used meanwhile
    // and for a day when it cannot be asked.
    f.issuer.publish(&[&next]);
    let later = |pair, seconds| sign(pair, &f.with(f.person(), json!({"exp": NOW + seconds + 100})));
    f.clock.advance(3601);
    f.refused(&later(&f.pair, 4000)).await;
    f.issuer.fail();
    f.clock.advance(3601);
    f.login("oidc", &later(&next, 8000)).await.unwrap();
    f.clock.advance(24 * 3600);
    let outcome = f.login("oidc", &later(&next, 100_000)).await;
    assert!(matches!(outcome, Err(AuthError::Unavailable(_))), "{outcome:?}");
}

#[tokio::test]
async fn those_of_the_registry_itself_are_let_in_without_the_provider() {
    let f = fixture().await;
    let mut user = UserDocument::default();
    user.set_password(quick_hasher().hash(crate::model::policy::Secret::new("swordfish")).await.unwrap());
    let (_, token) = user.add_token("t", [Action::Pull].into_iter().collect(), None, NOW).unwrap();
    f.records.put(RecordKind::User, "user:root", user.to_bytes());
    for secret in ["swordfish", token.reveal()] {
        assert_eq!(f.login("root", secret).await.unwrap().identity.username(), Some("root"));
    }
    f.refused("swordfish").await;
    assert_eq!(f.issuer.fetched(), 0);
    assert_eq!(f.driver.login_hint().unwrap().client_id, "keppel");
}

#[test]
fn urls_without_tls_are_for_this_machine_only() {
    for good in
        ["https://id.example.org", "https://id/x?y", "http://127.0.0.1:80/x", "http://localhost", "http://[::1]:1"]
    {
        assert!(is_usable_url(good), "{good}");
    }
    for bad in [
        "",
        "https://",
        "https:///x",
        "http://id.example.org",
        "http://localhost.example.org",
        "ftp://localhost",
        "http://localhost:80@example.org",
        "http://127.0.0.1:x@example.org/",
        "https://a b",
        "HTTP://localhost.x",
    ] {
        assert!(!is_usable_url(bad), "{bad}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_text_is_a_token_and_none_makes_the_driver_panic(head in "[A-Za-z0-9_-]{0,40}", text in ".{0,120}", tail in "[A-Za-z0-9_-]{0,40}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let f = fixture().await;
            for token in [format!("eyJ{head}.{text}.{tail}"), format!("eyJ{head}.{tail}.{tail}"), text.clone()] {
                prop_assert!(f.login("oidc", &token).await.is_err());
            }
            Ok(())
        })?;
    }
}
