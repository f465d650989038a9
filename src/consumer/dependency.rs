//! Whether what a handler depends on is there, as far as the handler says.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Health;

/// How long one message is tried before another is, too: it may be that one whose handler hangs.
const TRIAL: Duration = Duration::from_secs(10);

/// What handled messages say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// A handler ran, and did not say that it is away.
    Works,
    /// A handler said that it is away.
    Away,
    /// Nothing: no handler ran, or it was ended before it could say.
    None,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It is away, and is left alone for so long.
    Away(Duration),
    Back,
}

/// While it is away nothing is taken; then one message is tried before all others.
#[derive(Debug, Default)]
pub(super) struct DependencyHealth {
    health: Health,
    /// What began before that tells nothing of now.
    since: Option<Instant>,
    /// When the last trial began, if it has not ended.
    trial: Option<Instant>,
}

impl DependencyHealth {
    /// Something is handed to the handler: what is tried, while it is in doubt.
    pub(super) fn begins(&mut self) {
        if self.is_doubtful() {
            self.trial = Some(Instant::now());
        }
    }

    /// What began then has ended.
    pub(super) fn ended(&mut self, begun: Instant, evidence: Evidence) -> Option<News> {
        if self.is_away() || self.since.is_some_and(|since| begun < since) {
            return None;
        }
        self.trial = None;
        match evidence {
            Evidence::Away => Some(News::Away(self.health.failed())),
            Evidence::Works if self.health.works() => {
                self.since = Some(begun);
                Some(News::Back)
            }
            Evidence::Works | Evidence::None => None,
        }
    }

    /// The pause is over.
    pub(super) fn resume(&mut self) {
        self.health.resume();
        self.since = Some(Instant::now());
    }

    /// Whether something may be handed to the handler: while it is in doubt, one message, and
    /// another one if that takes long.
    pub(super) fn allows(&self) -> bool {
        !self.is_away() && self.trial.is_none_or(|trial| trial.elapsed() >= TRIAL)
    }

    /// Whether nothing is to be taken.
    pub(super) fn is_away(&self) -> bool {
        self.health.is_away()
    }

    /// Whether it was away last, and nothing has shown yet that it is back.
    pub(super) fn is_doubtful(&self) -> bool {
        self.health.is_doubtful()
    }

    /// Whether a message is tried.
    pub(super) fn is_tried(&self) -> bool {
        self.trial.is_some()
    }

    /// When to try again, if it is away.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.health.retry_at()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const STEP: Duration = Duration::from_millis(1);

    async fn now() -> Instant {
        advance(STEP).await;
        Instant::now()
    }

    fn pause(news: Option<News>) -> Duration {
        match news {
            Some(News::Away(pause)) => pause,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dependency_is_in_doubt_until_a_handler_could_use_it() {
        let mut dependency = DependencyHealth::default();
        let before = now().await;
        dependency.begins();
        assert_eq!(dependency.ended(before, Evidence::Works), None, "no news");
        assert!(pause(dependency.ended(before, Evidence::Away)) <= Duration::from_millis(200));
        assert!(dependency.is_away() && dependency.retry_at().is_some() && !dependency.allows());
        assert_eq!(dependency.ended(before, Evidence::Away), None, "said already");
        let early = now().await;
        advance(STEP).await;
        dependency.resume();
        assert!(!dependency.is_away() && dependency.is_doubtful() && dependency.allows());
        dependency.begins();
        let tried = now().await;
        assert!(!dependency.allows() && dependency.is_tried(), "one at a time");
        for evidence in [Evidence::Works, Evidence::Away, Evidence::None] {
            assert_eq!(dependency.ended(early, evidence), None, "that one had begun before");
            assert!(!dependency.allows());
        }
        assert_eq!(dependency.ended(tried, Evidence::None), None);
        assert!(dependency.allows() && dependency.is_doubtful(), "its handler did not run");
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            dependency.begins();
            longest = longest.max(pause(dependency.ended(now().await, Evidence::Away)));
            dependency.resume();
        }
        assert!(longest > Duration::from_secs(2) && longest <= Duration::from_secs(5), "{longest:?}");
        dependency.begins();
        let tried = now().await;
        assert_eq!(dependency.ended(tried, Evidence::Works), Some(News::Back));
        assert!(!dependency.is_doubtful() && !dependency.is_tried() && dependency.allows());
        assert_eq!(dependency.ended(tried - STEP, Evidence::Away), None, "it had begun before it was back");
        assert!(pause(dependency.ended(tried, Evidence::Away)) <= Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn trial_that_takes_long_is_not_waited_for() {
        let mut dependency = DependencyHealth::default();
        pause(dependency.ended(now().await, Evidence::Away));
        dependency.resume();
        dependency.begins();
        let long = now().await;
        assert!(!dependency.allows());
        advance(TRIAL).await;
        assert!(dependency.allows(), "another one beside it");
        dependency.begins();
        assert!(!dependency.allows());
        assert_eq!(dependency.ended(long, Evidence::Works), Some(News::Back), "it began after the pause");
    }
}
