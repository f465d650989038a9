//! For how long identities are remembered, and for how long copies may come.

use std::time::Duration;

use crate::idempotency::StalePolicy;

/// What was said of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Retention {
    pub(crate) said: Option<(Duration, StalePolicy)>,
    pub(crate) horizon: Option<Duration>,
}

/// A message could take effect a second time after its ID was forgotten.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidRetention {
    #[error(
        "an ID is forgotten after {retention:?}, but a copy of its message may come for {needed:?} ({horizon:?} as configured and \
         {redeliveries:?} of this consumer's redeliveries): {:?} too short. Remember longer, or promise less with `horizon` or `retry_delays`",
        needed.saturating_sub(*retention)
    )]
    TooShort { retention: Duration, needed: Duration, horizon: Duration, redeliveries: Duration },
    #[error(
        "the consumer relies on a retention of {said:?}, but its store forgets after {store:?}: set the retention on the store"
    )]
    StoreForgets { said: Duration, store: Duration },
    #[error(
        "there is a horizon, but no retention to compare it with: say with `retention` what the store is purged with"
    )]
    Unknown,
}

impl Retention {
    /// What the guard is to go by; `store` is what the store says by itself, `redeliveries` how
    /// long this consumer may take to deliver a message again.
    pub(crate) fn decide(
        &self,
        store: Option<Duration>,
        redeliveries: Duration,
    ) -> Result<Option<(Duration, StalePolicy)>, InvalidRetention> {
        if let (Some((said, _)), Some(store)) = (self.said, store)
            && store < said
        {
            return Err(InvalidRetention::StoreForgets { said, store });
        }
        let decided = self.said.or(store.map(|store| (store, StalePolicy::default())));
        match (decided, self.horizon) {
            (None, Some(_)) => return Err(InvalidRetention::Unknown),
            (Some((retention, _)), said) => {
                let horizon = said.unwrap_or_default();
                let needed = horizon.saturating_add(redeliveries);
                if retention < needed {
                    let short = InvalidRetention::TooShort { retention, needed, horizon, redeliveries };
                    if said.is_some() {
                        return Err(short);
                    }
                    tracing::warn!("{short}");
                }
            }
            (None, None) => {}
        }
        Ok(decided)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn there_is_one_retention_and_a_mismatch_does_not_start() {
        let decide = |said: Option<Duration>, horizon, store| {
            let said = said.map(|said| (said, StalePolicy::Handle));
            Retention { said, horizon }.decide(store, HOUR)
        };
        assert_eq!(decide(None, None, None), Ok(None));
        assert_eq!(
            decide(None, None, Some(9 * HOUR)),
            Ok(Some((9 * HOUR, StalePolicy::Park))),
            "the store's own"
        );
        assert_eq!(decide(Some(8 * HOUR), None, Some(9 * HOUR)), Ok(Some((8 * HOUR, StalePolicy::Handle))));
        let forgets = InvalidRetention::StoreForgets { said: 8 * HOUR, store: 7 * HOUR };
        assert_eq!(decide(Some(8 * HOUR), None, Some(7 * HOUR)), Err(forgets));
        assert_eq!(decide(None, Some(HOUR), None), Err(InvalidRetention::Unknown));
        assert!(decide(None, Some(6 * HOUR), Some(7 * HOUR)).is_ok());
        assert!(matches!(
            decide(None, Some(7 * HOUR), Some(7 * HOUR)),
            Err(InvalidRetention::TooShort { .. })
        ));
        assert!(decide(Some(HOUR / 2), None, None).is_ok(), "only a warning");
    }
}
