//! Reads what an asker lacks: events after its place, or a page of a listing.

use keppel_federation::vocabulary::AccountName;

use super::messages::{Change, ChangeKind, ListPlace, Place, Slice};
use crate::metadata::{AccountId, Cursor, EventKind, MetadataError, Reader};

/// Manifests and other things in one answer, in bytes; one manifest may go beyond.
pub(super) const ANSWER_BYTES: usize = 4 << 20;
/// The largest manifest that is sent: with it an answer still fits the channel.
const MANIFEST_BYTES_MAX: usize = 8 << 20;
/// Events, or rows of a listing, read at a time.
const ROWS_MAX: usize = 1000;
/// What a row costs besides a manifest's bytes.
const ROW_BYTES: usize = 200;

/// What was found for one account.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Events {
        changes: Vec<Change>,
        upto: Cursor,
        head: Cursor,
    },
    Page {
        slices: Vec<Slice>,
        next: Option<ListPlace>,
        base: Cursor,
    },
    Resync,
    /// There is a manifest that is too large to be sent: such an account cannot be followed.
    TooLarge,
}

/// How much may be found, in bytes.
#[derive(Debug)]
pub(super) struct Room {
    left: usize,
    /// What was found; it may be more than there was room for, by one manifest.
    pub(super) used: usize,
}

impl Room {
    pub(super) fn of(bytes: usize) -> Self {
        Self { left: bytes, used: 0 }
    }

    fn take(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
        self.used += bytes;
    }
}

/// What an asker at this place lacks, as far as there is room.
pub(super) fn find(
    reader: &Reader<'_>,
    account: &AccountName,
    place: &Place,
    room: &mut Room,
) -> Result<Found, MetadataError> {
    let head = reader.get_event_head(account)?;
    match (place, head) {
        (Place::At(cursor), Some((id, head))) => find_events(reader, id, *cursor, head, room),
        // Nothing was ever pushed to it.
        (Place::At(cursor), None) if *cursor == Cursor::default() => {
            Ok(Found::Events { changes: Vec::new(), upto: *cursor, head: *cursor })
        }
        (Place::At(_), None) => Ok(Found::Resync),
        (Place::Listing(place), Some((id, head))) => find_page(reader, id, place.clone(), head, room),
        (Place::Listing(place), None) => {
            let after = match place {
                ListPlace::Next { after } => after,
                ListPlace::Manifests { repository, .. } | ListPlace::Tags { repository, .. } => repository,
            };
            let slices = vec![Slice::Repository { after: after.clone(), name: None }];
            Ok(Found::Page { slices, next: None, base: Cursor::default() })
        }
    }
}

fn find_events(
    reader: &Reader<'_>,
    account: AccountId,
    from: Cursor,
    head: Cursor,
    room: &mut Room,
) -> Result<Found, MetadataError> {
    if from == head {
        return Ok(Found::Events { changes: Vec::new(), upto: from, head });
    }
    if !reader.is_in_log(account, from)? {
        return Ok(Found::Resync);
    }
    let (mut changes, mut upto) = (Vec::new(), from);
    for mut event in reader.list_events(account, from.sequence, ROWS_MAX)? {
        if room.left == 0 {
            break;
        }
        let mut size = ROW_BYTES;
        let kind = match event.kind {
            EventKind::RepositoryMade => Some(ChangeKind::RepositoryMade),
            EventKind::RepositoryGone => Some(ChangeKind::RepositoryGone),
            EventKind::ManifestPut(digest) => {
                let copy = reader.get_manifest_copy(&event.repository, &digest)?;
                if copy.as_ref().is_some_and(|copy| copy.bytes.len() > MANIFEST_BYTES_MAX) {
                    return Ok(Found::TooLarge);
                }
                size += copy.as_ref().map_or(0, |copy| copy.bytes.len());
                copy.map(ChangeKind::ManifestPut)
            }
            EventKind::ManifestGone(digest) => Some(ChangeKind::ManifestGone(digest)),
            EventKind::TagSet(tag, digest) => {
                // The registry's clock, not the database's; unless it names something else by now.
                let facts = reader.get_manifest_facts(&event.repository, &digest, Some(&tag))?;
                event.at = facts.and_then(|facts| facts.tag_pushed_at).unwrap_or(event.at);
                Some(ChangeKind::TagSet(tag, digest))
            }
            EventKind::TagGone(tag) => Some(ChangeKind::TagGone(tag)),
            EventKind::BlobGone(digest) => Some(ChangeKind::BlobGone(digest)),
        };
        room.take(size);
        upto = event.cursor;
        changes.extend(kind.map(|kind| Change { repository: event.repository, at: event.at, kind }));
    }
    Ok(Found::Events { changes, upto, head })
}

fn find_page(
    reader: &Reader<'_>,
    account: AccountId,
    mut place: ListPlace,
    base: Cursor,
    room: &mut Room,
) -> Result<Found, MetadataError> {
    let mut slices = Vec::new();
    // Even without room one step is made, so that a listing always comes to its end.
    loop {
        place = match place {
            ListPlace::Next { after } => {
                let next = reader.get_next_repository(account, &after)?.map(|(_, name)| name);
                slices.push(Slice::Repository { after, name: next.clone() });
                room.take(ROW_BYTES);
                match next {
                    Some(repository) => ListPlace::Manifests { repository, after: None },
                    None => return Ok(Found::Page { slices, next: None, base }),
                }
            }
            ListPlace::Manifests { repository, after } => {
                let Some(id) = reader.get_repository_of(account, &repository)? else {
                    // Deleted since the page before.
                    place = ListPlace::Next { after: repository };
                    continue;
                };
                let (manifests, is_end) = reader.list_manifest_copies(id, after.as_ref(), ROWS_MAX, room.left)?;
                if manifests.iter().any(|manifest| manifest.bytes.len() > MANIFEST_BYTES_MAX) {
                    return Ok(Found::TooLarge);
                }
                let size: usize = manifests.iter().map(|manifest| manifest.bytes.len() + ROW_BYTES).sum();
                room.take(size);
                let last = manifests.last().map(|manifest| manifest.digest);
                let upto = last.filter(|_| !is_end);
                slices.push(Slice::Manifests { repository: repository.clone(), after, manifests, upto });
                match is_end {
                    true => ListPlace::Tags { repository, after: String::new() },
                    false => ListPlace::Manifests { repository, after: last },
                }
            }
            ListPlace::Tags { repository, after } => {
                let Some(id) = reader.get_repository_of(account, &repository)? else {
                    place = ListPlace::Next { after: repository };
                    continue;
                };
                let tags = reader.list_tag_copies(id, &after, ROWS_MAX)?;
                room.take(tags.len() * ROW_BYTES);
                let upto = tags.last().filter(|_| tags.len() == ROWS_MAX).map(|tag| tag.name.clone());
                slices.push(Slice::Tags { repository: repository.clone(), after, tags, upto: upto.clone() });
                match upto {
                    Some(after) => ListPlace::Tags { repository, after },
                    None => ListPlace::Next { after: repository },
                }
            }
        };
        if room.left == 0 {
            return Ok(Found::Page { slices, next: Some(place), base });
        }
    }
}
