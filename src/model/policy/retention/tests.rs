//! Every field and every status, and ten repositories whose fate was worked out by hand.

use serde_json::{Value, json};

use super::super::AccountSettings;
use super::*;

const NOW: i64 = 1_000_000_000;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn digest(byte: u8) -> Digest {
    Digest::from_sha256([byte; 32])
}

/// An image pushed so many seconds ago, never pulled.
fn image(byte: u8, age: i64, tags: &[&str]) -> ImageFacts {
    ImageFacts {
        digest: digest(byte),
        pushed_at: NOW - age,
        last_pulled_at: None,
        tags: tags.iter().map(ToString::to_string).collect(),
        parent: None,
        subject: None,
        subject_gone: false,
    }
}

fn pulled(image: ImageFacts, ago: i64) -> ImageFacts {
    ImageFacts { last_pulled_at: Some(NOW - ago), ..image }
}

fn compile(fields: Value) -> CompiledPolicies {
    CompiledPolicies::compile(&AccountSettings::from_request(fields).unwrap()).unwrap()
}

fn verdicts(policies: &CompiledPolicies, repository: &str, images: &[ImageFacts]) -> Vec<Verdict> {
    let mut retention = Retention::new(policies, repository, NOW);
    while retention.wants_to_see_all() {
        images.iter().for_each(|image| retention.show(image));
        retention.close();
    }
    images.iter().map(|image| retention.decide(image)).collect()
}

/// The numbers of the images that are deleted.
fn deleted(gc_policies: Value, images: &[ImageFacts]) -> Vec<u8> {
    let policies = compile(json!({ "gc_policies": gc_policies }));
    let verdicts = verdicts(&policies, "app", images);
    let gone = images.iter().zip(verdicts).filter(|(_, verdict)| verdict.delete);
    gone.map(|(image, _)| image.digest.to_compact()[1]).collect()
}

fn days(value: u64) -> Value {
    json!({"value": value, "unit": "d"})
}

#[test]
fn nothing_is_deleted_without_a_policy() {
    assert_eq!(deleted(json!([]), &[image(1, 900 * DAY, &[]), image(2, 900 * DAY, &["v1"])]), [0_u8; 0]);
}

// 1: untagged images older than a week go.
#[test]
fn scenario_of_old_untagged_images() {
    let policy = json!([{"match_repository": ".*", "only_untagged": true, "action": "delete",
        "time_constraint": {"on": "pushed_at", "older_than": days(7)}}]);
    let images = [image(1, 8 * DAY, &[]), image(2, 6 * DAY, &[]), image(3, 30 * DAY, &["v1"]), image(4, 7 * DAY, &[])];
    // The fourth is exactly a week old, which is not older than a week.
    assert_eq!(deleted(policy, &images), [1]);
}

// 2: what nobody pulled for a month goes; what was never pulled counts as 1970.
#[test]
fn scenario_of_images_that_nobody_pulls() {
    let policy = json!([{"match_repository": "app", "action": "delete",
        "time_constraint": {"on": "last_pulled_at", "older_than": days(30)}}]);
    let images = [
        pulled(image(1, 90 * DAY, &["a"]), 31 * DAY),
        pulled(image(2, 90 * DAY, &["b"]), 29 * DAY),
        image(3, HOUR, &["c"]),
        image(4, 300, &["d"]),
    ];
    // The third was never pulled; the fourth neither, but was pushed five minutes ago.
    assert_eq!(deleted(policy, &images), [1, 3]);
}

// 3: the two newest releases are kept, other images do not take their places, and the rest goes.
#[test]
fn scenario_of_the_newest_releases() {
    let policy = json!([
        {"match_repository": ".*", "match_tag": "v[0-9.]+", "action": "protect",
            "time_constraint": {"on": "pushed_at", "newest": 2}},
        {"match_repository": ".*", "action": "delete", "time_constraint": {"on": "pushed_at", "older_than": days(1)}},
    ]);
    let images = [
        image(1, 5 * DAY, &["v1"]),
        image(2, 4 * DAY, &["v2"]),
        image(3, 3 * DAY, &["v3", "latest"]),
        image(4, 2 * DAY, &["nightly"]),
        image(5, HOUR, &[]),
    ];
    assert_eq!(deleted(policy, &images), [1, 4]);
}

