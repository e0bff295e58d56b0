//! The rules, one by one.

use proptest::prelude::*;

use super::super::command::{Batch, Command, Request};
use super::super::model::{AccountState, NewMember, Opaque, Role};
use super::super::outcome::{Outcome, Refusal};
use super::dedup::ANSWERS_MAX;
use super::*;
use crate::vocabulary::{IssuerKeyId, Region, RequestId};

/// A state that is asked one thing at a time.
#[derive(Default)]
struct Asked {
    state: State,
    index: u64,
    time_ms: u64,
    rows: BTreeMap<(RowKind, String), Vec<u8>>,
}

impl Asked {
    fn ask(&mut self, command: Command) -> Outcome {
        self.ask_as(RequestId::random(), command)
    }

    fn ask_as(&mut self, id: RequestId, command: Command) -> Outcome {
        self.index += 1;
        let mut effects = Effects::default();
        let batch = Batch { time_ms: self.time_ms, requests: vec![Request { id, command }] };
        let decisions = self.state.apply(self.index, batch, &mut effects);
        for row in effects.rows {
            match row.body {
                Some(body) => drop(self.rows.insert((row.kind, row.key), body)),
                None => drop(self.rows.remove(&(row.kind, row.key))),
            }
        }
        decisions[0].outcome.clone()
    }

    /// The state that the rows written so far give.
    fn read_back(&self) -> State {
        let mut state = State::default();
        for ((kind, key), body) in &self.rows {
            state.load(&Row { kind: *kind, key: key.clone(), body: Some(body.clone()) }).unwrap();
        }
        state
    }
}

