use std::sync::Arc;

use async_trait::async_trait;

use super::{ActionSet, AuthDriver, AuthError, Authority, Credentials, Identity, Login, Standing};

/// Lets everybody do everything: for development.
#[derive(Debug, Clone)]
pub struct OpenDriver(Arc<Standing>);

impl Default for OpenDriver {
    fn default() -> Self {
        Self(Arc::new(Standing { authority: Authority::operator(), ..Standing::default() }))
    }
}

#[async_trait]
impl AuthDriver for OpenDriver {
    fn name(&self) -> &'static str {
        "open"
    }

    fn is_open(&self) -> bool {
        true
    }

    async fn authenticate(&self, _: &Credentials) -> Result<Login, AuthError> {
        Ok(Login { identity: Identity::Anonymous, credential: None, limit: ActionSet::ALL, ends_at: None })
    }

    fn stamp(&self, _: &str) -> u64 {
        0
    }

    fn standing(&self, _: &Identity) -> Option<Arc<Standing>> {
        Some(self.0.clone())
    }
}
