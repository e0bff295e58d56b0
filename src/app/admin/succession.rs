//! What operators ask about one primary after another.

use std::time::Duration;

use keppel_federation::Federation;

use super::server::in_words;
use super::{Answer, CandidateInfo, Request};
use crate::peering::succession::{self, Candidate, Way};
use crate::registry::Registry;

/// How long one request pushes what only this node has.
const PUSH_STEP: Duration = Duration::from_secs(20);

/// Carries one of these out; others are refused.
pub(super) async fn carry_out(
    federation: &Federation,
    registry: &Registry,
    request: Request,
) -> Result<Answer, String> {
    match request {
        Request::FindCandidate { account, region } => {
            let found = succession::find_candidate(federation, registry, &account, &region).await?;
            let Candidate { node, region, epoch, primary, primary_answers, readiness } = found;
            let candidate = CandidateInfo { node, region, epoch, primary, primary_answers, readiness };
            Ok(Answer::Candidate { candidate })
        }
        Request::Prepare { account, node } => {
            let readiness = succession::prepare(federation, registry, &account, node).await?;
            Ok(Answer::Prepared { readiness })
        }
        Request::Install { account, node, epoch, by_force, regardless } => {
            let way = match (by_force, regardless) {
                (false, _) => Way::Move,
                (true, false) => Way::FailOver,
                (true, true) => Way::FailOverRegardless,
            };
            let epoch = succession::install(federation, registry, &account, node, epoch, way).await?;
            Ok(Answer::Moved { epoch })
        }
        Request::ListDivergent { account, limit } => {
            let (entries, count) = registry.list_divergent(&account, limit).await.map_err(in_words)?;
            Ok(Answer::Divergent { entries, count })
        }
        Request::PushDivergent { account } => {
            let outcome = registry.push_divergent(&account, PUSH_STEP).await.map_err(in_words)?;
            Ok(Answer::PushedAgain { outcome })
        }
        Request::DropDivergent { account } => {
            let count = registry.drop_divergent(&account).await.map_err(in_words)?;
            Ok(Answer::Dropped { count })
        }
        _ => Err("that is not about one primary after another".to_owned()),
    }
}
