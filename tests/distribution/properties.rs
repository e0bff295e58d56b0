//! Random input over HTTP: whatever is sent, the answer is below 500, errors are documents, and the server lives.
//!
//! Names and digests are checked against the rules of the specification, written down here a second time and independently
//! of the server's own parsers.

use proptest::{
    prelude::{Just, Strategy, any, prop_oneof},
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Answer, Content, Image, Server,
    client::send,
    images::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, random_bytes, sha256},
};

/// Values of a strategy, always the same ones. (Proptest's own loop is synchronous; the requests are not.)
fn samples<S: Strategy>(count: usize, strategy: S) -> Vec<S::Value> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..count).map(|_| strategy.new_tree(&mut runner).expect("the strategy makes values").current()).collect()
}

fn assert_sane(answer: &Answer, input: &dyn std::fmt::Debug) {
    assert!(answer.status < 500, "{input:?} got {}: {}", answer.status, answer.text());
    if answer.status >= 400 && !answer.body.is_empty() {
        answer.codes();
    }
}

fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// The rule of the specification for one path component, by hand.
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators: Vec<&str> = text.split(alphanumeric).filter(|part| !part.is_empty()).collect();
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && separators.iter().all(|part| matches!(*part, "." | "_" | "__") || part.chars().all(|c| c == '-'))
}

#[tokio::test]
async fn random_names_are_taken_exactly_when_they_are_well_formed() {
    let mut server = Server::start();
    let client = server.client();
    let part = prop_oneof![
        "[a-z0-9]{1,4}",
        "[a-z0-9]{1,3}(\\.|_|__|-|--)[a-z0-9]{1,3}",
        "[a-zA-Z0-9._-]{1,6}",
        "(\\.|_|__|-|--|\\.\\.|___|-_)[a-z]",
    ];
    let names = proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/"));
    // URLs know `.` and `..` as steps, which the client takes before it asks.
    let is_step = |name: &String| name.split('/').any(|part| part == "." || part == "..");
    for name in samples(300, names).into_iter().filter(|name| !is_step(name)) {
        // Where the first component is no account, the whole name belongs to the default account.
        let well_formed = name.split('/').all(is_component);
        let answer = client.post(&format!("/v2/{name}/blobs/uploads/")).await;
        assert_sane(&answer, &name);
        assert_eq!(answer.status, if well_formed { 202 } else { 400 }, "{name}: {}", answer.text());
    }
    server.assert_alive();
}

#[tokio::test]
async fn random_text_as_name_reference_or_digest_is_below_500() {
    let mut server = Server::start();
    let client = server.client();
    client.push_image("acme/app", "v1", &Image::small(160)).await;
    let text = prop_oneof!["\\PC{0,40}", "[a-z:@/._%+ -]{0,80}", "sha(256|512):[0-9a-fA-F]{0,140}", any::<String>()];
    for text in samples(200, text) {
        let encoded = encode(&text);
        for path in [
            format!("/v2/{encoded}/manifests/v1"),
            format!("/v2/acme/app/manifests/{encoded}"),
            format!("/v2/acme/app/blobs/{encoded}"),
            format!("/v2/acme/app/blobs/uploads/{encoded}"),
            format!("/v2/acme/app/referrers/{encoded}"),
            format!("/v2/acme/app/referrers/{}?artifactType={encoded}", sha256(b"x")),
            format!("/v2/acme/app/tags/list?n={encoded}"),
            format!("/v2/acme/app/tags/list?n=5&last={encoded}"),
            format!("/v2/_catalog?last={encoded}"),
            format!("/v2/{encoded}"),
            format!("/{encoded}"),
        ] {
            let answer = client.get(&path).await;
            assert!(answer.status < 500, "{path} got {}: {}", answer.status, answer.text());
        }
        for path in [
            format!("/v2/acme/app/blobs/uploads/?digest={encoded}"),
            format!("/v2/acme/app/blobs/uploads/?mount={encoded}&from={encoded}"),
            format!("/v2/acme/app/blobs/uploads/?digest-algorithm={encoded}"),
        ] {
            assert_sane(&client.post(&path).await, &path);
        }
    }
    server.assert_alive();
}

