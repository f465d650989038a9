//! A message that has its ID.

use std::{sync::Arc, time::SystemTime};

use super::{MessageId, OutgoingMessage};

/// A checked message with everything that all its attempts share.
#[derive(Debug, Clone)]
pub(crate) struct Stamped {
    /// The message, which holds the ID, so that it keeps it when it is handed back.
    pub(crate) message: OutgoingMessage,
    /// The AMQP property; none if the ID alone says when.
    pub(crate) timestamp: Option<SystemTime>,
    pub(crate) app_id: Option<Arc<str>>,
    id: MessageId,
}

impl Stamped {
    pub(crate) fn new(
        message: OutgoingMessage,
        id: MessageId,
        app_id: Option<Arc<str>>,
        timestamp: Option<SystemTime>,
    ) -> Self {
        let message = message.message_id(id.clone());
        Self { message, timestamp, app_id, id }
    }

    pub(crate) fn id(&self) -> &MessageId {
        &self.id
    }
}