fn node(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

fn name(text: &str) -> AccountName {
    AccountName::parse(text).unwrap()
}

fn tenant(text: &str) -> TenantId {
    TenantId::parse(text).unwrap()
}

fn admit(number: u8, role: Role) -> Command {
    let region = Region::parse(&format!("region{number}")).unwrap();
    Command::Admit(NewMember { node: node(number), region, role, addresses: vec![], api_url: String::new() })
}

fn claim(text: &str, owner: u8) -> Command {
    Command::Claim { name: name(text), tenant: tenant("t"), settings: Opaque::default(), owner: node(owner) }
}

fn invite(secret: SecretHash, issuer: u8) -> Command {
    let (region, role) = (Region::parse("region4").unwrap(), Role::Full);
    Command::IssueInvitation { secret, region, role, lifetime_ms: 500, issuer: node(issuer) }
}

fn publish(number: u8) -> Command {
    let id = IssuerKeyId::new(node(number), "key").unwrap().to_string();
    let (kind, body) = (DocumentKind::IssuerKey, Opaque::default());
    Command::PutDocument { kind, id, body, expected_revision: None }
}

/// Two members with storage and a witness.
fn federation() -> Asked {
    let mut asked = Asked { time_ms: 1000, ..Asked::default() };
    for (number, role) in [(1, Role::Full), (2, Role::Full), (3, Role::Witness)] {
        assert!(matches!(asked.ask(admit(number, role)), Outcome::Admitted(_)));
    }
    asked
}

fn epoch_of(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Won { epoch, created: true, .. } | Outcome::Moved { epoch } => *epoch,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_name_has_one_owner_and_epochs_only_grow() {
    let mut asked = federation();
    let first = epoch_of(&asked.ask(claim("acme", 1)));
    let region = Region::parse("region1").unwrap();
    assert_eq!(asked.ask(claim("acme", 2)), Outcome::Taken { region, node: node(1), epoch: first });
    let to = |node, expected_epoch| Command::MovePrimary { name: name("acme"), to: node, expected_epoch };
    let second = epoch_of(&asked.ask(to(node(2), first)));
    assert_eq!(second, first + 1);
    assert_eq!(asked.ask(to(node(1), first)), Outcome::StaleEpoch { epoch: second, owner: node(2) });
    let account = asked.state.account(&name("acme")).unwrap().clone();
    assert_eq!((account.owner, account.replicas.keys().copied().collect::<Vec<_>>()), (node(2), vec![node(1)]));

    let forfeit = |epoch| Command::Forfeit { name: name("acme"), epoch };
    assert!(matches!(asked.ask(forfeit(first)), Outcome::StaleEpoch { .. }));
    assert_eq!(asked.ask(forfeit(second)), Outcome::Done);
    assert_eq!(asked.ask(forfeit(second)), Outcome::NotFound);
    assert!(epoch_of(&asked.ask(claim("acme", 1))) > second);
}

#[test]
fn only_full_members_own_accounts() {
    let mut asked = federation();
    assert_eq!(asked.ask(claim("acme", 3)), Outcome::Refused(Refusal::Witness));
    assert_eq!(asked.ask(claim("acme", 9)), Outcome::NotMember { node: node(9) });
    let epoch = epoch_of(&asked.ask(claim("acme", 1)));
    let to = |to| Command::MovePrimary { name: name("acme"), to, expected_epoch: epoch };
    assert_eq!(asked.ask(to(node(3))), Outcome::Refused(Refusal::Witness));
    assert_eq!(asked.ask(to(node(9))), Outcome::NotMember { node: node(9) });
}

#[test]
fn settings_change_only_from_the_revision_that_was_seen() {
    let mut asked = federation();
    let Outcome::Won { settings_revision: first, .. } = asked.ask(claim("acme", 1)) else { panic!() };
    let put = |expected_revision| Command::PutSettings {
        name: name("acme"),
        settings: Opaque::from(&b"new"[..]),
        expected_revision,
    };
    let Outcome::Stored { revision: second } = asked.ask(put(Some(first))) else { panic!() };
    assert!(second > first);
    assert_eq!(asked.ask(put(Some(first))), Outcome::Conflict { revision: second });
    assert!(matches!(asked.ask(put(None)), Outcome::Stored { .. }));
    assert_eq!(asked.ask(Command::SetDeleting { name: name("acme"), deleting: true }), Outcome::Done);
    assert_eq!(asked.state.account(&name("acme")).unwrap().state, AccountState::Deleting);
    let large = Command::PutSettings {
        name: name("acme"),
        settings: Opaque::from(vec![0; 256 * 1024 + 1]),
        expected_revision: None,
    };
    assert!(matches!(asked.ask(large), Outcome::Refused(Refusal::OverLimit { .. })));
}

#[test]
fn a_sublease_token_is_good_once_and_for_its_time() {
    let mut asked = federation();
    asked.ask(claim("acme", 1));
    let (token, late) = (SecretHash::of(b"token"), SecretHash::of(b"late"));
    let redeem = |token| Command::RedeemSublease { name: name("acme"), token, node: node(2) };
    for token in [token, late] {
        let issue = Command::IssueSublease { name: name("acme"), token, lifetime_ms: 500 };
        assert_eq!(asked.ask(issue), Outcome::Done);
    }
    assert_eq!(asked.ask(redeem(SecretHash::of(b"guess"))), Outcome::NotFound);
    assert_eq!(asked.ask(redeem(token)), Outcome::Done);
    assert!(asked.state.account(&name("acme")).unwrap().replicas.contains_key(&node(2)));
    assert_eq!(asked.ask(redeem(token)), Outcome::NotFound);
    asked.time_ms += 500;
    assert_eq!(asked.ask(redeem(late)), Outcome::Expired);
    let detach = || Command::DetachReplica { name: name("acme"), node: node(2) };
    assert_eq!(asked.ask(detach()), Outcome::Done);
    assert_eq!(asked.ask(detach()), Outcome::NotFound);
}

#[test]
fn an_invitation_admits_one_node_and_says_why_it_does_not_admit_another() {
    let mut asked = federation();
    let (secret, late) = (SecretHash::of(b"secret"), SecretHash::of(b"late"));
    let region = Region::parse("region4").unwrap();
    for secret in [secret, late] {
        assert_eq!(asked.ask(invite(secret, 1)), Outcome::Done);
    }
    let redeem = |secret, number| Command::RedeemInvitation {
        secret,
        node: node(number),
        addresses: vec![],
        api_url: String::new(),
    };
    assert_eq!(asked.ask(redeem(SecretHash::of(b"altered"), 4)), Outcome::NotFound);
    let admitted = asked.ask(redeem(secret, 4));
    assert!(matches!(&admitted, Outcome::Admitted(member) if member.region == region), "{admitted:?}");
    assert_eq!(asked.ask(redeem(secret, 4)), admitted);
    assert_eq!(asked.ask(redeem(secret, 5)), Outcome::AlreadyUsed);
    asked.time_ms += 500;
    assert_eq!(asked.ask(redeem(late, 5)), Outcome::Expired);
    asked.ask(Command::Remove { node: node(4) });
    assert_eq!(asked.ask(redeem(secret, 4)), Outcome::AlreadyUsed);
}

#[test]
fn keys_and_unused_invitations_go_with_the_membership_of_their_node() {
    let mut asked = federation();
    let secrets = [b"used", b"mine", b"else"].map(|text| SecretHash::of(text));
    let [used, unused, of_another] = secrets;
    for (secret, issuer) in [(used, 2), (unused, 2), (of_another, 1)] {
        assert_eq!(asked.ask(invite(secret, issuer)), Outcome::Done);
    }
    let redeem = |secret, number| Command::RedeemInvitation {
        secret,
        node: node(number),
        addresses: vec![],
        api_url: String::new(),
    };
    assert!(matches!(asked.ask(redeem(used, 4)), Outcome::Admitted(_)));
    for number in [1, 2] {
        assert!(matches!(asked.ask(publish(number)), Outcome::Stored { .. }));
    }
    assert_eq!(asked.ask(Command::Remove { node: node(2) }), Outcome::Done);
    let keys = |asked: &Asked| {
        asked.state.documents_after(DocumentKind::IssuerKey, "").map(|key| key.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&asked), [IssuerKeyId::new(node(1), "key").unwrap().to_string()]);
    assert_eq!(asked.ask(publish(2)), Outcome::NotMember { node: node(2) }, "it publishes nothing more");
    assert_eq!(asked.ask(redeem(unused, 2)), Outcome::NotFound, "it does not let itself in again");
    assert_eq!(asked.ask(invite(unused, 2)), Outcome::NotMember { node: node(2) });
    assert!(matches!(asked.ask(redeem(of_another, 5)), Outcome::Admitted(_)), "others' invitations stay");
    assert!(asked.state.member(node(4)).is_some(), "whom it let in stays");
    assert_eq!(asked.read_back().hash(), asked.state.hash());

    // A recovery leaves nothing of the others either.
    asked.ask(invite(unused, 1));
    assert!(matches!(asked.ask(publish(5)), Outcome::Stored { .. }));
    assert_eq!(asked.ask(Command::KeepOnly { node: node(5) }), Outcome::Done);
    assert_eq!(keys(&asked), [IssuerKeyId::new(node(5), "key").unwrap().to_string()]);
    assert_eq!(asked.ask(redeem(unused, 2)), Outcome::NotFound);
    assert_eq!(asked.read_back().hash(), asked.state.hash());
}

#[test]
fn commands_of_the_first_version_mean_what_they_meant() {
    let mut asked = federation();
    let (region, role) = (Region::parse("region4").unwrap(), Role::Full);
    let (secret, kept) = (SecretHash::of(b"secret"), SecretHash::of(b"kept"));
    let issue = Command::IssueInvitationV1 { secret, region, role, lifetime_ms: 500 };
    assert_eq!((asked.ask(issue), asked.ask(invite(kept, 2))), (Outcome::Done, Outcome::Done));
    asked.ask(publish(2));
    let (tenant, settings) = (tenant("t"), Opaque::default());
    asked.time_ms = 4321;
    asked.ask(Command::ClaimV1 { name: name("acme"), tenant, settings, owner: node(2) });
    assert_eq!(asked.state.account(&name("acme")).unwrap().claim_id, 4321);
    assert_eq!(asked.ask(Command::RemoveV1 { node: node(2) }), Outcome::Done);
    assert_eq!(asked.state.invitations().count(), 2, "it took nothing along");
    assert_eq!(asked.state.documents_after(DocumentKind::IssuerKey, "").count(), 1);
    let redeem =
        |secret| Command::RedeemInvitation { secret, node: node(2), addresses: vec![], api_url: String::new() };
    assert_eq!(asked.ask(redeem(kept)), Outcome::NotFound, "but who made it is no member");
    // Of one that nobody is known to have made, the next removal makes an end.
    asked.ask(admit(4, Role::Full));
    assert_eq!(asked.ask(Command::Remove { node: node(4) }), Outcome::Done);
    assert_eq!(asked.ask(redeem(secret)), Outcome::NotFound);
}

#[test]
fn an_invitation_is_taken_back_unless_it_was_used() {
    let mut asked = federation();
    let secret = SecretHash::of(b"secret");
    let redeem = || Command::RedeemInvitation { secret, node: node(4), addresses: vec![], api_url: String::new() };
    let revoke = || Command::RevokeInvitation { secret };
    assert_eq!(asked.ask(revoke()), Outcome::NotFound);
    asked.ask(invite(secret, 1));
    assert_eq!(asked.ask(revoke()), Outcome::Done);
    assert_eq!(asked.ask(redeem()), Outcome::NotFound);
    asked.ask(invite(secret, 1));
    assert!(matches!(asked.ask(redeem()), Outcome::Admitted(_)));
    assert_eq!(asked.ask(revoke()), Outcome::AlreadyUsed);
}

#[test]
fn a_claim_keeps_its_identity_and_no_two_share_one() {
    let mut asked = federation();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let mut epoch = epoch_of(&asked.ask(claim("acme", 1)));
        let id = asked.state.account(&name("acme")).unwrap().claim_id;
        assert!(seen.insert(id), "claimed anew within one millisecond, it is another one");
        for to in [2, 1] {
            let to = Command::MovePrimary { name: name("acme"), to: node(to), expected_epoch: epoch };
            epoch = epoch_of(&asked.ask(to));
            asked.ask(Command::SetDeleting { name: name("acme"), deleting: true });
            assert_eq!(asked.state.account(&name("acme")).unwrap().claim_id, id);
        }
        assert_eq!(asked.ask(Command::Forfeit { name: name("acme"), epoch }), Outcome::Done);
    }
}

#[test]
fn time_never_goes_back() {
    let mut asked = federation();
    asked.ask(claim("acme", 1));
    let token = SecretHash::of(b"token");
    asked.ask(Command::IssueSublease { name: name("acme"), token, lifetime_ms: 500 });
    asked.time_ms += 500;
    asked.ask(claim("other", 1));
    // A new leader whose clock is behind does not bring the token back.
    asked.time_ms = 0;
    let redeem = Command::RedeemSublease { name: name("acme"), token, node: node(2) };
    assert_eq!(asked.ask(redeem), Outcome::Expired);
}

#[test]
fn members_come_and_go_and_the_last_one_stays() {
    let mut asked = federation();
    let voters = |numbers: &[u8]| Command::SetVoters(VoterPolicy::Fixed(numbers.iter().copied().map(node).collect()));
    assert_eq!(asked.ask(voters(&[1, 9])), Outcome::NotMember { node: node(9) });
    assert_eq!(asked.ask(voters(&[])), Outcome::Refused(Refusal::NoVoter));
    assert_eq!(asked.ask(voters(&[2])), Outcome::Done);
    assert_eq!(asked.ask(Command::Remove { node: node(2) }), Outcome::Done);
    assert_eq!(asked.state.voter_policy(), VoterPolicy::Automatic);
    assert_eq!(asked.ask(Command::Remove { node: node(2) }), Outcome::NotFound);
    assert_eq!(asked.ask(Command::Remove { node: node(1) }), Outcome::Refused(Refusal::LastMember));
    assert_eq!(asked.ask(admit(1, Role::Witness)), Outcome::Refused(Refusal::OtherRegionOrRole));
}

#[test]
fn documents_have_revisions_and_pages() {
    let mut asked = federation();
    let put = |id: &str, expected_revision| Command::PutDocument {
        kind: DocumentKind::User,
        id: id.into(),
        body: Opaque::from(id.as_bytes()),
        expected_revision,
    };
    let Outcome::Stored { revision } = asked.ask(put("alice", Some(0))) else { panic!() };
    assert_eq!(asked.ask(put("alice", Some(0))), Outcome::Conflict { revision });
    asked.ask(put("bob", None));
    let ids = |after| asked.state.documents_after(DocumentKind::User, after).map(|d| d.id.clone()).collect::<Vec<_>>();
    assert_eq!((ids(""), ids("alice"), ids("bob")), (vec!["alice".into(), "bob".into()], vec!["bob".into()], vec![]));
    assert_eq!(asked.state.documents_after(DocumentKind::Tenant, "").count(), 0);
    let remove = |expected_revision| {
        let id = "alice".to_owned();
        Command::RemoveDocument { kind: DocumentKind::User, id, expected_revision }
    };
    assert_eq!(asked.ask(remove(Some(revision + 9))), Outcome::Conflict { revision });
    assert_eq!(asked.ask(remove(Some(revision))), Outcome::Done);
    assert_eq!(asked.ask(remove(None)), Outcome::NotFound);
}

#[test]
fn accounts_are_listed_in_pages_and_by_tenant() {
    let mut asked = federation();
    for (text, owner) in [("b", "x"), ("a", "y"), ("c", "x"), ("d", "y"), ("e", "x")] {
        let settings = Opaque::default();
        asked.ask(Command::Claim { name: name(text), tenant: tenant(owner), settings, owner: node(1) });
    }
    let all: Vec<_> = asked.state.accounts_after(Some(&name("b"))).map(|account| account.name.to_string()).collect();
    assert_eq!(all, ["c", "d", "e"]);
    let (x, y) = (tenant("x"), tenant("y"));
    let of = |tenant, after: Option<&str>| {
        let after = after.map(name);
        asked.state.accounts_of_tenant(tenant, after.as_ref()).map(|a| a.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((of(&x, None), of(&y, None)), (vec!["b".into(), "c".into(), "e".into()], vec!["a".into(), "d".into()]));
    assert_eq!((of(&x, Some("b")), of(&x, Some("e"))), (vec!["c".to_owned(), "e".into()], vec![]));
}

#[test]
fn answers_are_remembered_up_to_a_bound() {
    let mut asked = federation();
    let request = RequestId::random();
    let put = || Command::PutDocument {
        kind: DocumentKind::Setting,
        id: "s".into(),
        body: Opaque::default(),
        expected_revision: None,
    };
    let first = asked.ask_as(request.clone(), put());
    for _ in 0..ANSWERS_MAX - 1 {
        asked.ask(put());
    }
    assert_eq!(asked.ask_as(request.clone(), put()), first);
    asked.ask(put());
    assert_ne!(asked.ask_as(request, put()), first);
    assert!(asked.state.answered.iter().count() <= ANSWERS_MAX);
    assert_eq!(asked.read_back().hash(), asked.state.hash());
}

fn any_command() -> impl Strategy<Value = Command> {
    let names = prop::sample::select(vec!["a", "b"]).prop_map(name);
    let token = (0u8..3).prop_map(|number| SecretHash::of(&[number]));
    let numbers = 1u8..5;
    prop_oneof![
        numbers.clone().prop_map(|number| admit(number, if number == 3 { Role::Witness } else { Role::Full })),
        numbers.clone().prop_map(|number| Command::Remove { node: node(number) }),
        (names.clone(), numbers.clone()).prop_map(|(name, owner)| claim(name.as_str(), owner)),
        (names.clone(), 0u64..60).prop_map(|(name, epoch)| Command::Forfeit { name, epoch }),
        (names.clone(), numbers.clone(), 0u64..60).prop_map(|(name, to, expected_epoch)| Command::MovePrimary {
            name,
            to: node(to),
            expected_epoch
        }),
        (names.clone(), token.clone()).prop_map(|(name, token)| Command::IssueSublease {
            name,
            token,
            lifetime_ms: 20
        }),
        (names.clone(), token.clone(), numbers.clone()).prop_map(|(name, token, number)| Command::RedeemSublease {
            name,
            token,
            node: node(number)
        }),
        (names, any::<bool>()).prop_map(|(name, deleting)| Command::SetDeleting { name, deleting }),
        (token.clone(), numbers.clone()).prop_map(|(secret, issuer)| invite(secret, issuer)),
        token.clone().prop_map(|secret| Command::IssueInvitationV1 {
            secret,
            region: Region::parse("region4").unwrap(),
            role: Role::Full,
            lifetime_ms: 20,
        }),
        token.clone().prop_map(|secret| Command::RevokeInvitation { secret }),
        numbers.clone().prop_map(|number| Command::RemoveV1 { node: node(number) }),
        numbers.clone().prop_map(publish),
        (token, numbers).prop_map(|(secret, number)| Command::RedeemInvitation {
            secret,
            node: node(number),
            addresses: vec![],
            api_url: String::new(),
        }),
        (0u8..2, any::<bool>()).prop_map(|(id, there)| {
            let (kind, id, expected_revision) = (DocumentKind::Quota, id.to_string(), None);
            match there {
                true => Command::PutDocument { kind, id, body: Opaque::default(), expected_revision },
                false => Command::RemoveDocument { kind, id, expected_revision },
            }
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_rows_that_are_written_give_the_state_in_memory(
        commands in prop::collection::vec((any_command(), 0u64..10), 1..80),
    ) {
        let mut asked = Asked::default();
        let mut owners: BTreeMap<(AccountName, u64), NodeId> = BTreeMap::new();
        for (command, passed) in commands {
            asked.time_ms += passed;
            asked.ask(command);
            for account in asked.state.accounts_after(None) {
                let owner = *owners.entry((account.name.clone(), account.epoch)).or_insert(account.owner);
                prop_assert_eq!(owner, account.owner, "one owner in an epoch");
            }
        }
        prop_assert_eq!(asked.read_back().hash(), asked.state.hash());
        let listed = asked.state.accounts_of_tenant(&tenant("t"), None).count();
        prop_assert_eq!(listed, asked.state.accounts_len(), "the index of tenants is in step");
    }
}
