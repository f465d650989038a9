//! A message that has its ID.

use std::{sync::Arc, time::SystemTime};

use super::{Fingerprint, MessageId, OutgoingMessage};

/// A checked message with everything that all its attempts share.
#[derive(Debug, Clone)]
pub(crate) struct Stamped {
    /// The message, which holds the ID, so that it keeps it when it is handed back.
    pub(crate) message: OutgoingMessage,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) timestamp: SystemTime,
    pub(crate) app_id: Option<Arc<str>>,
    id: MessageId,
}

impl Stamped {
    pub(crate) fn new(
        message: OutgoingMessage,
        id: MessageId,
        app_id: Option<Arc<str>>,
        now: SystemTime,
    ) -> Self {
        let fingerprint = Fingerprint::of(message.payload());
        let timestamp = message.stamped_at().unwrap_or(now);
        let message = message.message_id(id.clone());
        Self { message, fingerprint, timestamp, app_id, id }
    }

    pub(crate) fn id(&self) -> &MessageId {
        &self.id
    }
}
