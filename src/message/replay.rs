//! What a message says of the replay that it belongs to.

use super::{
    epoch::{Epoch, InvalidEpoch, Taken},
    headers::{HeaderValue, reserved},
    incoming::IncomingMessage,
    outgoing::OutgoingMessage,
};

/// # Replay
impl OutgoingMessage {
    /// Sends this message, which took effect before, so that it does so **once more**, in the
    /// replay of this name: header `x-idempotency-replay`. Give it the ID and the body that it had.
    ///
    /// It is another message then: (scope, ID, epoch), of which each consumer handles one copy,
    /// however many come. A consumer does so only if it was set up for replays
    /// ([`ReplayPolicy`](crate::idempotency::ReplayPolicy)) and the epoch is open in its scope;
    /// otherwise the message is a duplicate, or is parked.
    ///
    /// # Errors
    ///
    /// [`InvalidEpoch`] unless the name has 1 to 128 bytes and no control characters.
    ///
    /// ```
    /// use lapin_idempotent::{MessageId, OutgoingMessage};
    ///
    /// # fn main() -> Result<(), lapin_idempotent::BoxError> {
    /// let again = OutgoingMessage::to("payments", "debit")
    ///     .message_id(MessageId::new("debit/order-42")?)
    ///     .body("500")
    ///     .replay("2026-11-vat-fix")?;
    /// assert_eq!(again.properties().replay, Some("2026-11-vat-fix"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn replay(self, epoch: &str) -> Result<Self, InvalidEpoch> {
        Ok(self.in_epoch(Epoch::new(epoch)?))
    }

    pub(crate) fn in_epoch(mut self, epoch: Epoch) -> Self {
        self.extra_mut().replay = Some(epoch);
        self
    }
}

/// # Replay
impl IncomingMessage {
    /// The epoch that the guard handles this message in, if it is one of a replay: for a handler
    /// that does less the second time, such as send no e-mail.
    ///
    /// `None` before a guard took it, and if the guard takes it for an ordinary message, whatever
    /// its headers say: those anybody can set.
    ///
    /// ```
    /// # use lapin_idempotent::IncomingMessage;
    /// fn sends_mail(message: &IncomingMessage) -> bool {
    ///     message.replay_epoch().is_none()
    /// }
    /// assert!(sends_mail(&IncomingMessage::new("500").with_header("x-idempotency-replay", "forged")));
    /// ```
    pub fn replay_epoch(&self) -> Option<&str> {
        self.taken_epoch().map(Epoch::as_str)
    }

    /// Sets header and epoch, as a delivery has them in a handler that a guard calls: for a test of
    /// a handler without one. Call it after [`with_identity`](Self::with_identity). A guard judges
    /// by the header, and gives its handler its own answer.
    #[must_use]
    pub fn with_replay_epoch(mut self, epoch: Epoch) -> Self {
        self.properties.headers.insert(reserved::REPLAY, epoch.as_str());
        if let Some((_, _, taken)) = self.identity.get_mut() {
            *taken = Some(Taken { epoch, is_first: false });
        }
        self
    }

    pub(crate) fn taken(&self) -> Option<&Taken> {
        self.identity.get()?.2.as_ref()
    }

    pub(crate) fn taken_epoch(&self) -> Option<&Epoch> {
        self.taken().map(|taken| &taken.epoch)
    }

    /// What its header claims.
    pub(crate) fn claimed_epoch(&self) -> Option<&HeaderValue> {
        self.header(reserved::REPLAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_message_keeps_its_epoch() {
        let message = OutgoingMessage::to("e", "k").replay("vat").unwrap();
        let stored = serde_json::to_string(&message).unwrap();
        assert_eq!(serde_json::from_str::<OutgoingMessage>(&stored).unwrap(), message);
        let bad = stored.replace("vat", "");
        assert!(serde_json::from_str::<OutgoingMessage>(&bad).is_err(), "{bad}");
        let properties = message.stored_properties().unwrap().unwrap();
        let read = OutgoingMessage::to("e", "k").with_stored_properties(&properties).unwrap();
        assert_eq!(read.properties().replay, Some("vat"));
    }
}
