use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};
use cel::common::types::{CelBool, CelString, STRING_TYPE};
use cel::common::value::CowVal;
use cel::parser::PrattParser;
use cel::{Context, Env, ExecutionError, Value};
use serde::{Deserialize, Serialize};

use super::error::{one_line, refuse};
use super::{SettingsError, null, pattern};
use crate::model::Descriptor;

/// The longest rule, in bytes.
pub const RULE_BYTES_MAX: usize = 2048;
/// The most layers a manifest may have in an account with a rule about layers.
pub const LAYERS_MAX: usize = 256;
/// The most bytes that labels may have together in an account with a rule about labels.
const LABELS_BYTES_MAX: usize = 64 * 1024;
/// The most labels that the older form may require.
const REQUIRED_LABELS_MAX: usize = 32;
/// How deep an expression may nest.
const DEPTH_MAX: usize = 48;
/// How many parts an expression may have.
const NODES_MAX: usize = 400;
/// How many loops (`all`, `exists`, …) may be inside or after one another.
const LOOPS_MAX: usize = 2;
/// How many additions an expression may have; each may double a text.
const ADDITIONS_MAX: usize = 8;

/// Which manifests may be pushed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Validation {
    /// A CEL expression over `labels`, `layers`, `media_type` and `repo_name` that must be true.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "null::as_default")]
    pub rule_for_manifest: String,
    /// Labels that must be there: the older form of such a rule, shown only when the rule equals it.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null::as_default")]
    pub required_labels: Vec<String>,
}

impl Validation {
    /// Checks the fields and makes both forms agree. `None`: nothing is asked of manifests.
    pub(super) fn normalized(mut self, place: &str) -> Result<Option<Self>, SettingsError> {
        if !self.required_labels.is_empty() {
            let rule = rule_of_labels(&self.required_labels, place)?;
            if !self.rule_for_manifest.is_empty() && self.rule_for_manifest != rule {
                let reason = "says something else than required_labels: set one of them only";
                return refuse(place, "rule_for_manifest", reason);
            }
            self.rule_for_manifest = rule;
        }
        if self.rule_for_manifest.is_empty() {
            return Ok(None);
        }
        if let Err(reason) = ManifestRule::compile(&self.rule_for_manifest) {
            return refuse(place, "rule_for_manifest", reason);
        }
        self.required_labels = labels_of_rule(&self.rule_for_manifest).unwrap_or_default();
        Ok(Some(self))
    }
}

fn rule_of_labels(labels: &[String], place: &str) -> Result<String, SettingsError> {
    if labels.len() > REQUIRED_LABELS_MAX {
        return refuse(place, "required_labels", format!("has more than {REQUIRED_LABELS_MAX} labels"));
    }
    if let Some(at) = labels.iter().position(|label| !is_label(label)) {
        let reason = format!("{:?} must have 1 to 128 visible characters, without quotes and backslashes", labels[at]);
        return refuse(place, &format!("required_labels[{at}]"), reason);
    }
    let tests: Vec<String> = labels.iter().map(|label| format!("'{label}' in labels")).collect();
    Ok(tests.join(" && "))
}

fn labels_of_rule(rule: &str) -> Option<Vec<String>> {
    rule.split(" && ")
        .map(|test| test.strip_prefix('\'')?.strip_suffix("' in labels"))
        .map(|label| label.filter(|label| is_label(label)).map(str::to_owned))
        .collect()
}

fn is_label(text: &str) -> bool {
    (1..=128).contains(&text.len()) && text.chars().all(|c| !c.is_control() && !matches!(c, '\'' | '"' | '\\' | '&'))
}

/// What a rule can see of a manifest.
#[derive(Debug, Clone, Copy)]
pub struct ManifestFacts<'a> {
    /// The media type of the manifest.
    pub media_type: &'a str,
    /// The repository, without the account.
    pub repository: &'a str,
    /// The labels of the image's configuration.
    pub labels: &'a BTreeMap<String, String>,
    /// The layers.
    pub layers: &'a [Descriptor],
}

/// A rule about manifests, ready for use. Running it takes bounded time and memory.
pub struct ManifestRule {
    source: String,
    expression: IdedExpr,
    sees_labels: bool,
    sees_layers: bool,
}

impl std::fmt::Debug for ManifestRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ManifestRule").field(&self.source).finish()
    }
}

