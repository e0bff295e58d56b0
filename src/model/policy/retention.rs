//! Which images of a repository are kept, and which are deleted: the pure decision, without a database or a clock.
//!
//! Most of a policy can be decided image by image. Only `oldest` and `newest` need all others, so each policy that has
//! them is *ranked* first: all images are shown to it once, and it remembers the few that it is about. So a repository of
//! any size is decided in a few passes with little memory.

use std::collections::{BTreeSet, HashSet};

use keppel_federation::vocabulary::Digest;
use serde::{Deserialize, Serialize};

use super::rbac::optional_pattern;
use super::{CompiledPolicies, GcAction, GcPolicy, Pattern, SettingsError, TagPolicy, TimestampField};

/// How long an image is left alone after its push, in seconds.
pub const RECENT_UPLOAD_SECONDS: i64 = 600;

/// What is known about an image. Times are in UNIX seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// Its name.
    pub digest: Digest,
    /// The last push.
    pub pushed_at: i64,
    /// The last pull in any region.
    pub last_pulled_at: Option<i64>,
    /// The tags on it.
    pub tags: Vec<String>,
    /// An index that lists it.
    pub parent: Option<Digest>,
    /// The manifest that it is about, where that exists.
    pub subject: Option<Digest>,
    /// Whether the manifest that it is about existed once and was deleted.
    pub subject_gone: bool,
}

/// Why an image is kept, or what may delete it: `gc_status` of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GcStatus {
    /// It was pushed less than [`RECENT_UPLOAD_SECONDS`] ago.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected_by_recent_upload: bool,
    /// This index lists it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_by_parent: Option<Digest>,
    /// It is about this manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_by_subject: Option<Digest>,
    /// This policy says that one of its tags may not be deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_by_tag_policy: Option<TagPolicy>,
    /// This policy keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_by_policy: Option<GcPolicy>,
    /// Nothing protects it; these policies may delete it, now or when it is older.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub relevant_policies: Vec<GcPolicy>,
}

/// What decides about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It was pushed just now.
    RecentUpload,
    /// An index lists it.
    Parent(Digest),
    /// What it is about exists.
    Subject(Digest),
    /// A tag policy, by its place among the account's.
    TagPolicy(usize),
    /// A retention policy, by its place among the account's.
    Policy(usize),
    /// What it is about was deleted, and no tag names it.
    SubjectGone,
    /// No policy is about it.
    NoPolicy,
}

/// What becomes of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is deleted.
    pub delete: bool,
    /// What decides.
    pub reason: Reason,
    /// What is told about it.
    pub status: GcStatus,
}

/// A retention policy ready for use.
#[derive(Debug)]
pub(super) struct CompiledGcPolicy {
    policy: GcPolicy,
    at: usize,
    repository: Pattern,
    except_repository: Option<Pattern>,
    tag: Option<Pattern>,
    except_tag: Option<Pattern>,
}

impl CompiledGcPolicy {
    /// `at` is its place among the account's policies.
    pub(super) fn new(policy: &GcPolicy, at: usize, place: &str) -> Result<Self, SettingsError> {
        let nothing = || SettingsError::new(format!("{place}.match_repository"), "must be set");
        Ok(Self {
            repository: optional_pattern(&policy.match_repository, place, "match_repository")?.ok_or_else(nothing)?,
            except_repository: optional_pattern(&policy.except_repository, place, "except_repository")?,
            tag: optional_pattern(&policy.match_tag, place, "match_tag")?,
            except_tag: optional_pattern(&policy.except_tag, place, "except_tag")?,
            policy: policy.clone(),
            at,
        })
    }

    pub(super) fn weight(&self) -> u64 {
        let optional = [&self.except_repository, &self.tag, &self.except_tag];
        2 + self.repository.weight() + optional.into_iter().flatten().map(Pattern::weight).sum::<u64>()
    }

    fn is_about_repository(&self, repository: &str) -> bool {
        let excepted = self.except_repository.as_ref().is_some_and(|pattern| pattern.matches(repository));
        self.repository.matches(repository) && !excepted
    }

    fn is_about_tags(&self, tags: &[String]) -> bool {
        if self.policy.only_untagged && !tags.is_empty() {
            return false;
        }
        let any = |pattern: &Pattern| tags.iter().any(|tag| pattern.matches(tag));
        self.tag.as_ref().is_none_or(any) && !self.except_tag.as_ref().is_some_and(any)
    }

    /// The time that its constraint is about; never pulled is 1970.
    fn time_of(&self, image: &ImageFacts) -> i64 {
        match self.policy.time_constraint.as_ref().map(|constraint| constraint.on) {
            Some(TimestampField::LastPulledAt) => image.last_pulled_at.unwrap_or(0),
            Some(TimestampField::PushedAt) | None => image.pushed_at,
        }
    }

    /// Whether the image is as old as the policy wants it, its rank aside.
    fn is_about_age(&self, image: &ImageFacts, now: i64) -> bool {
        let Some(constraint) = &self.policy.time_constraint else { return true };
        let age = now.saturating_sub(self.time_of(image));
        constraint.older_than.is_none_or(|limit| age > limit.as_seconds())
            && constraint.newer_than.is_none_or(|limit| age < limit.as_seconds())
    }

    /// How many of the oldest and of the newest it is about.
    fn ranks(&self) -> (Option<u64>, Option<u64>) {
        self.policy.time_constraint.as_ref().map_or((None, None), |constraint| (constraint.oldest, constraint.newest))
    }

    fn is_ranked(&self) -> bool {
        matches!(self.ranks(), (Some(_), _) | (_, Some(_)))
    }
}

/// The policies of one account on one repository, at one moment.
pub struct Retention<'a> {
    policies: Vec<Rule<'a>>,
    tags: &'a CompiledPolicies,
    repository: &'a str,
    now: i64,
    /// How many of the policies are decided for all images.
    ranked: usize,
}

