use super::super::{KeyOptions, MemoryRecords};
use super::*;
use crate::model::ManualClock;
use proptest::prelude::*;
use serde_json::json;

struct Fixture {
    tokens: Tokens,
    records: Arc<MemoryRecords>,
    clock: Arc<ManualClock>,
}

fn publish(records: &MemoryRecords, tokens: &Tokens) {
    for (id, document) in tokens.keys().documents() {
        records.put(RecordKind::IssuerKey, &id, document.to_bytes());
    }
}

fn fixture() -> Fixture {
    let (records, clock) = (Arc::new(MemoryRecords::default()), Arc::new(ManualClock::new(1_000_000)));
    let keys = KeyRing::in_memory(node(1), KeyOptions::default(), 1_000_000).unwrap();
    let tokens = Tokens::new(TokenOptions::default(), keys, records.clone(), clock.clone());
    publish(&records, &tokens);
    Fixture { tokens, records, clock }
}

fn node(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

fn claims(kind: TokenKind) -> Claims {
    Claims {
        iss: String::new(),
        sub: "user:alice".into(),
        aud: String::new(),
        exp: i64::MAX,
        nbf: 0,
        iat: 0,
        jti: String::new(),
        access: vec![ScopeClaim { kind: "repository".into(), name: "a/b".into(), actions: vec![Action::Pull] }],
        kind,
        epoch: 3,
        credential: None,
        limit: Action::ALL.to_vec(),
    }
}

/// A token with any header and payload, signed by `sign`.
fn forge(header: &serde_json::Value, payload: &serde_json::Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &serde_json::Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let message = format!("{}.{}", part(header), part(payload));
    let signature = BASE64URL_NOPAD.encode(&sign(message.as_bytes()));
    format!("{message}.{signature}")
}

#[test]
fn a_token_is_good_for_its_use_until_its_end() {
    let Fixture { tokens, clock, .. } = fixture();
    let (access, issued) = tokens.issue(claims(TokenKind::Access)).unwrap();
    let (refresh, _) = tokens.issue(claims(TokenKind::Refresh)).unwrap();
    for _ in 0..2 {
        assert_eq!(tokens.verify(&access, TokenKind::Access).unwrap().claims, issued);
    }
    assert_eq!(tokens.verify(&refresh, TokenKind::Access), Err(TokenError::WrongAudience));
    assert_eq!(tokens.verify(&access, TokenKind::Refresh), Err(TokenError::WrongAudience));
    clock.advance(599);
    assert!(tokens.verify(&access, TokenKind::Access).is_ok());
    clock.advance(1);
    assert_eq!(tokens.verify(&access, TokenKind::Access), Err(TokenError::Expired));
    assert!(tokens.verify(&refresh, TokenKind::Refresh).is_ok());
    clock.advance(-1000);
    assert_eq!(tokens.verify(&refresh, TokenKind::Refresh), Err(TokenError::TooEarly));
}

#[test]
fn a_revoked_or_removed_key_ends_its_tokens_even_remembered_ones() {
    let Fixture { tokens, records, .. } = fixture();
    let (token, _) = tokens.issue(claims(TokenKind::Access)).unwrap();
    assert!(tokens.verify(&token, TokenKind::Access).is_ok());
    let (id, mut document) = tokens.keys().documents().remove(0);
    document.revoked = true;
    records.put(RecordKind::IssuerKey, &id, document.to_bytes());
    assert_eq!(tokens.verify(&token, TokenKind::Access), Err(TokenError::UnknownKey));
    publish(&records, &tokens);
    assert!(tokens.verify(&token, TokenKind::Access).is_ok());
    records.remove(RecordKind::IssuerKey, &id);
    assert_eq!(tokens.verify(&token, TokenKind::Access), Err(TokenError::UnknownKey));
}

#[test]
fn a_removed_node_signs_for_nobody_even_what_is_remembered() {
    let Fixture { tokens, records, .. } = fixture();
    let (token, _) = tokens.issue(claims(TokenKind::Access)).unwrap();
    assert!(tokens.verify(&token, TokenKind::Access).is_ok());
    records.remove_member(node(1));
    assert_eq!(tokens.verify(&token, TokenKind::Access), Err(TokenError::UnknownKey), "it is remembered");
    let (token, _) = tokens.issue(claims(TokenKind::Access)).unwrap();
    assert_eq!(tokens.verify(&token, TokenKind::Access), Err(TokenError::UnknownKey), "it is new");
}

#[test]
fn a_key_counts_only_as_its_nodes_own_and_under_its_own_name() {
    let Fixture { tokens, records, .. } = fixture();
    let (token, issued) = tokens.issue(claims(TokenKind::Access)).unwrap();
    let (id, document) = tokens.keys().documents().remove(0);
    let (_, name) = id.split_once('/').unwrap();
    // As an older version published it: nobody knows whose it is.
    records.put(RecordKind::IssuerKey, name, document.to_bytes());
    let thief = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
    let public = BASE64URL_NOPAD.encode(aws_lc_rs::signature::KeyPair::public_key(&thief).as_ref());
    let swapped = IssuerKeyDocument { public, ..document.clone() };
    let payload = serde_json::to_value(&issued).unwrap();
    for kid in [name.to_owned(), format!("{}/{name}", node(2)), id.clone()] {
        let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": kid});
        let forged = forge(&header, &payload, |message| thief.sign(message).as_ref().to_vec());
        if kid != name {
            records.put(RecordKind::IssuerKey, &kid, swapped.to_bytes());
        }
        assert_eq!(tokens.verify(&forged, TokenKind::Access), Err(TokenError::UnknownKey), "{kid}");
    }
    assert_eq!(tokens.verify(&token, TokenKind::Access), Err(TokenError::UnknownKey), "its own was swapped");
    records.put(RecordKind::IssuerKey, &id, document.to_bytes());
    assert!(tokens.verify(&token, TokenKind::Access).is_ok());
}

#[test]
fn a_token_that_lasts_longer_than_any_is_refused() {
    let Fixture { tokens, records, clock } = fixture();
    let options = TokenOptions { access_seconds: 1200, refresh_seconds: 46 * 86_400, ..TokenOptions::default() };
    let keys = KeyRing::in_memory(node(2), KeyOptions::default(), 1_000_000).unwrap();
    let generous = Tokens::new(options, keys, records.clone(), clock.clone());
    publish(&records, &generous);
    for kind in [TokenKind::Access, TokenKind::Refresh] {
        let (token, _) = generous.issue(claims(kind)).unwrap();
        assert!(generous.verify(&token, kind).is_ok());
        assert_eq!(tokens.verify(&token, kind), Err(TokenError::TooLasting));
        let mut brief = claims(kind);
        brief.exp = 1_000_600;
        assert!(tokens.verify(&generous.issue(brief).unwrap().0, kind).is_ok());
    }
}

#[test]
fn tokens_are_good_in_other_regions_and_through_a_rotation_of_keys() {
    let Fixture { tokens, records, clock } = fixture();
    let elsewhere_keys = KeyRing::in_memory(node(2), KeyOptions::default(), 1_000_000).unwrap();
    let elsewhere = Tokens::new(TokenOptions::default(), elsewhere_keys, records.clone(), clock.clone());
    let (refresh, _) = tokens.issue(claims(TokenKind::Refresh)).unwrap();
    assert!(elsewhere.verify(&refresh, TokenKind::Refresh).is_ok());
    let rotation = KeyOptions::default().rotation_seconds;
    clock.advance(rotation - 1000);
    let (late, _) = tokens.issue(claims(TokenKind::Refresh)).unwrap();
    assert!(tokens.keys().maintain(1_000_000 + rotation - 1000).unwrap());
    publish(&records, &tokens);
    clock.advance(KeyOptions::default().lead_seconds + 1000);
    let (next, _) = tokens.issue(claims(TokenKind::Refresh)).unwrap();
    for token in [&late, &next] {
        assert!(elsewhere.verify(token, TokenKind::Refresh).is_ok());
    }
    let kid = |token: &str| jsonwebtoken::decode_header(token).unwrap().kid;
    assert_ne!(kid(&late), kid(&next));
}

#[test]
fn confused_algorithms_and_foreign_keys_open_nothing() {
    let Fixture { tokens, clock, records } = fixture();
    let (token, issued) = tokens.issue(claims(TokenKind::Access)).unwrap();
    let (kid, document) = tokens.keys().documents().remove(0);
    let payload = serde_json::to_value(&issued).unwrap();
    let public = document.public_key(&kid.parse().unwrap()).unwrap();
    let hmac = |message: &[u8]| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &public);
        aws_lc_rs::hmac::sign(&key, message).as_ref().to_vec()
    };
    for header in [
        json!({"alg": "HS256", "typ": "JWT", "kid": kid}),
        json!({"alg": "none", "typ": "JWT", "kid": kid}),
        json!({"alg": "RS256", "typ": "JWT", "kid": kid}),
        json!({"alg": "ES256", "typ": "JWT", "kid": kid}),
        json!({"alg": "EdDSA", "typ": "JWT", "kid": kid}),
        json!({"alg": "EdDSA", "typ": "JWT"}),
        json!({"alg": "EdDSA", "typ": "JWT", "kid": "../other"}),
        json!({"typ": "JWT", "kid": kid}),
    ] {
        for forged in [forge(&header, &payload, hmac), forge(&header, &payload, |_| Vec::new())] {
            assert!(tokens.verify(&forged, TokenKind::Access).is_err(), "{header}");
        }
    }
    // A key that brings itself along, and one that nobody published.
    let stranger = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
    let x = BASE64URL_NOPAD.encode(aws_lc_rs::signature::KeyPair::public_key(&stranger).as_ref());
    let header = json!({"alg": "EdDSA", "kid": kid, "jwk": {"kty": "OKP", "crv": "Ed25519", "x": x}});
    let forged = forge(&header, &payload, |message| stranger.sign(message).as_ref().to_vec());
    assert_eq!(tokens.verify(&forged, TokenKind::Access), Err(TokenError::BadSignature));
    let unpublished = KeyRing::in_memory(node(1), KeyOptions::default(), 1_000_000).unwrap();
    let other = Tokens::new(TokenOptions::default(), unpublished, records.clone(), clock.clone());
    let (foreign, _) = other.issue(claims(TokenKind::Access)).unwrap();
    assert_eq!(tokens.verify(&foreign, TokenKind::Access), Err(TokenError::UnknownKey));
    // Another service of the same federation.
    let options = TokenOptions { service: "other".into(), ..TokenOptions::default() };
    let keys = KeyRing::in_memory(node(1), KeyOptions::default(), 1_000_000).unwrap();
    let neighbour = Tokens::new(options, keys, records.clone(), clock);
    publish(&records, &neighbour);
    let (foreign, _) = neighbour.issue(claims(TokenKind::Access)).unwrap();
    assert_eq!(tokens.verify(&foreign, TokenKind::Access), Err(TokenError::WrongAudience));
    assert_eq!(tokens.verify(&format!("{token}{}", "A".repeat(20_000)), TokenKind::Access), Err(TokenError::TooLong));
}

proptest! {
    #[test]
    fn a_token_that_was_changed_anywhere_is_refused(at in any::<prop::sample::Index>(), with in "[A-Za-z0-9._-]") {
        let Fixture { tokens, .. } = fixture();
        let (token, issued) = tokens.issue(claims(TokenKind::Access)).unwrap();
        let at = at.index(token.len());
        let mut changed = token.clone();
        changed.replace_range(at..=at, &with);
        match tokens.verify(&changed, TokenKind::Access) {
            Ok(read) => prop_assert!(changed == token && read.claims == issued),
            Err(_) => prop_assert!(changed != token),
        }
    }

    #[test]
    fn no_text_makes_verifying_panic(text in ".{0,200}", parts in "[A-Za-z0-9_.-]{0,200}") {
        let Fixture { tokens, .. } = fixture();
        prop_assert!(tokens.verify(&text, TokenKind::Access).is_err());
        prop_assert!(tokens.verify(&parts, TokenKind::Access).is_err());
    }
}