// 4: the policies of another repository say nothing, nor those from which this one is excepted.
#[test]
fn scenario_of_other_repositories() {
    let policies = compile(json!({"gc_policies": [
        {"match_repository": "tools/.*", "action": "delete"},
        {"match_repository": ".*", "except_repository": "app|lib", "action": "delete"},
    ]}));
    let images = [image(1, DAY, &[])];
    let gone = |repository| verdicts(&policies, repository, &images)[0].delete;
    assert_eq!(
        (gone("app"), gone("lib"), gone("tools/x"), gone("web"), gone("app/x")),
        (false, false, true, true, true)
    );
}

// 5: an image goes by any of its tags, unless one of them is excepted.
#[test]
fn scenario_of_tags_that_are_excepted() {
    let policy =
        json!([{"match_repository": ".*", "match_tag": "pr-.*", "except_tag": "pr-.*-keep", "action": "delete"}]);
    let images = [
        image(1, DAY, &["pr-1"]),
        image(2, DAY, &["pr-2", "pr-2-keep"]),
        image(3, DAY, &["main"]),
        image(4, DAY, &["main", "pr-4"]),
        image(5, DAY, &[]),
    ];
    assert_eq!(deleted(policy, &images), [1, 4]);
}

// 6: earlier policies win, whichever they are.
#[test]
fn scenario_of_policies_in_another_order() {
    let protect = json!({"match_repository": ".*", "match_tag": "v1", "action": "protect"});
    let delete = json!({"match_repository": ".*", "action": "delete"});
    let images = [image(1, DAY, &["v1"]), image(2, DAY, &["v2"])];
    assert_eq!(deleted(json!([protect, delete]), &images), [2]);
    assert_eq!(deleted(json!([delete, protect]), &images), [1, 2]);
}

// 7: the oldest one is kept as well as young ones; a policy with both limits is about what lies between.
#[test]
fn scenario_of_the_oldest_and_of_an_age_between() {
    let policy = json!([
        {"match_repository": ".*", "action": "protect", "time_constraint": {"on": "pushed_at", "oldest": 1}},
        {"match_repository": ".*", "action": "delete",
            "time_constraint": {"on": "pushed_at", "older_than": days(2), "newer_than": days(10)}},
    ]);
    let images = [
        image(1, 9 * DAY, &[]),
        image(2, 8 * DAY, &[]),
        image(3, 3 * DAY, &[]),
        image(4, DAY, &[]),
        image(5, 8 * DAY, &[]),
    ];
    assert_eq!(deleted(policy.clone(), &images), [2, 3, 5]);
    let older = [image(6, 20 * DAY, &[]), image(7, 19 * DAY, &[]), image(1, 9 * DAY, &[])];
    assert_eq!(deleted(policy, &older), [1]);
}

// 8: what an earlier policy deletes takes no place among the newest.
#[test]
fn scenario_of_places_among_those_that_stay() {
    let policy = json!([
        {"match_repository": ".*", "match_tag": "bad-.*", "action": "delete"},
        {"match_repository": ".*", "action": "protect", "time_constraint": {"on": "pushed_at", "newest": 2}},
        {"match_repository": ".*", "action": "delete"},
    ]);
    let images = [
        image(1, 4 * DAY, &["a"]),
        image(2, 3 * DAY, &["b"]),
        image(3, 2 * DAY, &["c"]),
        image(4, DAY, &["bad-d"]),
        image(5, 4 * DAY, &["e"]),
    ];
    assert_eq!(deleted(policy, &images), [1, 4, 5]);
}

// 9: a multi-platform image with a signature: its parts live as long as it does.
#[test]
fn scenario_of_an_index_its_children_and_a_signature() {
    let delete = json!([{"match_repository": ".*", "action": "delete",
        "time_constraint": {"on": "pushed_at", "older_than": days(7)}}]);
    let child = |byte| ImageFacts { parent: Some(digest(1)), ..image(byte, 30 * DAY, &[]) };
    let signature = ImageFacts { subject: Some(digest(1)), ..image(4, 30 * DAY, &[]) };
    let family = [image(1, 30 * DAY, &["v1"]), child(2), child(3), signature];
    assert_eq!(deleted(delete.clone(), &family), [1]);
    // Once the index is gone, its children are images like others, and the signature goes in any case.
    let orphans = [
        image(2, 30 * DAY, &[]),
        image(3, 3 * DAY, &[]),
        ImageFacts { subject_gone: true, ..image(4, 3 * DAY, &[]) },
        ImageFacts { subject_gone: true, ..image(5, 3 * DAY, &["cosign"]) },
        ImageFacts { subject_gone: true, ..image(6, 60, &[]) },
    ];
    assert_eq!(deleted(delete, &orphans), [2, 4]);
    assert_eq!(deleted(json!([]), &orphans), [4]);
}

