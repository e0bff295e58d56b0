//! Members and status as tables for people.

use std::fmt::Write as _;

use keppel_federation::vocabulary::NodeId;

use crate::app::admin::{AccountInfo, CopyInfo, EagerInfo, FederationStatus, InvitationInfo, MemberInfo, MemberStatus};
use crate::auth::rfc3339;

/// Digits of a node id that a person needs to tell nodes apart.
const SHORT: usize = 10;

/// The members.
pub(super) fn members_table(members: &[MemberInfo]) -> String {
    let rows = members.iter().map(|member| {
        let addresses: Vec<String> = member.addresses.iter().map(ToString::to_string).collect();
        [
            member.node.to_string(),
            member.region.to_string(),
            member.role.clone(),
            addresses.join(" "),
            or_dash(&member.api_url),
        ]
    });
    table(["NODE", "REGION", "ROLE", "ADDRESSES", "API"], rows)
}

/// The invitations.
pub(super) fn invitations_table(invitations: &[InvitationInfo]) -> String {
    let short = |node: &Option<_>| node.map_or_else(|| "-".to_owned(), |node: NodeId| node.short());
    let row = |invitation: &InvitationInfo| {
        let state = match (invitation.used_by, invitation.expired) {
            (Some(_), _) => "used",
            (None, true) => "expired",
            (None, false) => "open",
        };
        [
            invitation.id[..SHORT].to_owned(),
            invitation.region.to_string(),
            invitation.role.clone(),
            short(&invitation.issuer),
            rfc3339(i64::try_from(invitation.expires_at_ms / 1000).unwrap_or(i64::MAX)),
            state.to_owned(),
            short(&invitation.used_by),
        ]
    };
    table(["ID", "REGION", "ROLE", "MADE BY", "UNTIL", "STATE", "USED BY"], invitations.iter().map(row))
}

/// The accounts.
pub(super) fn accounts_table(accounts: &[AccountInfo]) -> String {
    let row = |account: &AccountInfo| {
        let node = account.node.to_string()[..SHORT].to_owned();
        let note = account.note.clone().unwrap_or_default();
        [account.name.to_string(), account.region.to_string(), node, account.epoch.to_string(), note]
    };
    table(["ACCOUNT", "PRIMARY", "NODE", "EPOCH", ""], accounts.iter().map(row))
}

/// The accounts of other regions that are followed, those that are furthest behind first.
pub(super) fn copies_table(copies: &[CopyInfo]) -> String {
    let mut copies: Vec<&CopyInfo> = copies.iter().collect();
    copies.sort_by_key(|copy| (copy.fresh, std::cmp::Reverse(copy.behind_ms.unwrap_or(u64::MAX))));
    let row = |copy: &CopyInfo| {
        let behind = match copy.behind_ms {
            None => "not known".to_owned(),
            Some(behind_ms) => format!("{:.1} s", behind_ms as f64 / 1000.0),
        };
        [
            copy.account.to_string(),
            copy.region.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            copy.state.clone(),
            copy.behind_events.map_or_else(|| "-".to_owned(), |events| events.to_string()),
            copy.behind_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()),
            behind,
            copy.eager.as_ref().map_or_else(|| "as pulled".to_owned(), eager),
            if copy.fresh { "here" } else { "asks the primary" }.to_owned(),
        ]
    };
    let head = ["COPY OF", "PRIMARY", "STATE", "EVENTS BEHIND", "BYTES BEHIND", "BEHIND", "BLOBS", "ANSWERS"];
    table(head, copies.into_iter().map(row))
}

/// How far a replica is that holds everything.
fn eager(info: &EagerInfo) -> String {
    match info {
        EagerInfo { counted: false, .. } => "all: being counted".to_owned(),
        EagerInfo { missing_blobs: 0, proven_ms: Some(proven_ms), .. } => {
            format!("all: proven {} s ago", proven_ms / 1000)
        }
        EagerInfo { missing_blobs: 0, .. } => "all: not proven yet".to_owned(),
        EagerInfo { missing_blobs, missing_bytes, .. } => {
            format!("all: {missing_blobs} missing, {missing_bytes} bytes")
        }
    }
}

