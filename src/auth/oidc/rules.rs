//! The rules of the configuration: which group has which role, which workload is which robot.

use std::str::FromStr;

use keppel_federation::vocabulary::{AccountName, TenantId};

use super::claims::{ClaimSet, texts};
use super::is_usable_url;
use crate::auth::role::RobotGrant;
use crate::auth::{Action, ActionSet, Authority, RobotName, Role, Standing};
use crate::model::policy::Pattern;

/// What the members of a group are: `GROUP=operator` or `GROUP=TENANT:ROLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRule {
    group: String,
    /// `None`: they run the registry.
    role: Option<(TenantId, Role)>,
}

impl GroupRule {
    /// The group, as it stands in the claim.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// Adds what the rule gives to what someone is.
    pub(super) fn apply(&self, groups: &[String], authority: &mut Authority) {
        if !groups.contains(&self.group) {
            return;
        }
        match &self.role {
            None => authority.operator = true,
            Some((tenant, role)) => {
                let known = authority.roles.entry(tenant.clone()).or_insert(*role);
                *known = (*known).max(*role);
            }
        }
    }
}

impl FromStr for GroupRule {
    type Err = ();

    /// The last equals sign counts: names of groups may hold some.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (group, what) = text.rsplit_once('=').ok_or(())?;
        if group.trim().is_empty() {
            return Err(());
        }
        let role = match what.trim() {
            "operator" => None,
            what => {
                let (tenant, role) = what.split_once(':').ok_or(())?;
                let role = match role {
                    "viewer" => Role::Viewer,
                    "editor" => Role::Editor,
                    "admin" => Role::Admin,
                    _ => return Err(()),
                };
                Some((TenantId::parse(tenant).map_err(drop)?, role))
            }
        };
        Ok(Self { group: group.trim().to_owned(), role })
    }
}

impl std::fmt::Display for GroupRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = |role: &Role| match role {
            Role::Viewer => "viewer",
            Role::Editor => "editor",
            Role::Admin => "admin",
        };
        match &self.role {
            None => write!(f, "{}=operator", self.group),
            Some((tenant, word)) => write!(f, "{}={tenant}:{}", self.group, role(word)),
        }
    }
}

/// Which tokens of workloads are accepted, and as which robot: words such as
/// `issuer=URL audience=NAME claim.sub=REGEX robot=TENANT+NAME allow=pull+push repository=REGEX account=NAME`.
#[derive(Debug, Clone)]
pub struct WorkloadRule {
    text: String,
    /// Names the rule in tokens, so that they end when it changes.
    id: String,
    pub(super) issuer: String,
    pub(super) audience: String,
    claims: Vec<(String, Pattern)>,
    pub(super) robot: RobotName,
    grants: Vec<RobotGrant>,
}

impl WorkloadRule {
    /// Who is let in by it.
    pub fn robot(&self) -> &RobotName {
        &self.robot
    }

    /// The credential that tokens name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether the rule is about a token whose issuer was checked.
    pub(super) fn matches(&self, issuer: &str, claims: &ClaimSet) -> bool {
        self.issuer == issuer
            && texts(claims, "aud").contains(&self.audience)
            && self.claims.iter().all(|(name, pattern)| texts(claims, name).iter().any(|text| pattern.matches(text)))
    }

    /// How the robot stands.
    pub(super) fn standing(&self) -> Standing {
        Standing {
            authority: Authority { operator: false, roles: Default::default(), grants: self.grants.clone() },
            epoch: 0,
            credentials: vec![(self.id.clone(), None)],
        }
    }
}

impl PartialEq for WorkloadRule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for WorkloadRule {}

impl std::fmt::Display for WorkloadRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for WorkloadRule {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (mut issuer, mut audience, mut robot, mut account) = (None, None, None, None);
        let (mut claims, mut repositories) = (Vec::new(), Vec::new());
        let mut allow = None;
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or(())?;
            if value.is_empty() {
                return Err(());
            }
            let taken = match key {
                "issuer" => issuer.replace(value).is_some() || !is_usable_url(value),
                "audience" => audience.replace(value).is_some(),
                "robot" => robot.replace(RobotName::parse(value).map_err(drop)?).is_some(),
                "account" => account.replace(AccountName::parse(value).map_err(drop)?).is_some(),
                "allow" => allow.replace(actions(value)?).is_some(),
                "repository" => {
                    repositories.push(Pattern::new(value).map_err(drop)?);
                    false
                }
                key => {
                    let name = key.strip_prefix("claim.").filter(|name| !name.is_empty()).ok_or(())?;
                    claims.push((name.to_owned(), Pattern::new(value).map_err(drop)?));
                    false
                }
            };
            if taken {
                return Err(());
            }
        }
        // An issuer that serves everybody must not be let in as a whole by mistake.
        if claims.is_empty() {
            return Err(());
        }
        if repositories.is_empty() {
            repositories.push(Pattern::new(".*").map_err(drop)?);
        }
        let (robot, allow) = (robot.ok_or(())?, allow.unwrap_or_else(|| [Action::Pull].into_iter().collect()));
        let grant = |repository| RobotGrant {
            tenant: robot.tenant().clone(),
            account: account.clone(),
            repository,
            actions: allow,
        };
        let grants = repositories.into_iter().map(grant).collect();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let id = format!("rule:{}", &blake3::hash(text.as_bytes()).to_hex()[..16]);
        let (issuer, audience) = (issuer.ok_or(())?.to_owned(), audience.ok_or(())?.to_owned());
        Ok(Self { id, issuer, audience, claims, robot, grants, text })
    }
}