// 10: recently pulled images are kept by one policy, the newest pulled by another, and equal times by digest.
#[test]
fn scenario_of_the_last_pulls() {
    let policy = json!([
        {"match_repository": ".*", "action": "protect",
            "time_constraint": {"on": "last_pulled_at", "newer_than": {"value": 2, "unit": "h"}}},
        {"match_repository": ".*", "action": "protect", "time_constraint": {"on": "last_pulled_at", "newest": 2}},
        {"match_repository": ".*", "action": "delete"},
    ]);
    let images = [
        pulled(image(1, DAY, &[]), HOUR),
        pulled(image(2, DAY, &[]), 5 * HOUR),
        pulled(image(3, DAY, &[]), 5 * HOUR),
        pulled(image(4, DAY, &[]), 6 * HOUR),
        image(5, DAY, &[]),
        pulled(image(6, DAY, &[]), 2 * HOUR),
    ];
    // The two newest pulls are those of 1 and 6; 1 is kept by the first policy as well.
    assert_eq!(deleted(policy.clone(), &images), [2, 3, 4, 5]);
    assert_eq!(deleted(policy, &images[1..5]), [4, 5]);
}

#[test]
fn every_status_says_why() {
    let tag_policy = json!({"match_repository": "app", "match_tag": "v.*", "block_delete": true});
    let protect = json!({"match_repository": "app", "match_tag": "keep", "action": "protect"});
    let delete = json!({"match_repository": ".*", "action": "delete",
        "time_constraint": {"on": "pushed_at", "older_than": days(7)}});
    let policies = compile(json!({"tag_policies": [tag_policy], "gc_policies": [protect, delete]}));
    let status = |image: ImageFacts| {
        let verdict = verdicts(&policies, "app", std::slice::from_ref(&image)).remove(0);
        (serde_json::to_value(verdict.status).unwrap(), verdict.reason, verdict.delete)
    };
    let old = 30 * DAY;
    let recent = json!({"protected_by_recent_upload": true});
    assert_eq!(status(image(1, 599, &["v1"])), (recent, Reason::RecentUpload, false));
    assert_ne!(status(image(1, 600, &["v1"])).1, Reason::RecentUpload);
    let child = ImageFacts { parent: Some(digest(9)), subject: Some(digest(8)), ..image(1, old, &["v1"]) };
    let by_parent = json!({"protected_by_parent": digest(9).to_string()});
    assert_eq!(status(child.clone()), (by_parent, Reason::Parent(digest(9)), false));
    let by_subject = json!({"protected_by_subject": digest(8).to_string()});
    assert_eq!(status(ImageFacts { parent: None, ..child }), (by_subject, Reason::Subject(digest(8)), false));
    let by_tag = json!({ "protected_by_tag_policy": tag_policy });
    assert_eq!(status(image(1, old, &["x", "v1"])), (by_tag, Reason::TagPolicy(0), false));
    let by_policy = json!({ "protected_by_policy": protect });
    assert_eq!(status(image(1, old, &["keep"])), (by_policy, Reason::Policy(0), false));
    let relevant = json!({ "relevant_policies": [delete] });
    assert_eq!(status(image(1, DAY, &["other"])), (relevant.clone(), Reason::NoPolicy, false));
    assert_eq!(status(image(1, old, &["other"])), (relevant, Reason::Policy(1), true));
}

proptest::proptest! {
    /// The few that are chosen are those that sorting everything would choose.
    #[test]
    fn ranks_are_those_of_a_sorted_list(times in proptest::collection::vec(0_i64..20, 1..30), count in 1_usize..8) {
        let images: Vec<_> = (0..).zip(&times).map(|(byte, time)| image(byte, DAY + time, &[])).collect();
        let policy = json!([
            {"match_repository": ".*", "action": "protect", "time_constraint": {"on": "pushed_at", "newest": count}},
            {"match_repository": ".*", "action": "delete"},
        ]);
        let mut sorted: Vec<u8> = (0..times.len() as u8).collect();
        sorted.sort_by_key(|byte| (times[*byte as usize], *byte));
        let mut expected: Vec<u8> = sorted.into_iter().skip(count).collect();
        expected.sort_unstable();
        proptest::prop_assert_eq!(deleted(policy, &images), expected);
    }
}
