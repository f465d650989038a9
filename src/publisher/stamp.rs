//! What a message gets before its first attempt.

use std::{sync::Arc, time::SystemTime};

use super::{error::PublishError, telemetry::ContextSource};
use crate::{
    amqp::{ConnectError, ConnectErrorKind},
    message::{Headers, IdStrategy, InvalidMessage, MessageId, OutgoingMessage, Stamped},
};

/// What fits through a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    body: usize,
    headers: usize,
}

/// How many bytes of headers fit into a frame: all properties travel in one. The rest is for those
/// that are not headers, short strings of up to 256 bytes.
pub(super) fn headers_within(frame: usize) -> usize {
    frame.saturating_sub(3_072)
}

impl Limits {
    pub(crate) fn new(body: usize, frame: usize) -> Self {
        Self { body, headers: headers_within(frame) }
    }

    fn check(&self, message: &OutgoingMessage) -> Result<(), InvalidMessage> {
        let bytes = message.payload().len();
        if bytes > self.body {
            return Err(InvalidMessage::BodyTooLarge { bytes, limit: self.body });
        }
        match message.headers().map_or(0, Headers::encoded_len) {
            bytes if bytes > self.headers => {
                Err(InvalidMessage::HeadersTooLong { bytes, limit: self.headers })
            }
            _ => Ok(()),
        }
    }
}

/// Checks messages and gives them their ID and what else they travel with.
#[derive(Debug, Clone)]
pub(crate) struct Stamper {
    strategy: IdStrategy,
    app_id: Option<Arc<str>>,
    trace: ContextSource,
    limits: Limits,
}

impl Stamper {
    pub(crate) fn new(
        strategy: IdStrategy,
        app_id: Option<String>,
        trace: ContextSource,
        limits: Limits,
    ) -> Result<Self, ConnectError> {
        let refused = app_id.as_ref().and_then(|id| match id.len() {
            256.. => Some(format!("the app_id has {} bytes; AMQP allows 255", id.len())),
            _ if id.contains('\0') => Some("the app_id has a zero byte".to_owned()),
            _ => None,
        });
        if let Some(what) = refused {
            return Err(ConnectError::setup(ConnectErrorKind::Setting, what));
        }
        Ok(Self { strategy, app_id: app_id.map(Arc::from), trace, limits })
    }

    /// For messages that are published later, and not here.
    pub(crate) fn unnamed(limits: Limits) -> Self {
        Self { strategy: IdStrategy::default(), app_id: None, trace: ContextSource::default(), limits }
    }

    pub(crate) fn with_strategy(self, strategy: IdStrategy) -> Self {
        Self { strategy, ..self }
    }

    pub(crate) fn with_trace(self, trace: ContextSource) -> Self {
        Self { trace, ..self }
    }

    pub(crate) fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    pub(super) fn strategy(&self) -> &IdStrategy {
        &self.strategy
    }

    /// Checks a message and gives it its ID, once for all attempts.
    pub(super) fn stamp(&self, message: OutgoingMessage) -> Result<Arc<Stamped>, PublishError> {
        match self.try_stamp(message) {
            Ok(stamped) => Ok(Arc::new(stamped)),
            Err(refused) => Err(PublishError::invalid(refused.0, refused.1.into())),
        }
    }

    /// The same for what is not published now. A message that is refused comes back.
    pub(crate) fn try_stamp(
        &self,
        message: OutgoingMessage,
    ) -> Result<Stamped, Box<(OutgoingMessage, InvalidMessage)>> {
        let message = self.trace.add_to(message);
        match self.identify(&message) {
            Ok(id) => {
                let told_by_id =
                    message.is_timed_by_id() || (!message.has_identity() && self.strategy.is_time_ordered());
                let timestamp = message.stamped_at().or_else(|| (!told_by_id).then(SystemTime::now));
                Ok(Stamped::new(message, id, self.app_id.clone(), timestamp))
            }
            Err(invalid) => Err(Box::new((message, invalid))),
        }
    }

    fn identify(&self, message: &OutgoingMessage) -> Result<MessageId, InvalidMessage> {
        message.validate()?;
        self.limits.check(message)?;
        Ok(self.strategy.message_id(message)?)
    }
}
