//! Questions under way, so that many who want to know the same thing cost one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;

use super::freshness::Key;
use crate::external::ExternalError;

type Answer<T> = Result<T, ExternalError>;

pub(super) struct Questions<T> {
    under_way: Mutex<HashMap<Key, Weak<OnceCell<Answer<T>>>>>,
}

impl<T> Default for Questions<T> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

impl<T: Clone> Questions<T> {
    /// Asks, or waits for the answer of the one who is asking. The answer is for those who waited; the next asks anew.
    ///
    /// Cancel safety: when the one who asks is dropped, another who waits asks.
    pub(super) async fn ask<F>(&self, key: &Key, ask: impl FnOnce() -> F) -> Answer<T>
    where
        F: Future<Output = Answer<T>>,
    {
        let question = {
            let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
            match under_way.get(key).and_then(Weak::upgrade).filter(|question| !question.initialized()) {
                Some(question) => question,
                None => {
                    under_way.retain(|_, question| question.strong_count() > 0);
                    let question = Arc::new(OnceCell::new());
                    under_way.insert(key.clone(), Arc::downgrade(&question));
                    question
                }
            }
        };
        question.get_or_init(ask).await.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;
    use keppel_federation::vocabulary::{Reference, RepositoryName};

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_a_time_cost_one_question_and_the_next_asks_anew() {
        let (questions, asked) = (Questions::default(), AtomicUsize::new(0));
        let key = Key::new(&RepositoryName::parse("m/app").unwrap(), &Reference::parse("v1").unwrap());
        let ask = || async {
            tokio::task::yield_now().await;
            Ok(asked.fetch_add(1, Ordering::SeqCst))
        };
        let answers = join_all((0..20).map(|_| questions.ask(&key, ask))).await;
        assert!(answers.into_iter().all(|answer| answer == Ok(0)));
        assert_eq!(questions.ask(&key, ask).await, Ok(1));
    }

    #[tokio::test]
    async fn those_who_wait_ask_when_the_one_who_asked_goes_away() {
        let questions = Questions::default();
        let key = Key::new(&RepositoryName::parse("m/app").unwrap(), &Reference::parse("v1").unwrap());
        let mut first = Box::pin(questions.ask(&key, std::future::pending::<Answer<u8>>));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(questions.ask(&key, || async { Ok(2) }));
        assert!((&mut second).now_or_never().is_none(), "it waits for the first");
        drop(first);
        let answer = second.await;
        assert_eq!(answer, Ok(2));
    }
}