impl ManifestRule {
    /// Compiles a rule.
    ///
    /// # Errors
    /// The reason, in one line.
    pub fn compile(source: &str) -> Result<Self, String> {
        if source.len() > RULE_BYTES_MAX {
            return Err(format!("is longer than {RULE_BYTES_MAX} bytes"));
        }
        if source.matches('+').count() > ADDITIONS_MAX {
            return Err(format!("has more than {ADDITIONS_MAX} '+'"));
        }
        let parser = PrattParser::new()
            .max_recursion_depth(DEPTH_MAX as u16)
            .max_expression_node_count(NODES_MAX)
            .error_reporting_limit(1);
        let expression = parser.parse(source).map_err(|errors| {
            let first = errors.errors.first().map_or_else(String::new, |error| error.msg.clone());
            format!("is not a valid CEL expression: {}", one_line(&first))
        })?;
        let mut survey = Survey::default();
        survey.visit(&expression, 0)?;
        if survey.nodes > NODES_MAX {
            return Err(format!("has more than {NODES_MAX} parts"));
        }
        let references = expression.references();
        let known = ["labels", "layers", "media_type", "repo_name"];
        if let Some(unknown) = references
            .variables()
            .into_iter()
            .find(|name| !known.contains(name) && !name.starts_with('@') && !survey.bound.contains(&(*name).to_owned()))
        {
            return Err(format!("uses {unknown:?}, which is none of {}", known.join(", ")));
        }
        let rule = Self {
            source: source.to_owned(),
            sees_labels: references.has_variable("labels"),
            sees_layers: references.has_variable("layers"),
            expression,
        };
        rule.try_out()?;
        Ok(rule)
    }

    /// Whether it looks at labels, so that the image's configuration has to be read.
    pub fn sees_labels(&self) -> bool {
        self.sees_labels
    }

    /// Checks a manifest.
    ///
    /// # Errors
    /// The reason for a refusal, for whoever pushes. A rule that cannot be evaluated refuses.
    pub fn check(&self, facts: &ManifestFacts<'_>) -> Result<(), String> {
        if self.sees_layers && facts.layers.len() > LAYERS_MAX {
            return Err(format!(
                "the manifest has more than {LAYERS_MAX} layers, which this account's rule cannot check"
            ));
        }
        let labels_bytes: usize = facts.labels.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.sees_labels && labels_bytes > LABELS_BYTES_MAX {
            let limit = LABELS_BYTES_MAX;
            return Err(format!("the labels have more than {limit} bytes, which this account's rule cannot check"));
        }
        let source = &self.source;
        match self.evaluate(facts) {
            Ok(Value::Bool(true)) => Ok(()),
            Ok(Value::Bool(false)) => Err(format!("the manifest does not meet this account's rule: {source}")),
            Ok(_) => Err(format!("this account's rule gives no boolean for the manifest: {source}")),
            Err(ExecutionError::NoSuchKey(key)) => {
                Err(format!("this account's rule needs {key:?}, which the manifest does not have: {source}"))
            }
            Err(_) => Err(format!("this account's rule cannot be evaluated for the manifest: {source}")),
        }
    }

    /// Finds what can only be an error for every manifest.
    fn try_out(&self) -> Result<(), String> {
        let labels = BTreeMap::new();
        let facts = ManifestFacts { media_type: "", repository: "", labels: &labels, layers: &[] };
        match self.evaluate(&facts) {
            Ok(Value::Bool(_)) => Ok(()),
            Ok(_) => Err("must give a boolean".to_owned()),
            // An overload or function that does not exist; a label or layer that is not there is no such error.
            Err(ExecutionError::NoSuchOverload(error)) => Err(one_line(&error.to_string())),
            Err(ExecutionError::UndeclaredReference(name)) => Err(format!("uses {name:?}, which does not exist")),
            Err(_) => Ok(()),
        }
    }

    fn evaluate(&self, facts: &ManifestFacts<'_>) -> Result<Value, ExecutionError> {
        let mut context = Context::with_env(ENVIRONMENT.clone());
        context.add_variable_from_value("media_type", facts.media_type);
        context.add_variable_from_value("repo_name", facts.repository);
        let labels: HashMap<String, String> = match self.sees_labels {
            true => facts.labels.clone().into_iter().collect(),
            false => HashMap::new(),
        };
        context.add_variable_from_value("labels", labels);
        let layers: Vec<Value> = match self.sees_layers {
            true => facts.layers.iter().map(layer).collect(),
            false => Vec::new(),
        };
        context.add_variable_from_value("layers", layers);
        Value::resolve(&self.expression, &context)
    }
}

fn layer(descriptor: &Descriptor) -> Value {
    let annotations: HashMap<String, String> = descriptor.annotations.clone().unwrap_or_default().into_iter().collect();
    let fields: HashMap<&str, Value> = HashMap::from([
        ("media_type", Value::from(descriptor.media_type.as_str())),
        ("annotations", Value::from(annotations)),
    ]);
    Value::from(fields)
}

/// The standard functions, with a `matches` whose expressions are bounded.
static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    let global = env.add_overload("matches", "matches", vec![STRING_TYPE, STRING_TYPE], matches);
    let member = env.add_member_overload("matches", "matches_string", STRING_TYPE, vec![STRING_TYPE], matches);
    debug_assert!(global.is_ok() && member.is_ok(), "the crate is built without its own `matches`");
    Arc::new(env)
});

