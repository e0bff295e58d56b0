//! Every caller against every mix of policies, compared with a table that knows nothing of the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::role::RobotGrant;
use super::{AccountView, Action, ActionSet, Authority, Identity, Right, Role, decide};
use crate::model::policy::{AccountSettings, CompiledPolicies, Pattern};

/// The callers: name, who they are, and what their office alone allows, as letters: p for pull, u for push, d for
/// delete.
fn callers() -> Vec<(&'static str, Identity, Authority, &'static str)> {
    let user = |name: &str| Identity::from_username(name).unwrap();
    let with_role = |tenant: &str, role| Authority {
        roles: BTreeMap::from([(tenant.parse().unwrap(), role)]),
        ..Authority::default()
    };
    let robot = |tenant: &str, repository: &str| Authority {
        grants: vec![RobotGrant {
            tenant: tenant.parse().unwrap(),
            account: None,
            repository: Pattern::new(repository).unwrap(),
            actions: [Action::Pull, Action::Push].into_iter().collect(),
        }],
        ..Authority::default()
    };
    vec![
        ("anonymous", Identity::Anonymous, Authority::default(), ""),
        ("stranger", user("named"), Authority::default(), ""),
        ("admin elsewhere", user("named"), with_role("others", Role::Admin), ""),
        ("viewer", user("named"), with_role("acme", Role::Viewer), "p"),
        ("editor", user("named"), with_role("acme", Role::Editor), "pud"),
        ("admin", user("named"), with_role("acme", Role::Admin), "pud"),
        ("operator", user("named"), Authority::operator(), "pud"),
        ("robot", user("acme+named"), robot("acme", "team/.*"), "pu"),
        ("robot of another place", user("acme+named"), robot("acme", "other/.*"), ""),
        ("robot of another tenant", user("acme+named"), robot("others", "team/.*"), ""),
    ]
}

/// The pieces that policies are made of: the permission's name, whether it is forbidden, whom it is for, what letter.
const PIECES: &[(&str, bool, bool, char)] = &[
    ("anonymous_pull", false, true, 'p'),
    ("pull", false, false, 'p'),
    ("push", false, false, 'u'),
    ("delete", false, false, 'd'),
    ("anonymous_pull", true, true, 'a'),
    ("pull", true, false, 'p'),
    ("push", true, false, 'u'),
    ("delete", true, false, 'd'),
];

/// How a policy aims: whether it hits, and the fields that make it so.
const AIMS: &[(bool, &str, &str, &str)] = &[
    (true, "", ".*named", ""),
    (true, "team/.*", "(acme\\+)?named", "192.0.2.0/24"),
    (false, "team", ".*named", ""),
    (false, "", "name", ""),
    (false, "", ".*named", "198.51.100.0/24"),
];

