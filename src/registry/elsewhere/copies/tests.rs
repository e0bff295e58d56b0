use super::*;

fn acme() -> AccountName {
    AccountName::parse("acme").unwrap()
}

fn node(number: u8) -> NodeId {
    NodeId::from_public_key([number; 32])
}

fn at(sequence: u64) -> Cursor {
    Cursor { sequence, stamp: 1 }
}

#[test]
fn what_was_whole_is_so_while_it_is_listed_anew() {
    let copies = Copies::default();
    copies.want(&acme(), 0);
    copies.listed(&acme(), ListPlace::beginning(), at(0));
    assert!(!copies.was_whole(&acme()));
    copies.moved(&acme(), at(3), 3, Some(3));
    copies.relist(&acme());
    assert!(copies.was_whole(&acme()) && !copies.is_complete(&acme()));
    copies.listed(&acme(), ListPlace::beginning(), at(3));
    assert!(copies.was_whole(&acme()) && !copies.is_complete(&acme()));
}

#[test]
fn a_copy_is_fresh_only_with_all_that_is_confirmed_and_nothing_more_under_a_lease_of_its_primary() {
    let copies = Copies::default();
    copies.want(&acme(), 0);
    let soon = || uptime() + Duration::from_secs(60);
    assert_eq!(copies.place(&acme()), Some((Place::Listing(ListPlace::beginning()), None)));
    copies.begin_session(node(1));
    copies.change(&acme(), node(1));
    copies.moved(&acme(), at(3), 3, Some(3));
    assert_eq!(copies.fresh(&acme(), node(1)), None, "without a lease");
    copies.renew(node(1), soon());
    let fresh = copies.fresh(&acme(), node(1));
    assert_eq!(fresh, Some(Fresh(3)));
    assert_eq!(copies.fresh(&acme(), node(2)), None, "another primary");
    for confirmed in [None, Some(2), Some(4)] {
        copies.moved(&acme(), at(3), 4, confirmed);
        assert_eq!(copies.fresh(&acme(), node(1)), None, "{confirmed:?}");
    }
    copies.moved(&acme(), at(4), 4, Some(4));
    assert!(copies.fresh(&acme(), node(1)).is_some_and(|now| Some(now) != fresh));
    copies.change(&acme(), node(1));
    assert_eq!(copies.fresh(&acme(), node(1)), None, "it is being changed");
    copies.moved(&acme(), at(4), 4, Some(4));
    copies.drop_from_session(node(2), &[acme()]);
    assert!(copies.fresh(&acme(), node(1)).is_some(), "another session");
    copies.drop_from_session(node(1), &[acme()]);
    assert_eq!(copies.fresh(&acme(), node(1)), None, "its primary has been told not to wait for this node");
    copies.moved(&acme(), at(4), 4, Some(4));
    copies.begin_session(node(1));
    copies.renew(node(1), soon());
    assert_eq!(copies.fresh(&acme(), node(1)), None, "promised in a former session");
}

#[test]
fn only_places_that_have_changed_are_looked_at_again() {
    let (copies, other) = (Copies::default(), AccountName::parse("other").unwrap());
    copies.want(&acme(), 0);
    copies.want(&other, 0);
    let (seen, all) = copies.places_since(0);
    assert_eq!(all.len(), 2);
    assert_eq!(copies.places_since(seen), (seen, Vec::new()));
    let page = ListPlace::Next { after: "acme/app".into() };
    let steps: [&dyn Fn(); 4] = [
        &|| copies.listed(&acme(), page.clone(), at(1)),
        &|| copies.moved(&acme(), at(3), 3, Some(3)),
        &|| copies.relist(&acme()),
        &|| copies.relisted(&acme()),
    ];
    let mut seen = seen;
    for step in steps {
        let before = copies.place(&acme()).unwrap().0;
        step();
        let (now, changed) = copies.places_since(seen);
        let place = copies.place(&acme()).unwrap().0;
        assert!(place != before && changed == [(acme(), place)], "{changed:?}");
        seen = now;
    }
}

#[test]
fn a_lease_that_has_run_out_is_none() {
    let copies = Copies::default();
    copies.want(&acme(), 0);
    copies.change(&acme(), node(1));
    copies.moved(&acme(), at(1), 1, Some(1));
    copies.renew(node(1), uptime());
    assert_eq!(copies.fresh(&acme(), node(1)), None);
    let status = copies.status().remove(0);
    assert!(!status.is_fresh && status.behind.is_some() && status.behind_events == Some(0));
}

#[test]
fn a_listing_keeps_the_place_where_its_events_begin() {
    let copies = Copies::default();
    copies.recall(&[FollowRow { account: acme(), state: FollowState::Listing, cursor: at(9), source: None }]);
    let next = ListPlace::Tags { repository: "acme/app".into(), after: "v1".into() };
    copies.listed(&acme(), next.clone(), at(5));
    assert_eq!(copies.place(&acme()), Some((Place::Listing(next), Some(at(5)))));
    assert_eq!(copies.status()[0].behind_events, None);
}
