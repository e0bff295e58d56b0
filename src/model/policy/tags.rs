use serde::{Deserialize, Serialize};

use super::error::refuse;
use super::rbac::optional_pattern;
use super::{Pattern, SettingsError, null};

/// Guards tags. An empty field matches everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TagPolicy {
    /// Which repositories, without the account.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub match_repository: String,
    /// Which of them not.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub except_repository: String,
    /// Which tags.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub match_tag: String,
    /// Which of them not.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub except_tag: String,
    /// No such tag may be made.
    #[serde(skip_serializing_if = "null::is_false", deserialize_with = "null::as_default")]
    pub block_push: bool,
    /// No such tag may be moved to another manifest.
    #[serde(skip_serializing_if = "null::is_false", deserialize_with = "null::as_default")]
    pub block_overwrite: bool,
    /// No such tag may be deleted, nor the manifest it names.
    #[serde(skip_serializing_if = "null::is_false", deserialize_with = "null::as_default")]
    pub block_delete: bool,
}

/// What may not be done with a tag: for each, the place of the first policy that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TagProtection {
    /// It may not be pushed at all.
    pub push: Option<usize>,
    /// It may not be moved.
    pub overwrite: Option<usize>,
    /// It may not be deleted.
    pub delete: Option<usize>,
}

impl TagPolicy {
    pub(super) fn check(&self, place: &str) -> Result<(), SettingsError> {
        CompiledTagPolicy::new(self, 0, place)?;
        match self.block_push || self.block_overwrite || self.block_delete {
            true => Ok(()),
            false => refuse(place, "block_push", "one of block_push, block_overwrite and block_delete must be true"),
        }
    }
}

/// A policy ready for use.
#[derive(Debug)]
pub(super) struct CompiledTagPolicy {
    patterns: [Option<Pattern>; 4],
    pub(super) protection: TagProtection,
}

impl CompiledTagPolicy {
    /// `at` is its place among the account's policies.
    pub(super) fn new(policy: &TagPolicy, at: usize, place: &str) -> Result<Self, SettingsError> {
        let says = |blocks: bool| blocks.then_some(at);
        Ok(Self {
            patterns: [
                optional_pattern(&policy.match_repository, place, "match_repository")?,
                optional_pattern(&policy.except_repository, place, "except_repository")?,
                optional_pattern(&policy.match_tag, place, "match_tag")?,
                optional_pattern(&policy.except_tag, place, "except_tag")?,
            ],
            protection: TagProtection {
                push: says(policy.block_push),
                overwrite: says(policy.block_overwrite),
                delete: says(policy.block_delete),
            },
        })
    }

    pub(super) fn applies(&self, repository: &str, tag: &str) -> bool {
        let [repository_in, repository_out, tag_in, tag_out] = &self.patterns;
        let within = |pattern: &Option<Pattern>, text| pattern.as_ref().is_none_or(|pattern| pattern.matches(text));
        let outside = |pattern: &Option<Pattern>, text| pattern.as_ref().is_some_and(|pattern| pattern.matches(text));
        within(repository_in, repository)
            && !outside(repository_out, repository)
            && within(tag_in, tag)
            && !outside(tag_out, tag)
    }

    pub(super) fn weight(&self) -> u64 {
        1 + self.patterns.iter().flatten().map(Pattern::weight).sum::<u64>()
    }
}