#[test]
fn every_caller_may_do_exactly_what_the_table_says() {
    let repository = "acme-prod/team/web".parse().unwrap();
    let address: IpAddr = "192.0.2.7".parse().unwrap();
    let tenant = "acme".parse().unwrap();
    let callers = callers();
    let mut cases = 0;
    for (hits, match_repository, match_username, match_cidr) in AIMS {
        for mask in 0_u32..1 << PIECES.len() {
            let chosen: Vec<_> = PIECES.iter().enumerate().filter(|(at, _)| mask & (1 << at) != 0).collect();
            let policies: Vec<Value> = chosen
                .iter()
                .map(|(_, (name, forbidden, anonymous, _))| {
                    let list = if *forbidden { "forbidden_permissions" } else { "permissions" };
                    let mut policy =
                        json!({"match_repository": match_repository, "match_cidr": match_cidr, list: [name]});
                    if !anonymous {
                        policy["match_username"] = (*match_username).into();
                    }
                    policy
                })
                .collect();
            let settings = AccountSettings::from_request(json!({ "rbac_policies": policies })).unwrap();
            let policies = CompiledPolicies::compile(&settings).unwrap();
            let view = AccountView { tenant: &tenant, policies: &policies };
            for (who, identity, authority, office) in &callers {
                let named = *identity != Identity::Anonymous;
                // A policy for nobody in particular does not look at names, so the aim at a wrong name hits there.
                let hit = |anonymous: bool| *hits || (anonymous && *match_username == "name");
                let has = |name: &str, forbidden: bool| {
                    chosen
                        .iter()
                        .any(|(_, piece)| piece.0 == name && piece.1 == forbidden && hit(piece.2) && (piece.2 || named))
                };
                let mut expected: BTreeSet<char> = office.chars().collect();
                for (name, letter) in [("pull", 'p'), ("push", 'u'), ("delete", 'd')] {
                    if has(name, false) {
                        expected.insert(letter);
                    }
                }
                if has("anonymous_pull", false) && !has("anonymous_pull", true) {
                    expected.insert('p');
                }
                for (name, letter) in [("pull", 'p'), ("push", 'u'), ("delete", 'd')] {
                    if has(name, true) {
                        expected.remove(&letter);
                    }
                }
                let access = decide(identity, authority, Some(view), &repository, address);
                let actual: BTreeSet<char> = access
                    .actions
                    .iter()
                    .map(|action| match action {
                        Action::Pull => 'p',
                        Action::Push => 'u',
                        Action::Delete => 'd',
                    })
                    .collect();
                assert_eq!(actual, expected, "{who} under {settings:?}");
                let insider = matches!(*who, "viewer" | "editor" | "admin" | "operator");
                assert_eq!(access.see, insider || !expected.is_empty(), "{who} under {settings:?}");
                let absent = decide(identity, authority, None, &repository, address);
                assert_eq!(absent.actions, if *who == "operator" { ActionSet::ALL } else { ActionSet::NONE }, "{who}");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 5 * 256 * 10);
}

#[test]
fn a_first_pull_from_outside_needs_a_name_or_a_policy() {
    let repository = "mirror/web".parse().unwrap();
    let address: IpAddr = "192.0.2.7".parse().unwrap();
    let tenant = "acme".parse().unwrap();
    let first_pull = |identity: &Identity, permissions: &[&str]| {
        let upstream = json!({"url": "registry.example.org"});
        let settings = AccountSettings::from_request(json!({
            "replication": {"strategy": "from_external_on_first_use", "upstream": upstream},
            "rbac_policies": [{"permissions": permissions}],
        }))
        .unwrap();
        let policies = CompiledPolicies::compile(&settings).unwrap();
        let view = AccountView { tenant: &tenant, policies: &policies };
        decide(identity, &Authority::default(), Some(view), &repository, address).first_pull
    };
    let alice = Identity::from_username("alice").unwrap();
    assert!(!first_pull(&Identity::Anonymous, &["anonymous_pull"]));
    assert!(!first_pull(&Identity::Anonymous, &["anonymous_first_pull"]), "it is no pull by itself");
    assert!(first_pull(&Identity::Anonymous, &["anonymous_pull", "anonymous_first_pull"]));
    assert!(first_pull(&alice, &["anonymous_pull"]));
}

#[test]
fn rights_grow_with_roles() {
    let tenant = "acme".parse().unwrap();
    let table = [
        (Right::ViewAccount, [true, true, true]),
        (Right::EditAccount, [false, false, true]),
        (Right::EditRobots, [false, false, true]),
        (Right::ViewQuota, [true, true, true]),
        (Right::EditQuota, [false, false, false]),
        (Right::EditTenant, [false, false, false]),
    ];
    assert_eq!(table.map(|(right, _)| right), Right::ALL);
    for (right, expected) in table {
        for (role, expected) in Role::ALL.into_iter().zip(expected) {
            let authority = |place: &str| Authority {
                roles: BTreeMap::from([(place.parse().unwrap(), role)]),
                ..Authority::default()
            };
            assert_eq!(authority("acme").has(right, &tenant), expected, "{role:?} {right:?}");
            assert!(!authority("others").has(right, &tenant), "{role:?} of others {right:?}");
        }
        assert!(Authority::operator().has(right, &tenant));
        assert!(!Authority::default().has(right, &tenant));
    }
}
