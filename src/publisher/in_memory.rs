//! Verdicts without a broker, for the publisher of tests: stamping as ever, and an answer made up.

use std::{sync::Arc, time::Duration};

use super::{
    builder::{FRAME_MAX, MAX_BODY},
    error::{Failure, PublishError, PublishErrorKind},
    receipt::Receipt,
    stamp::{Limits, Stamper},
};
use crate::message::{OutgoingMessage, Stamped};

/// Checks and stamps messages with the defaults of a publisher.
#[derive(Debug)]
pub(crate) struct MemoryPublish(Stamper);

/// A message that was stamped, and waits for its verdict.
#[derive(Debug)]
pub(crate) struct Unanswered(Arc<Stamped>);

impl Default for MemoryPublish {
    fn default() -> Self {
        Self(Stamper::unnamed(Limits::new(MAX_BODY, FRAME_MAX as usize)))
    }
}

impl MemoryPublish {
    pub(crate) fn stamp(&self, message: OutgoingMessage) -> Result<Unanswered, PublishError> {
        self.0.stamp(message).map(Unanswered)
    }
}

impl Unanswered {
    pub(crate) fn message(&self) -> &OutgoingMessage {
        &self.0.message
    }

    /// The verdict, as if after one attempt.
    pub(crate) fn answered(
        self,
        result: Result<(), PublishErrorKind>,
        elapsed: Duration,
    ) -> Result<Receipt, PublishError> {
        match result {
            Ok(()) => Ok(Receipt::new(self.0.id().clone(), 1, elapsed)),
            Err(kind) => {
                let uncertain = matches!(
                    kind,
                    PublishErrorKind::Nacked
                        | PublishErrorKind::TimedOut
                        | PublishErrorKind::Disconnected
                        | PublishErrorKind::Closed
                );
                let failure = Failure { attempts: 1, uncertain, ..Failure::unsent(kind, elapsed) };
                Err(PublishError::new(failure, self.0))
            }
        }
    }
}
