//! The way back to the callers, and what is not answered yet.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{oneshot, watch};

use crate::publisher::error::Failure;

/// What a confirmed publish reports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confirmed {
    pub(crate) attempts: u32,
    pub(crate) elapsed: Duration,
}

pub(crate) type Reply = Result<Confirmed, Failure>;

/// Knows when everything is answered that was handed over before some moment.
///
/// Messages belong to the period that they were handed over in. Each flush begins another one, and
/// waits for those before it.
#[derive(Default)]
pub(crate) struct HandedOver(Mutex<Periods>);

#[derive(Default)]
struct Periods {
    current: Arc<Period>,
    /// Those before it, as far as something of them is unanswered.
    earlier: Vec<watch::Receiver<()>>,
}

/// Is dropped with the last of its answers, and its receivers see that.
#[derive(Default)]
struct Period(watch::Sender<()>);

/// The way back to a caller.
pub(crate) struct Answer {
    sender: oneshot::Sender<Reply>,
    _period: Arc<Period>,
}

impl HandedOver {
    /// For a message that is handed over now.
    pub(crate) fn answer(&self) -> (Answer, oneshot::Receiver<Reply>) {
        let (sender, reply) = oneshot::channel();
        let periods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (Answer { sender, _period: Arc::clone(&periods.current) }, reply)
    }

    /// Pending until everything is answered that was handed over before. Dropped, it leaves nothing
    /// behind.
    pub(crate) async fn flush(&self) {
        for mut unanswered in self.unanswered() {
            while unanswered.changed().await.is_ok() {}
        }
    }

    fn unanswered(&self) -> Vec<watch::Receiver<()>> {
        let mut periods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = std::mem::take(&mut periods.current);
        periods.earlier.push(ended.0.subscribe());
        drop(ended);
        periods.earlier.retain(|period| period.has_changed().is_ok());
        periods.earlier.clone()
    }
}

impl Answer {
    /// Nobody waits for it any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(crate) fn send(self, reply: Reply) {
        // The caller may be gone; the verdict then has no reader.
        let _ = self.sender.send(reply);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, poll};

    use super::*;
    use crate::publisher::{PublishErrorKind, error::Failure};

    fn failed() -> Reply {
        Err(Failure::unsent(PublishErrorKind::Closed, std::time::Duration::ZERO))
    }

    #[tokio::test]
    async fn a_flush_waits_for_what_came_before_it_and_for_nothing_else() {
        let handed = HandedOver::default();
        assert!(handed.flush().now_or_never().is_some(), "nothing was handed over");
        let (before, _reply) = handed.answer();
        let mut flush = Box::pin(handed.flush());
        assert!(poll!(&mut flush).is_pending());
        let (after, _reply) = handed.answer();
        assert!(handed.flush().now_or_never().is_none(), "a cancelled one");
        let mut later = Box::pin(handed.flush());
        assert!(poll!(&mut later).is_pending());
        before.send(failed());
        assert!(poll!(&mut flush).is_ready());
        assert!(poll!(&mut later).is_pending());
        drop(after);
        assert!(poll!(&mut later).is_ready(), "dropped is answered, too");
    }

    #[tokio::test]
    async fn what_is_answered_is_forgotten() {
        let handed = HandedOver::default();
        let (oldest, _reply) = handed.answer();
        for _ in 0..100 {
            drop(handed.answer());
            assert!(handed.flush().now_or_never().is_none(), "the oldest is unanswered");
        }
        assert_eq!(handed.unanswered().len(), 1);
        drop(oldest);
        assert_eq!(handed.unanswered().len(), 0);
    }
}