/// The status, beginning with what matters most.
pub(super) fn status_text(status: &FederationStatus) -> String {
    let mut text = String::new();
    if !status.member {
        text.push_str("This node is not a member of a federation: it waits to join, or was removed.\n");
    }
    let leader = status.members.iter().find(|member| member.leader);
    let leader = leader.map_or_else(|| "nobody leads".to_owned(), |member| format!("{} leads", member.region));
    let quorum = if status.quorum.healthy { "decisions are taken" } else { "NO DECISIONS can be taken" };
    let voters = status.members.iter().filter(|member| member.voter).count();
    let _ = writeln!(
        text,
        "{quorum}; {leader} in term {}; {voters} of {} members vote; {} accounts are claimed",
        status.term,
        status.members.len(),
        status.accounts
    );
    if let Some(explanation) = &status.quorum.explanation {
        let _ = writeln!(text, "{explanation}");
    }
    text.push('\n');
    let rows = status.members.iter().map(row);
    text.push_str(&table(["NODE", "REGION", "ROLE", "HEALTH", "VOTE", "RTT", "VERSION", "LOG", ""], rows));
    text
}

fn row(member: &MemberStatus) -> [String; 9] {
    let vote = match (member.leader, member.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "-",
    };
    let note = match (&member.problem, member.this) {
        (_, true) => "this node".to_owned(),
        (Some(problem), false) => problem.clone(),
        (None, false) => String::new(),
    };
    [
        member.node.to_string()[..SHORT].to_owned(),
        member.region.to_string(),
        member.role.clone(),
        member.health.as_str().to_owned(),
        vote.to_owned(),
        member.round_trip_ms.map_or_else(|| "-".to_owned(), |time| format!("{time:.1} ms")),
        member.version.clone().unwrap_or_else(|| "-".to_owned()),
        member.applied.map_or_else(|| "-".to_owned(), |applied| applied.to_string()),
        note,
    ]
}

pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copies_furthest_behind_come_first() {
        let copy = |name: &str, behind_ms, fresh| {
            serde_json::json!({
                "account": name, "region": "eu", "state": "following", "behind_events": 3, "behind_ms": behind_ms,
                "fresh": fresh,
            })
        };
        let copies =
            serde_json::json!([copy("a", Some(0), true), copy("b", Some(1500), false), copy("c", None, false)]);
        let text = copies_table(&serde_json::from_value::<Vec<CopyInfo>>(copies).expect("copies"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[1],
            "c        eu       following  3              -             not known  as pulled  asks the primary"
        );
        assert_eq!(
            lines[2],
            "b        eu       following  3              -             1.5 s      as pulled  asks the primary"
        );
        assert_eq!(lines[3], "a        eu       following  3              -             0.0 s      as pulled  here");
    }

    #[test]
    fn a_replica_that_holds_everything_says_how_far_it_is() {
        let info =
            |counted, missing_blobs, proven_ms| EagerInfo { counted, missing_blobs, missing_bytes: 77, proven_ms };
        assert_eq!(eager(&info(false, 3, None)), "all: being counted");
        assert_eq!(eager(&info(true, 3, None)), "all: 3 missing, 77 bytes");
        assert_eq!(eager(&info(true, 0, None)), "all: not proven yet");
        assert_eq!(eager(&info(true, 0, Some(5100))), "all: proven 5 s ago");
    }

    #[test]
    fn the_status_says_first_whether_decisions_are_taken() {
        let id = "ab".repeat(32);
        let status = serde_json::json!({
            "node": id, "region": "eu", "part": "leader", "member": true, "leader": id, "term": 3, "voters": [id],
            "applied": 17, "accounts": 2, "quorum": { "healthy": false, "explanation": "bring it back" },
            "members": [{
                "node": id, "region": "eu", "role": "full", "health": "alive", "this": true, "voter": true,
                "leader": true, "round_trip_ms": null, "version": "1.0", "applied": 17, "last_log": 17, "uptime_s": 1,
                "addresses": [], "api_url": "", "problem": null,
            }],
        });
        let text = status_text(&serde_json::from_value(status).expect("a status"));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "NO DECISIONS can be taken; eu leads in term 3; 1 of 1 members vote; 2 accounts are claimed"
        );
        assert_eq!(lines[1], "bring it back");
        assert_eq!(lines[4], "ababababab  eu      full  alive   leader  -    1.0      17   this node");
    }
}
