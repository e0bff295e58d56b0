use super::*;

const LEASE: Duration = Duration::from_secs(5);

fn node(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

fn acme() -> AccountName {
    AccountName::parse("acme").unwrap()
}

fn at(sequence: u64) -> Cursor {
    Cursor { sequence, stamp: 7 }
}

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

fn request(session: u64, is_first: bool, sequence: u64) -> FollowRequest {
    let places = vec![(acme(), Place::At(at(sequence)))];
    FollowRequest { session, is_first, wait_ms: 0, places, dropped: Vec::new() }
}

/// A follower that has everything up to event 3 and holds a lease.
fn held(holders: &mut Holders, number: u8, now: Duration) {
    holders.take(node(number), request(1, true, 3), true, now).unwrap();
    assert_eq!(holders.take_turn(node(number), 1).unwrap().places.len(), 1);
    let standing = holders.stand(node(number), 1, &acme(), (at(3), at(3)), true, now).unwrap();
    assert_eq!(standing.confirmed, Some(3));
}

#[test]
fn an_event_is_applied_once_its_place_is_told_and_known_to_be_in_this_log() {
    let mut holders = Holders::new(LEASE);
    holders.take(node(1), request(1, true, 9), true, seconds(1)).unwrap();
    assert!(!holders.has_applied(node(1), &acme(), 3), "its place may be in another log");
    let mut holders = Holders::new(LEASE);
    held(&mut holders, 1, seconds(1));
    assert!(holders.has_applied(node(1), &acme(), 3));
    assert!(!holders.has_applied(node(2), &acme(), 3));
    holders.advance(&acme(), at(4), seconds(2));
    assert!(!holders.has_applied(node(1), &acme(), 4));
    holders.take(node(1), request(1, false, 4), true, seconds(2)).unwrap();
    assert!(holders.has_applied(node(1), &acme(), 4));
    assert!(holders.sweep(seconds(60)));
    assert!(!holders.has_applied(node(1), &acme(), 4), "nobody is heard of any more");
}

#[test]
fn an_event_is_everywhere_once_all_who_hold_a_lease_have_it() {
    let mut holders = Holders::new(LEASE);
    held(&mut holders, 1, seconds(1));
    held(&mut holders, 2, seconds(1));
    holders.advance(&acme(), at(4), seconds(2));
    assert_eq!(holders.head(&acme()), 4);
    assert!(matches!(holders.settled(&acme(), 4, seconds(2)), Settled::NotBefore(_)));
    holders.take(node(1), request(1, false, 4), true, seconds(2)).unwrap();
    assert!(matches!(holders.settled(&acme(), 4, seconds(2)), Settled::NotBefore(_)));
    let told = holders.stand(node(1), 1, &acme(), (at(4), at(4)), true, seconds(2)).unwrap();
    assert_eq!(told.confirmed, Some(3), "nobody may show it yet");
    holders.take(node(2), request(1, false, 4), true, seconds(3)).unwrap();
    assert_eq!(holders.settled(&acme(), 4, seconds(3)), Settled::Yes);
    assert_eq!(holders.take_turn(node(1), 1).unwrap().places.len(), 1, "it is to be told");
    let told = holders.stand(node(1), 1, &acme(), (at(4), at(4)), true, seconds(3)).unwrap();
    assert_eq!((told.confirmed, told.is_known), (Some(4), false));
    let told = holders.stand(node(1), 1, &acme(), (at(4), at(4)), true, seconds(3)).unwrap();
    assert!(told.is_known);
}

#[test]
fn a_silent_holder_is_waited_for_until_its_lease_has_surely_run_out() {
    let mut holders = Holders::new(LEASE);
    held(&mut holders, 1, seconds(1));
    holders.advance(&acme(), at(4), seconds(2));
    // Counted from its last request, and longer than there.
    assert!(matches!(holders.settled(&acme(), 4, seconds(6)), Settled::NotBefore(until) if until > seconds(6)));
    assert_eq!(holders.settled(&acme(), 4, seconds(7)), Settled::Yes);
    // It has to begin again, and is told nothing of before.
    assert!(holders.take(node(1), request(1, false, 3), true, seconds(7)).is_none());
    holders.take(node(1), request(2, true, 3), true, seconds(7)).unwrap();
    let told = holders.stand(node(1), 2, &acme(), (at(3), at(4)), true, seconds(7)).unwrap();
    assert_eq!(told.confirmed, None, "it does not have everything");
}

#[test]
fn who_is_far_behind_holds_nothing_and_keeps_nobody_waiting() {
    let mut holders = Holders::new(LEASE);
    holders.take(node(1), request(1, true, 1), true, seconds(1)).unwrap();
    assert_eq!(holders.stand(node(1), 1, &acme(), (at(2), at(9)), true, seconds(1)).unwrap().confirmed, None);
    holders.advance(&acme(), at(10), seconds(1));
    assert_eq!(holders.settled(&acme(), 10, seconds(1)), Settled::Yes);
    // Sent the rest, it is waited for from then on, before it has said that it has it.
    let told = holders.stand(node(1), 1, &acme(), (at(10), at(10)), true, seconds(1)).unwrap();
    assert_eq!(told.confirmed, Some(10));
    holders.advance(&acme(), at(11), seconds(1));
    assert!(matches!(holders.settled(&acme(), 11, seconds(1)), Settled::NotBefore(_)));
    // Whoever asks for a listing holds nothing any more.
    let listing = FollowRequest {
        places: vec![(acme(), Place::Listing(super::super::messages::ListPlace::beginning()))],
        ..request(1, false, 0)
    };
    holders.take(node(1), listing, true, seconds(1)).unwrap();
    assert_eq!(holders.settled(&acme(), 11, seconds(1)), Settled::Yes);
}

#[test]
fn after_a_restart_former_holders_are_waited_for_until_they_come_back_or_their_time_is_over() {
    let mut holders = Holders::new(LEASE);
    holders.recall(node(1), LEASE, seconds(1));
    holders.recall(node(2), LEASE, seconds(1));
    assert!(matches!(holders.settled(&acme(), 0, seconds(2)), Settled::NotBefore(_)));
    holders.take(node(1), request(1, true, 3), true, seconds(2)).unwrap();
    let told = holders.stand(node(1), 1, &acme(), (at(3), at(3)), true, seconds(2)).unwrap();
    assert_eq!(told.confirmed, None, "another one may still show what is older");
    assert!(matches!(holders.settled(&acme(), 3, seconds(2)), Settled::NotBefore(_)));
    assert!(holders.nodes().contains(&node(2)));
    assert_eq!(holders.settled(&acme(), 3, Duration::from_millis(6111)), Settled::Yes);
    assert!(!holders.nodes().contains(&node(2)));
    let told = holders.stand(node(1), 1, &acme(), (at(3), at(3)), true, seconds(7)).unwrap();
    assert_eq!(told.confirmed, Some(3));
}

#[test]
fn without_the_majority_nothing_is_granted_and_leases_are_not_renewed() {
    let mut holders = Holders::new(LEASE);
    held(&mut holders, 1, seconds(1));
    for now in 2..6 {
        holders.take(node(1), request(1, false, 3), false, seconds(now)).unwrap();
    }
    assert!(holders.take(node(1), request(1, false, 3), false, seconds(7)).is_none(), "it has run out all the same");
    holders.take(node(1), request(2, true, 3), false, seconds(7)).unwrap();
    assert_eq!(holders.stand(node(1), 2, &acme(), (at(3), at(3)), true, seconds(7)).unwrap().confirmed, None);
    holders.advance(&acme(), at(4), seconds(8));
    assert_eq!(holders.settled(&acme(), 4, seconds(8)), Settled::Yes);
    // Once the majority is back, a new session brings leases.
    assert!(holders.take(node(1), request(2, false, 4), true, seconds(9)).is_none());
    // A request that was overtaken brings none.
    holders.take(node(1), request(4, true, 4), true, seconds(9)).unwrap();
    assert!(holders.take(node(1), request(3, true, 1), true, seconds(9)).is_none());
}

#[test]
fn a_revoked_account_is_granted_to_nobody_and_waited_for_until_new_sessions_begin() {
    let mut holders = Holders::new(LEASE);
    held(&mut holders, 1, seconds(1));
    held(&mut holders, 2, seconds(1));
    holders.advance(&acme(), at(4), seconds(2));
    holders.revoke(&acme(), seconds(2));
    assert!(holders.take(node(1), request(1, false, 4), true, seconds(2)).is_none(), "its session has ended");
    assert!(holders.former_until(seconds(2)).is_some());
    assert!(matches!(holders.settled(&acme(), 4, seconds(2)), Settled::NotBefore(_)), "they may still answer");
    for number in [1, 2] {
        holders.take(node(number), request(2, true, 3), true, seconds(3)).unwrap();
        let told = holders.stand(node(number), 2, &acme(), (at(4), at(4)), true, seconds(3)).unwrap();
        assert_eq!(told.confirmed, None, "granted to nobody");
    }
    assert_eq!(holders.former_until(seconds(3)), None);
    assert_eq!(holders.settled(&acme(), 4, seconds(3)), Settled::Yes);
    holders.allow(&acme());
    let told = holders.stand(node(1), 2, &acme(), (at(4), at(4)), true, seconds(3)).unwrap();
    assert!(told.confirmed.is_some());
}

#[test]
fn a_silent_holder_of_a_revoked_account_is_waited_for_as_long_as_its_lease_lasts() {
    let mut holders = Holders::new(LEASE);
    held(&mut holders, 1, seconds(1));
    holders.revoke(&acme(), seconds(2));
    let until = holders.former_until(seconds(2)).unwrap();
    assert!(until >= seconds(1) + LEASE, "{until:?}");
    assert_eq!(holders.former_until(until + Duration::from_millis(1)), None);
}

#[test]
fn nothing_is_everywhere_while_a_former_primary_may_have_promised_something() {
    let mut holders = Holders::new(LEASE);
    holders.keep_quiet(&acme(), seconds(20));
    holders.take(node(1), request(1, true, 3), true, seconds(10)).unwrap();
    let told = holders.stand(node(1), 1, &acme(), (at(3), at(3)), true, seconds(10)).unwrap();
    assert_ne!(told.confirmed, Some(3), "it would answer with what may differ from another's answers");
    assert_eq!(holders.settled(&acme(), 3, seconds(10)), Settled::NotBefore(seconds(20)));
    let other = AccountName::parse("other").unwrap();
    assert_eq!(holders.settled(&other, 3, seconds(10)), Settled::Yes);
    // It renews its lease meanwhile.
    for second in 11..20 {
        holders.take(node(1), request(1, false, 3), true, seconds(second)).unwrap();
    }
    assert!(holders.sweep(seconds(20)));
    let told = holders.stand(node(1), 1, &acme(), (at(3), at(3)), true, seconds(20)).unwrap();
    assert_eq!(told.confirmed, Some(3));
    assert_eq!(holders.settled(&acme(), 3, seconds(20)), Settled::Yes);
}

fn account(name: &str) -> AccountName {
    AccountName::parse(name).unwrap()
}

/// A follower of several accounts that has everything up to event 3 of each, and holds a lease.
fn held_all(holders: &mut Holders, names: &[AccountName]) {
    let places = names.iter().map(|name| (name.clone(), Place::At(at(3)))).collect();
    let request = FollowRequest { session: 1, is_first: true, wait_ms: 0, places, dropped: Vec::new() };
    holders.take(node(1), request, true, seconds(1)).unwrap();
    assert_eq!(holders.take_turn(node(1), 1).unwrap().places.len(), names.len());
    for name in names {
        let standing = holders.stand(node(1), 1, name, (at(3), at(3)), true, seconds(1)).unwrap();
        assert_eq!(standing.confirmed, Some(3));
    }
}

fn again() -> FollowRequest {
    FollowRequest { session: 1, is_first: false, wait_ms: 0, places: Vec::new(), dropped: Vec::new() }
}

#[test]
fn who_follows_lost_accounts_is_told_of_all_of_them_before_its_lease_is_renewed() {
    let names: Vec<AccountName> = (0..10_001).map(|number| account(&format!("a{number:05}"))).collect();
    let mut holders = Holders::new(LEASE);
    held_all(&mut holders, &names);
    assert_eq!(holders.followed().len(), names.len());
    names[1..].iter().for_each(|name| holders.withdraw(name));
    let told = holders.stand(node(1), 1, &names[1], (at(3), at(3)), true, seconds(2)).unwrap();
    assert_eq!(told.confirmed, None, "it is lost");
    let told = holders.stand(node(1), 1, &names[0], (at(3), at(3)), true, seconds(2)).unwrap();
    assert_eq!(told.confirmed, Some(3), "another one");
    holders.withdraw(&names[0]);
    let first = holders.take_turn(node(1), 1).unwrap();
    assert_eq!((first.withdrawn.len(), first.is_all), (10_000, false));
    holders.take(node(1), again(), true, seconds(2)).unwrap();
    let second = holders.take_turn(node(1), 1).unwrap();
    assert_eq!((second.withdrawn, second.is_all), (vec![names[10_000].clone()], true));
    assert!(holders.followed().is_empty());
    holders.take(node(1), again(), true, seconds(3)).unwrap();
    let third = holders.take_turn(node(1), 1).unwrap();
    assert!(third.withdrawn.is_empty() && third.is_all, "each is told once");
}

#[test]
fn an_account_that_is_being_handed_over_is_told_of_and_granted_to_nobody() {
    let mut holders = Holders::new(LEASE);
    holders.take(node(1), request(1, true, 3), true, seconds(1)).unwrap();
    let told = holders.stand(node(1), 1, &acme(), (at(3), at(3)), false, seconds(1)).unwrap();
    assert_eq!(told.confirmed, None, "not settled");
    holders.withhold(&acme());
    let told = holders.stand(node(1), 1, &acme(), (at(3), at(3)), true, seconds(1)).unwrap();
    assert_eq!(told.confirmed, None, "withheld since the start");
    holders.allow(&acme());
    let told = holders.stand(node(1), 1, &acme(), (at(3), at(3)), true, seconds(1)).unwrap();
    assert_eq!(told.confirmed, Some(3));
}

#[test]
fn accounts_take_turns_and_those_that_somebody_waits_for_come_first() {
    let names = ["a", "b", "c", "d"].map(|name| account(&name.repeat(3)));
    let mut holders = Holders::new(LEASE);
    held_all(&mut holders, &names);
    let order = |holders: &mut Holders| {
        names.iter().for_each(|name| holders.advance(name, at(9), seconds(1)));
        let places = holders.take_turn(node(1), 1).unwrap().places;
        places.into_iter().map(|(name, _)| name.as_str()[..1].to_owned()).collect::<String>()
    };
    assert_eq!(order(&mut holders), "abcd");
    holders.serve(node(1), 1, &names[..2]);
    assert_eq!(order(&mut holders), "cdab", "there was no room for these before");
    holders.serve(node(1), 1, &names[2..3]);
    assert_eq!(order(&mut holders), "dabc");
    holders.await_event(&names[1], 9);
    assert_eq!(order(&mut holders), "bdac", "a push waits for it");
    let places = vec![(names[1].clone(), Place::At(at(9)))];
    holders.take(node(1), FollowRequest { places, ..again() }, true, seconds(1)).unwrap();
    assert_eq!(order(&mut holders), "dabc", "it is there");
}

#[test]
fn who_is_behind_for_a_lease_time_loses_the_grant_once_it_knows() {
    let mut holders = Holders::new(LEASE);
    held(&mut holders, 1, seconds(1));
    let mut now = seconds(1);
    let mut sequence = 3;
    // It renews its lease and comes forward, but never is sent all there is.
    while now < seconds(6) {
        holders.advance(&acme(), at(1000 + sequence), now);
        let told = holders.stand(node(1), 1, &acme(), (at(sequence + 1), at(1000 + sequence)), true, now).unwrap();
        assert!(told.confirmed.is_some(), "{now:?}");
        assert!(matches!(holders.settled(&acme(), 1000 + sequence, now), Settled::NotBefore(_)));
        sequence += 1;
        now += seconds(1);
        holders.take(node(1), request(1, false, sequence), true, now).unwrap();
    }
    let told = holders.stand(node(1), 1, &acme(), (at(sequence + 1), at(1000 + sequence)), true, now).unwrap();
    assert_eq!(told.confirmed, None, "it is not to answer for it any more");
    assert!(matches!(holders.settled(&acme(), 1009, now), Settled::NotBefore(_)), "it may not have heard of that");
    holders.take(node(1), request(1, false, sequence + 1), true, now).unwrap();
    assert_eq!(holders.settled(&acme(), 1000 + sequence, now), Settled::Yes);
    // With all of it, it is granted again.
    let told = holders.stand(node(1), 1, &acme(), (at(2000), at(2000)), true, now).unwrap();
    assert!(told.confirmed.is_some());
    holders.advance(&acme(), at(2001), now);
    assert!(matches!(holders.settled(&acme(), 2001, now), Settled::NotBefore(_)));
}
