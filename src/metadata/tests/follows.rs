//! What is noted of copies, from older databases too.

use super::upgrades::of_version;
use super::*;

const FOLLOWED: &str = "INSERT INTO follows (account, state, sequence, stamp) VALUES ('acme', 2, 7, 9)";

#[tokio::test]
async fn whose_log_a_copy_follows_is_not_known_of_old_databases_and_is_noted_from_then_on() {
    let (metadata, _directory) = of_version(10, FOLLOWED);
    let (account, node) =
        (AccountName::parse("acme").unwrap(), keppel_federation::vocabulary::NodeId::from_public_key([7; 32]));
    metadata
        .write(move |transaction| {
            let cursor = Cursor { sequence: 7, stamp: 9 };
            let mut row = FollowRow { account: account.clone(), state: FollowState::Following, cursor, source: None };
            assert_eq!(transaction.get_follow(&account)?, Some(row.clone()));
            row.source = Some(node);
            transaction.put_follow(&row)?;
            assert_eq!(transaction.list_follows("", 10)?, [row]);
            Ok::<_, MetadataError>(())
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn under_which_claim_a_copy_was_told_is_not_known_of_old_databases_and_is_noted_from_then_on() {
    let (metadata, _directory) = of_version(11, FOLLOWED);
    let account = AccountName::parse("acme").unwrap();
    metadata
        .write(move |transaction| {
            let cursor = Cursor { sequence: 7, stamp: 9 };
            let told = Told { epoch: 4, claim: 1_700_000_000_000 };
            let known = |state, told, keeps| Some(FollowClaim { state, cursor, told, keeps });
            let old = known(FollowState::Following, Told::default(), None);
            assert_eq!(transaction.get_follow_claim(&account)?, old);
            transaction.put_told(&account, told)?;
            assert_eq!(transaction.get_follow_claim(&account)?, known(FollowState::Following, told, None));
            // What a listing must not lose is forgotten with its end, and not before.
            let row = |state| FollowRow { account: account.clone(), state, cursor, source: None };
            transaction.put_follow(&row(FollowState::Listing))?;
            transaction.keep_in_listing(&account, 4)?;
            let later = Told { epoch: 5, ..told };
            transaction.put_told(&account, later)?;
            transaction.keep_in_listing(&account, 5)?;
            assert_eq!(transaction.get_follow_claim(&account)?, known(FollowState::Listing, later, Some(4)));
            transaction.put_follow(&row(FollowState::Following))?;
            transaction.put_told(&account, later)?;
            assert_eq!(transaction.get_follow_claim(&account)?, known(FollowState::Following, later, None));
            Ok::<_, MetadataError>(())
        })
        .await
        .unwrap();
}
