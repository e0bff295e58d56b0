use std::str::FromStr;

use keppel_federation::vocabulary::TenantId;

use super::{Authority, Role, UserName};

/// What the users of a password file are by office, since the file says nothing about that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HtpasswdGrant {
    user: Option<UserName>,
    office: Office,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Office {
    Operator,
    Role(TenantId, Role),
}

impl FromStr for HtpasswdGrant {
    type Err = ();

    /// Reads `<user>=operator` or `<user>=<tenant>:<role>`; `*` is every user.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (user, office) = text.split_once('=').ok_or(())?;
        let user = match user {
            "*" => None,
            user => Some(UserName::parse(user).map_err(|_| ())?),
        };
        let office = match office.split_once(':') {
            None if office == "operator" => Office::Operator,
            None => return Err(()),
            Some((tenant, role)) => {
                let role = Role::ALL.into_iter().find(|known| known.as_str() == role).ok_or(())?;
                Office::Role(TenantId::parse(tenant).map_err(|_| ())?, role)
            }
        };
        Ok(Self { user, office })
    }
}

impl std::fmt::Display for HtpasswdGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let user = self.user.as_ref().map_or("*", UserName::as_str);
        match &self.office {
            Office::Operator => write!(f, "{user}=operator"),
            Office::Role(tenant, role) => write!(f, "{user}={tenant}:{}", role.as_str()),
        }
    }
}

/// All that is granted to a user; of several roles in a tenant the highest counts.
pub(super) fn authority_of(user: &UserName, grants: &[HtpasswdGrant]) -> Authority {
    let mut authority = Authority::default();
    for grant in grants.iter().filter(|grant| grant.user.as_ref().is_none_or(|named| named == user)) {
        match &grant.office {
            Office::Operator => authority.operator = true,
            Office::Role(tenant, role) => {
                let held = authority.roles.entry(tenant.clone()).or_insert(*role);
                *held = (*held).max(*role);
            }
        }
    }
    authority
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_are_read_and_written_back() {
        for text in ["alice=operator", "*=operator", "alice=acme:viewer", "bob@example.org=acme:admin", "*=acme:editor"]
        {
            assert_eq!(text.parse::<HtpasswdGrant>().unwrap().to_string(), text);
        }
        for bad in ["", "alice", "alice=", "=operator", "alice=king", "alice=acme:king", "a b=operator", "alice=acme:"]
        {
            assert!(bad.parse::<HtpasswdGrant>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_user_has_what_is_granted_to_them_and_to_all_and_nothing_else() {
        let grants: Vec<HtpasswdGrant> = ["*=acme:viewer", "alice=acme:editor", "alice=other:viewer", "root=operator"]
            .map(|text| text.parse().unwrap())
            .into();
        let of = |name: &str| authority_of(&UserName::parse(name).unwrap(), &grants);
        let (acme, other) = ("acme".parse().unwrap(), "other".parse().unwrap());
        assert_eq!((of("alice").role(&acme), of("alice").role(&other)), (Some(Role::Editor), Some(Role::Viewer)));
        assert_eq!((of("bob").role(&acme), of("bob").role(&other)), (Some(Role::Viewer), None));
        assert!(of("root").operator && !of("alice").operator);
        assert!(authority_of(&UserName::parse("alice").unwrap(), &[]).roles.is_empty());
    }
}
