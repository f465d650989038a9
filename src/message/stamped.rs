//! A message that has its ID.

use std::{sync::Arc, time::SystemTime};

use super::{MessageId, OutgoingMessage};

/// A checked message with everything that all its attempts share.
#[derive(Debug, Clone)]
pub(crate) struct Stamped {
    /// The message, which holds the ID and the time of its first publish, so that it keeps both
    /// when it is handed back.
    pub(crate) message: OutgoingMessage,
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
        let mut message = message.message_id(id.clone());
        if let Some(timestamp) = timestamp {
            message = message.timestamp(timestamp);
        }
        Self { message, app_id, id }
    }

    pub(crate) fn id(&self) -> &MessageId {
        &self.id
    }
}