#[tokio::test]
async fn random_ranges_give_the_right_bytes_or_a_refusal() {
    let mut server = Server::start();
    let client = server.client();
    let bytes = random_bytes(161, 5000);
    let digest = client.push_blob("acme/app", &bytes).await;
    let path = format!("/v2/acme/app/blobs/{digest}");
    let number = prop_oneof![(0u64..6000).boxed(), any::<u64>().boxed()];
    let range = (proptest::option::of(number.clone()), proptest::option::of(number));
    for (from, to) in samples(400, range) {
        let show = |bound: Option<u64>| bound.map_or(String::new(), |bound| bound.to_string());
        let header = format!("bytes={}-{}", show(from), show(to));
        let size = bytes.len() as u64;
        let expected = match (from, to) {
            (Some(from), Some(to)) if from <= to && from < size => Some((from, to.min(size - 1))),
            (Some(from), None) if from < size => Some((from, size - 1)),
            (None, Some(last)) if last > 0 => Some((size.saturating_sub(last), size - 1)),
            _ => None,
        };
        let answer = client.get_with(&path, "Range", &header).await;
        match (answer.status, expected) {
            (206, Some((from, to))) => {
                let slice = usize::try_from(from).expect("in memory")..=usize::try_from(to).expect("in memory");
                assert!(answer.body == bytes[slice], "{header}");
                assert_eq!(answer.header("content-range"), format!("bytes {from}-{to}/{size}"), "{header}");
            }
            (200, None) => assert!(answer.body == bytes, "{header}"),
            (status, None) => assert!(matches!(status, 400 | 416), "{header}: {status}"),
            (status, Some(_)) => panic!("{header}: {status}"),
        }
    }
    for header in samples(200, "[a-z]{0,6}[=:]?[0-9a-z,=+ -]{0,30}") {
        assert_sane(&client.get_with(&path, "Range", header.trim()).await, &header);
    }
    server.assert_alive();
}

#[tokio::test]
async fn random_content_ranges_never_break_a_session() {
    let mut server = Server::start();
    let client = server.client();
    for (header, bytes) in samples(200, ("[0-9]{0,21}-?[0-9]{0,21}", proptest::collection::vec(any::<u8>(), 0..64))) {
        let location = client.open_upload("acme/app").await;
        let patch = client.request(Method::PATCH, &location).header("Content-Range", &header).body(bytes.clone());
        let answer = send(patch).await;
        assert_sane(&answer, &header);
        let held = if answer.status == 202 { bytes } else { Vec::new() };
        client.close_upload(&location, &sha256(&held), b"").await.expect(201);
    }
    server.assert_alive();
}

/// Any JSON, with the words of manifests among its keys and values.
fn any_json() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("schemaVersion".to_owned()),
        Just("mediaType".to_owned()),
        Just("config".to_owned()),
        Just("layers".to_owned()),
        Just("manifests".to_owned()),
        Just("digest".to_owned()),
        Just("size".to_owned()),
        Just("subject".to_owned()),
        Just("annotations".to_owned()),
        Just("artifactType".to_owned()),
        "\\PC{0,8}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        "sha256:[0-9a-f]{64}".prop_map(Value::from),
        Just(json!(2)),
        Just(json!(OCI_MANIFEST)),
        Just(json!(OCI_INDEX)),
    ];
    leaf.prop_recursive(4, 48, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((key.clone(), inner), 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

#[tokio::test]
async fn random_manifests_are_below_500() {
    let mut server = Server::start();
    let client = server.client();
    let image = Image::small(162);
    client.push_image("acme/app", "v1", &image).await;
    let valid = image.manifest.value();
    let media_types = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
    for (index, (value, field)) in
        samples(300, (any_json(), "(schemaVersion|mediaType|config|layers|subject|x)")).into_iter().enumerate()
    {
        let mut changed = valid.clone();
        changed[&field] = value.clone();
        for document in [value, changed] {
            let manifest = Content::json(media_types[index % 4], &document);
            let answer = client.put_manifest("acme/app", "random", &manifest).await;
            assert_sane(&answer, &document);
            if answer.status == 201 {
                client.assert_manifest("acme/app", "random", &manifest).await;
            }
        }
    }
    server.assert_alive();
}

#[tokio::test]
async fn flipped_and_cut_manifests_are_below_500() {
    let mut server = Server::start();
    let client = server.client();
    let image = Image::small(163);
    client.push_image("acme/app", "v1", &image).await;
    let bytes = &image.manifest.bytes;
    for (at, with, cut) in samples(300, (0..bytes.len(), any::<u8>(), any::<bool>())) {
        let mut changed = bytes.clone();
        changed[at] = with;
        if cut {
            changed.truncate(at);
        }
        let answer = client.put_manifest("acme/app", "v2", &Content::new(OCI_MANIFEST, changed)).await;
        assert_sane(&answer, &(at, with, cut));
    }
    client.assert_image("acme/app", "v1", &image).await;
    server.assert_alive();
}