struct Rule<'a> {
    compiled: &'a CompiledGcPolicy,
    oldest: Option<Few>,
    newest: Option<Few>,
}

/// The so many first of what it is shown.
struct Few {
    count: u64,
    /// While they are gathered: the order, and the last of them is the first to go.
    order: BTreeSet<(i64, Digest)>,
    chosen: HashSet<Digest>,
}

impl Few {
    fn offer(&mut self, key: i64, digest: Digest) {
        self.order.insert((key, digest));
        if self.order.len() as u64 > self.count {
            self.order.pop_last();
        }
    }

    fn close(&mut self) {
        self.chosen = std::mem::take(&mut self.order).into_iter().map(|(_, digest)| digest).collect();
    }
}

fn few(count: u64) -> Few {
    Few { count, order: BTreeSet::new(), chosen: HashSet::new() }
}

impl<'a> Retention<'a> {
    /// `repository` is without its account, `now` in UNIX seconds.
    pub fn new(policies: &'a CompiledPolicies, repository: &'a str, now: i64) -> Self {
        let about = policies.gc().iter().filter(|policy| policy.is_about_repository(repository));
        let rule = |compiled: &'a CompiledGcPolicy| {
            let (oldest, newest) = compiled.ranks();
            Rule { compiled, oldest: oldest.map(few), newest: newest.map(few) }
        };
        let mut retention = Self { policies: about.map(rule).collect(), tags: policies, repository, now, ranked: 0 };
        retention.skip_unranked();
        retention
    }

    /// Whether all images have to be shown (once more) with [`Self::show`] before anything is decided.
    pub fn wants_to_see_all(&self) -> bool {
        self.ranked < self.policies.len()
    }

    /// Shows an image to the policy that is being ranked.
    pub fn show(&mut self, image: &ImageFacts) {
        if !self.wants_to_see_all() {
            return;
        }
        // What an earlier policy deletes is not there any more for this one.
        let earlier = self.decide_until(image, self.ranked);
        if earlier.delete && matches!(earlier.reason, Reason::Policy(_)) {
            return;
        }
        let rule = &mut self.policies[self.ranked];
        if rule.compiled.is_about_tags(&image.tags) {
            let time = rule.compiled.time_of(image);
            if let Some(oldest) = &mut rule.oldest {
                oldest.offer(time, image.digest);
            }
            if let Some(newest) = &mut rule.newest {
                newest.offer(time.saturating_neg(), image.digest);
            }
        }
    }

    /// All images were shown.
    pub fn close(&mut self) {
        if let Some(rule) = self.policies.get_mut(self.ranked) {
            rule.oldest.iter_mut().chain(rule.newest.iter_mut()).for_each(Few::close);
            self.ranked += 1;
            self.skip_unranked();
        }
    }

    /// What becomes of an image. Asked while [`Self::wants_to_see_all`] says so, it knows only some of the policies.
    pub fn decide(&self, image: &ImageFacts) -> Verdict {
        self.decide_until(image, self.policies.len())
    }

    fn skip_unranked(&mut self) {
        while self.policies.get(self.ranked).is_some_and(|rule| !rule.compiled.is_ranked()) {
            self.ranked += 1;
        }
    }

    /// Decides by the first so many policies.
    fn decide_until(&self, image: &ImageFacts, end: usize) -> Verdict {
        let keep = |reason, status| Verdict { delete: false, reason, status };
        if self.now.saturating_sub(image.pushed_at) < RECENT_UPLOAD_SECONDS {
            let status = GcStatus { protected_by_recent_upload: true, ..GcStatus::default() };
            return keep(Reason::RecentUpload, status);
        }
        if let Some(parent) = image.parent {
            return keep(Reason::Parent(parent), GcStatus { protected_by_parent: Some(parent), ..GcStatus::default() });
        }
        if let Some(subject) = image.subject {
            let status = GcStatus { protected_by_subject: Some(subject), ..GcStatus::default() };
            return keep(Reason::Subject(subject), status);
        }
        if let Some((at, policy)) = self.tags.deletion_guard(self.repository, &image.tags) {
            let status = GcStatus { protected_by_tag_policy: Some(policy.clone()), ..GcStatus::default() };
            return keep(Reason::TagPolicy(at), status);
        }
        let mut relevant = Vec::new();
        for rule in &self.policies[..end.min(self.policies.len())] {
            let policy = &rule.compiled.policy;
            if policy.action == GcAction::Delete {
                relevant.push(policy.clone());
            }
            if !rule.is_about(image, self.now) {
                continue;
            }
            let (delete, status) = match policy.action {
                GcAction::Protect => {
                    (false, GcStatus { protected_by_policy: Some(policy.clone()), ..GcStatus::default() })
                }
                GcAction::Delete => (true, GcStatus { relevant_policies: relevant, ..GcStatus::default() }),
            };
            return Verdict { delete, reason: Reason::Policy(rule.compiled.at), status };
        }
        let status = GcStatus { relevant_policies: relevant, ..GcStatus::default() };
        match image.subject_gone && image.tags.is_empty() {
            true => Verdict { delete: true, reason: Reason::SubjectGone, status },
            false => keep(Reason::NoPolicy, status),
        }
    }
}

impl Rule<'_> {
    fn is_about(&self, image: &ImageFacts, now: i64) -> bool {
        let among = |few: &Option<Few>| few.as_ref().is_none_or(|few| few.chosen.contains(&image.digest));
        self.compiled.is_about_tags(&image.tags)
            && self.compiled.is_about_age(image, now)
            && among(&self.oldest)
            && among(&self.newest)
    }
}

#[cfg(test)]
mod tests;