fn actions(text: &str) -> Result<ActionSet, ()> {
    let action = |word| match word {
        "pull" => Ok(Action::Pull),
        "push" => Ok(Action::Push),
        "delete" => Ok(Action::Delete),
        _ => Err(()),
    };
    text.split('+').map(action).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const RULE: &str = "issuer=https://ci.example audience=keppel claim.sub=repo:acme/.*:ref:refs/heads/main \
                        robot=acme+ci allow=pull+push repository=web repository=api/.* account=acme-prod";

    #[test]
    fn a_rule_lets_in_what_fits_all_its_words() {
        let rule: WorkloadRule = RULE.parse().unwrap();
        assert_eq!(rule.to_string().parse::<WorkloadRule>().unwrap(), rule);
        let fits = |issuer: &str, claims: serde_json::Value| rule.matches(issuer, claims.as_object().unwrap());
        let sub = "repo:acme/web:ref:refs/heads/main";
        assert!(fits("https://ci.example", json!({"aud": ["x", "keppel"], "sub": sub})));
        assert!(!fits("https://ci.example/", json!({"aud": "keppel", "sub": sub})));
        assert!(!fits("https://ci.example", json!({"aud": "other", "sub": sub})));
        assert!(!fits("https://ci.example", json!({"aud": "keppel"})));
        assert!(!fits("https://ci.example", json!({"aud": "keppel", "sub": format!("x{sub}")})));
        assert!(!fits("https://ci.example", json!({"aud": "keppel", "sub": format!("{sub}\nx")})));
        let standing = rule.standing();
        assert_eq!(standing.authority.grants.len(), 2);
        assert!(standing.honours(0, Some(rule.id()), 0) && !standing.honours(0, Some("rule:0"), 0));
    }

    #[test]
    fn rules_that_let_in_too_much_or_say_nothing_are_refused() {
        for (cut, put) in [
            ("issuer=https://ci.example ", ""),
            ("https://", "http://"),
            ("audience=keppel ", ""),
            ("claim.sub=repo:acme/.*:ref:refs/heads/main ", ""),
            ("claim.sub=", "claim.="),
            ("claim.sub=", "claims.sub="),
            ("robot=acme+ci", ""),
            ("robot=acme+ci", "robot=acme"),
            ("pull+push", "pull+fly"),
            ("repository=web", "repository=("),
            ("audience=keppel", "audience="),
            ("audience=keppel", "audience=a audience=b"),
            ("audience=keppel", "audience"),
        ] {
            assert!(RULE.contains(cut));
            assert!(RULE.replace(cut, put).parse::<WorkloadRule>().is_err(), "{cut:?} -> {put:?}");
        }
    }

    #[test]
    fn groups_give_roles_and_the_highest_counts() {
        let rules =
            ["cn=ops,dc=x=operator", "dev=acme:editor", "lead=acme:admin"].map(|r| r.parse::<GroupRule>().unwrap());
        for rule in &rules {
            assert_eq!(rule.to_string().parse::<GroupRule>().unwrap(), *rule);
        }
        let of = |groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
            let mut authority = Authority::default();
            rules.iter().for_each(|rule| rule.apply(&groups, &mut authority));
            (authority.operator, authority.role(&"acme".parse().unwrap()))
        };
        assert_eq!(of(&["lead", "dev"]), (false, Some(Role::Admin)));
        assert_eq!(of(&["dev", "cn=ops,dc=x"]), (true, Some(Role::Editor)));
        assert_eq!(of(&["Dev", "de", "ops"]), (false, None));
        for bad in ["", "dev", "=operator", "dev=acme", "dev=acme:king", "dev=ACME/:editor", "dev=Operator"] {
            assert!(bad.parse::<GroupRule>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_rule_panic(text in ".{0,80}") {
            let _ = text.parse::<GroupRule>();
            let _ = text.parse::<WorkloadRule>();
            let _ = format!("{RULE} {text}").parse::<WorkloadRule>();
        }
    }
}
