//! What a message gets before its first attempt.

use std::{sync::Arc, time::SystemTime};

use super::{error::PublishError, observe::ContextSource};
use crate::{
    amqp::{ConnectError, ConnectErrorKind},
    error::BoxError,
    message::{IdStrategy, InvalidMessage, MessageId, OutgoingMessage, Stamped},
};

/// Checks messages and gives them their ID and what else they travel with.
#[derive(Debug)]
pub(crate) struct Stamper {
    strategy: IdStrategy,
    app_id: Option<Arc<str>>,
    trace: ContextSource,
    max_body: usize,
}

impl Stamper {
    pub(crate) fn new(
        strategy: IdStrategy,
        app_id: Option<String>,
        trace: ContextSource,
        max_body: usize,
    ) -> Result<Self, ConnectError> {
        if let Some(length) = app_id.as_ref().map(String::len).filter(|length| *length > 255) {
            let source: BoxError = format!("the app_id has {length} bytes; AMQP allows 255").into();
            return Err(ConnectError::setup(ConnectErrorKind::Protocol, source));
        }
        Ok(Self { strategy, app_id: app_id.map(Arc::from), trace, max_body })
    }

    pub(super) fn strategy(&self) -> &IdStrategy {
        &self.strategy
    }

    /// Checks a message and gives it its ID, once for all attempts.
    pub(super) fn stamp(&self, message: OutgoingMessage) -> Result<Arc<Stamped>, PublishError> {
        let message = self.trace.add_to(message);
        match self.identify(&message) {
            Ok(id) => {
                let told_by_id = !message.has_identity() && self.strategy.is_time_ordered();
                let timestamp = message.stamped_at().or_else(|| (!told_by_id).then(SystemTime::now));
                Ok(Arc::new(Stamped::new(message, id, self.app_id.clone(), timestamp)))
            }
            Err(invalid) => Err(PublishError::invalid(message, invalid.into())),
        }
    }

    fn identify(&self, message: &OutgoingMessage) -> Result<MessageId, InvalidMessage> {
        message.validate()?;
        let bytes = message.payload().len();
        if bytes > self.max_body {
            return Err(InvalidMessage::BodyTooLarge { bytes, limit: self.max_body });
        }
        Ok(self.strategy.message_id(message)?)
    }
}