fn matches<'b, 'v>(arguments: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let text = |at: usize| arguments.get(at).and_then(|value| value.downcast_ref::<CelString>());
    let (Some(subject), Some(expression)) = (text(0), text(1)) else {
        return Err(ExecutionError::MissingArgumentOrTarget);
    };
    let regex = pattern::search(expression.inner())
        .map_err(|error| ExecutionError::function_error("matches", format!("the expression {error}")))?;
    Ok(CowVal::owned(CelBool::from(regex.is_match(subject.inner().as_bytes()))))
}

/// Measures an expression.
#[derive(Default)]
struct Survey {
    nodes: usize,
    bound: Vec<String>,
}

impl Survey {
    /// Gives the number of loops inside or after one another.
    fn visit(&mut self, expression: &IdedExpr, depth: usize) -> Result<usize, String> {
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(format!("nests deeper than {DEPTH_MAX} levels"));
        }
        let next = depth + 1;
        let loops = match &expression.expr {
            Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => 0,
            Expr::Select(select) => self.visit(&select.operand, next)?,
            Expr::List(list) => self.most(list.elements.iter(), next)?,
            Expr::Call(call) => {
                if call.func_name == "matches" {
                    match call.args.last().map(|last| &last.expr) {
                        Some(Expr::Literal(LiteralValue::String(text))) => {
                            pattern::search(text.inner()).map_err(|error| format!("{:?} {error}", text.inner()))?;
                        }
                        _ => return Err("uses matches with something else than a text in quotes".to_owned()),
                    }
                }
                self.most(call.target.as_deref().into_iter().chain(&call.args), next)?
            }
            Expr::Map(map) => self.entries(map.entries.iter().map(|entry| &entry.expr), next)?,
            Expr::Struct(fields) => self.entries(fields.entries.iter().map(|entry| &entry.expr), next)?,
            Expr::Comprehension(comprehension) => {
                self.bound.push(comprehension.iter_var.clone());
                self.bound.extend(comprehension.iter_var2.clone());
                self.bound.push(comprehension.accu_var.clone());
                let body = [
                    &comprehension.accu_init,
                    &comprehension.loop_cond,
                    &comprehension.loop_step,
                    &comprehension.result,
                ];
                let range = self.visit(&comprehension.iter_range, next)?;
                // One after another counts like one inside another: the first may lengthen what the second walks.
                1 + range + self.most(body.into_iter(), next)?
            }
        };
        match loops > LOOPS_MAX {
            true => Err(format!("has more than {LOOPS_MAX} loops inside or after one another")),
            false => Ok(loops),
        }
    }

    fn most<'a>(&mut self, parts: impl Iterator<Item = &'a IdedExpr>, depth: usize) -> Result<usize, String> {
        let mut most = 0;
        for part in parts {
            most = most.max(self.visit(part, depth)?);
        }
        Ok(most)
    }

    fn entries<'a>(&mut self, entries: impl Iterator<Item = &'a EntryExpr>, depth: usize) -> Result<usize, String> {
        let mut most = 0;
        for entry in entries {
            let found = match entry {
                EntryExpr::StructField(field) => self.visit(&field.value, depth)?,
                EntryExpr::MapEntry(entry) => self.visit(&entry.key, depth)?.max(self.visit(&entry.value, depth)?),
            };
            most = most.max(found);
        }
        Ok(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layers(count: usize) -> Vec<Descriptor> {
        let digest = keppel_federation::vocabulary::Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        let one = Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            digest,
            size: 1,
            urls: None,
            artifact_type: None,
            annotations: Some(BTreeMap::from([("kind".to_owned(), "base".to_owned())])),
        };
        vec![one; count]
    }

    fn check(rule: &str, labels: &[(&str, &str)], layer_count: usize) -> Result<(), String> {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let layers = layers(layer_count);
        let facts = ManifestFacts { media_type: "a/b", repository: "web/app", labels: &labels, layers: &layers };
        ManifestRule::compile(rule).unwrap().check(&facts)
    }

    #[test]
    fn rules_see_labels_layers_media_type_and_repository() {
        for rule in [
            "'team' in labels && labels['team'] == 'core'",
            "labels.team.startsWith('co')",
            "has(labels.team) && !has(labels.absent)",
            "layers.all(l, l.media_type.endsWith('gzip') && l.annotations['kind'] == 'base')",
            "size(layers) == 3 && layers[0].annotations.kind == 'base'",
            "media_type == 'a/b' && repo_name == 'web/app'",
            "repo_name.matches('^web/') && !repo_name.matches('^api/')",
            "layers.filter(l, l.media_type == 'x').size() == 0",
            "repo_name.startsWith('web/') ? 'team' in labels : true",
        ] {
            assert_eq!(check(rule, &[("team", "core")], 3), Ok(()), "{rule}");
        }
        assert!(check("'team' in labels", &[], 0).unwrap_err().contains("does not meet"));
        assert!(check("labels['team'] == 'core'", &[], 0).unwrap_err().contains("\"team\""));
        assert!(check("layers[7].media_type == ''", &[], 1).is_err());
    }

    #[test]
    fn rules_that_are_wrong_or_too_big_are_refused_with_a_reason() {
        let refusal = |rule: &str| ManifestRule::compile(rule).unwrap_err();
        assert!(refusal("labels['a'").contains("not a valid CEL expression"));
        assert!(refusal("1 + 1").contains("boolean"));
        assert!(refusal("'text'").contains("boolean"));
        assert!(refusal("unknown == 1").contains("unknown"));
        assert!(refusal("frobnicate(labels)").contains("frobnicate"));
        assert!(refusal("repo_name.matches('(')").contains("unclosed group"));
        assert!(refusal("repo_name.matches(labels['x'])").contains("text in quotes"));
        assert!(refusal(&format!("'{}' == ''", "a".repeat(RULE_BYTES_MAX))).contains("longer than"));
        assert!(refusal("layers.all(a, layers.all(b, layers.all(c, a == c)))").contains("loops"));
        assert!(refusal("layers.map(a, a).map(a, a).map(a, a).size() == 0").contains("loops"));
        assert!(refusal(&format!("size(''{}) == 0", "+''".repeat(9))).contains("'+'"));
        assert!(refusal(&format!("{}{} == []", "[".repeat(300), "]".repeat(300))).contains("CEL"));
        assert!(refusal(&vec!["true"; 300].join("==")).contains("nests deeper"));
        assert!(refusal(&format!("labels{} == 1", ".a".repeat(300))).contains("nests deeper"));
        assert!(refusal(&format!("[{}] == []", vec!["1"; 500].join(","))).contains("parts"));
    }

    #[test]
    fn long_runs_of_operators_do_not_exhaust_the_stack() {
        for (open, close) in
            [("(", ")"), ("!", ""), ("-", ""), ("true?", ":true"), ("[", "]"), ("{1:", "}"), ("size(", ")")]
        {
            let length = RULE_BYTES_MAX / (open.len() + close.len()) - 4;
            let _ = ManifestRule::compile(&format!("{}true{}", open.repeat(length), close.repeat(length)));
        }
    }

    #[test]
    fn a_manifest_that_a_rule_cannot_check_in_bounded_time_is_refused() {
        let rule = "layers.all(a, layers.all(b, a.media_type == b.media_type))";
        assert_eq!(check(rule, &[], 40), Ok(()));
        assert!(check(rule, &[], LAYERS_MAX + 1).unwrap_err().contains("layers"));
        assert!(check("'a' in labels", &[("a", &"x".repeat(LABELS_BYTES_MAX))], 0).unwrap_err().contains("labels"));
        assert_eq!(check("media_type == 'a/b'", &[("a", &"x".repeat(LABELS_BYTES_MAX))], LAYERS_MAX + 1), Ok(()));
    }

    #[test]
    fn required_labels_are_the_older_form_of_a_rule_and_shown_only_then() {
        let normalized = |rule: &str, labels: &[&str]| {
            let required_labels = labels.iter().map(|label| (*label).to_owned()).collect();
            Validation { rule_for_manifest: rule.into(), required_labels }.normalized("account.validation")
        };
        let both = normalized("", &["a", "b.c"]).unwrap().unwrap();
        assert_eq!(both.rule_for_manifest, "'a' in labels && 'b.c' in labels");
        assert_eq!(both.required_labels, ["a", "b.c"]);
        assert_eq!(normalized(&both.rule_for_manifest, &[]).unwrap().unwrap(), both);
        assert!(normalized("'a' in labels || 'b' in labels", &[]).unwrap().unwrap().required_labels.is_empty());
        assert_eq!(normalized("", &[]).unwrap(), None);
        let error = normalized("'a' in labels", &["b"]).unwrap_err();
        assert_eq!(error.field, "account.validation.rule_for_manifest");
        let error = normalized("", &["a", "b'"]).unwrap_err();
        assert_eq!(error.field, "account.validation.required_labels[1]");
    }

    proptest! {
        #[test]
        fn no_text_makes_a_rule_panic(rule in "[a-z0-9_ .,'()\\[\\]{}!&|=<>+*?:-]{0,80}") {
            if let Ok(rule) = ManifestRule::compile(&rule) {
                let labels = BTreeMap::new();
                let facts = ManifestFacts { media_type: "a", repository: "b", labels: &labels, layers: &layers(2) };
                let _ = rule.check(&facts);
            }
        }
    }
}
