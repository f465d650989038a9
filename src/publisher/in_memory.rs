//! Verdicts without a broker, for the publisher of tests: stamping as ever, and an answer made up.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    builder::{FRAME_MAX, MAX_BODY},
    error::{Failure, PublishError, PublishErrorKind},
    payload::{Frames, Payload},
    receipt::Receipt,
    stamp::{Limits, Stamper},
};
use crate::{
    amqp::{Answer, Kept, MemoryBroker},
    message::{OutgoingMessage, Stamped},
};

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

/// What an answer of a broker in memory means for what was sent.
pub(crate) fn verdict(answer: Answer) -> Result<(), PublishErrorKind> {
    match answer {
        Answer::Confirmed => Ok(()),
        Answer::Nacked => Err(PublishErrorKind::Nacked),
        Answer::Returned => Err(PublishErrorKind::Unroutable),
        Answer::Unheard => Err(PublishErrorKind::TimedOut),
    }
}

impl Unanswered {
    /// Sends it to a broker in memory: again after a nack or a lost confirm, so often at most.
    pub(crate) async fn sent_to(self, broker: &MemoryBroker, attempts: u32) -> Result<Receipt, PublishError> {
        let (payload, started) = (Payload::Stamped(Arc::clone(&self.0)), Instant::now());
        let (mut sent, mut uncertain) = (0, false);
        let kind = loop {
            sent += 1;
            let Ok(Frames { exchange, routing_key, properties, body, mandatory }) = payload.frames(sent)
            else {
                // It was validated.
                break PublishErrorKind::Invalid;
            };
            let kept = Kept::new(&exchange, &routing_key, properties, body);
            let kind = match verdict(broker.publish(kept, mandatory.unwrap_or(true)).await) {
                Ok(()) => return Ok(Receipt::new(self.0.id().clone(), sent, started.elapsed())),
                Err(kind) => kind,
            };
            if kind == PublishErrorKind::Unroutable {
                break kind;
            }
            uncertain = true;
            if sent >= attempts {
                break kind;
            }
        };
        let failure = Failure { attempts: sent, uncertain, ..Failure::unsent(kind, started.elapsed()) };
        Err(PublishError::new(failure, self.0))
    }

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
