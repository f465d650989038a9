//! What an application sees of single messages: spans, and its own hook.

use std::{fmt, sync::Arc};

use tracing::{Span, field};

use super::{
    error::{PublishError, PublishErrorKind},
    receipt::Receipt,
};
use crate::{
    error::caught_in,
    message::{MessageId, OutgoingMessage, Stamped, TraceContext},
};

/// One attempt to publish a message, and how it ended; what an
/// [`on_attempt`](super::PublisherBuilder::on_attempt) hook is shown.
#[derive(Debug)]
#[non_exhaustive]
pub struct Attempt<'a> {
    /// The message, with its ID.
    pub message: &'a OutgoingMessage,
    /// The ID that all its attempts carry.
    pub message_id: &'a MessageId,
    /// Which attempt it was, from 1.
    pub number: u32,
    /// Confirmed, or why not.
    pub result: Result<(), PublishErrorKind>,
}

type AttemptFn = dyn Fn(&Attempt<'_>) + Send + Sync;
type ContextFn = dyn Fn() -> Option<TraceContext> + Send + Sync;

/// The application's observer of attempts, if there is one.
#[derive(Clone, Default)]
pub(crate) struct AttemptHook(Option<Arc<AttemptFn>>);

impl AttemptHook {
    pub(crate) fn new(observe: impl Fn(&Attempt<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    /// A panic in the hook must not take the channel's task, and with it all messages, down.
    pub(crate) fn call(&self, stamped: &Stamped, number: u32, result: Result<(), PublishErrorKind>) {
        let Some(observe) = &self.0 else { return };
        let attempt = Attempt { message: &stamped.message, message_id: stamped.id(), number, result };
        if let Err(error) = caught_in("the on_attempt hook", || observe(&attempt)) {
            tracing::error!(%error, "an attempt was not shown");
        }
    }
}

impl fmt::Debug for AttemptHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "AttemptHook(set)" } else { "AttemptHook(none)" })
    }
}

/// Where messages without a trace context get theirs from, if anywhere.
#[derive(Clone, Default)]
pub(crate) struct ContextSource(Option<Arc<ContextFn>>);

impl ContextSource {
    pub(crate) fn new(current: impl Fn() -> Option<TraceContext> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(current)))
    }

    /// Adds the current trace context, unless the message has one or there is none.
    pub(crate) fn add_to(&self, message: OutgoingMessage) -> OutgoingMessage {
        match &self.0 {
            Some(current) if !message.has_trace() => match current() {
                Some(context) => message.trace_context(&context),
                None => message,
            },
            _ => message,
        }
    }
}

impl fmt::Debug for ContextSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ContextSource(set)" } else { "ContextSource(none)" })
    }
}

/// The span of one publish, from the call to the verdict. Names are those of OpenTelemetry's
/// messaging conventions.
pub(super) fn span(stamped: &Stamped) -> Span {
    let message = &stamped.message;
    tracing::info_span!(
        "publish",
        otel.kind = "producer",
        messaging.system = "rabbitmq",
        messaging.operation.name = "publish",
        messaging.operation.type = "send",
        messaging.destination.name = message.exchange(),
        messaging.rabbitmq.destination.routing_key = message.routing_key(),
        messaging.message.id = %stamped.id(),
        messaging.message.body.size = message.payload().len(),
        attempts = field::Empty,
        error.type = field::Empty,
        otel.status_code = field::Empty,
    )
}

/// How the publish ended.
pub(super) fn finish(span: &Span, result: Result<&Receipt, &PublishError>) {
    if span.is_disabled() {
        return;
    }
    match result {
        Ok(receipt) => {
            span.record("attempts", receipt.attempts());
        }
        Err(error) => {
            span.record("attempts", error.attempts());
            span.record("error.type", error.kind().name());
            span.record("otel.status_code", "ERROR");
        }
    }
}
