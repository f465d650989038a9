//! The end of a publisher: one end, however often it is asked for.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{payload::Payload, start::Left};
use crate::message::OutgoingMessage;

/// What the workers may take beyond the limit of a close: one look at the time, two seconds to
/// close a connection, and some more where the machine is busy.
const GRACE: Duration = Duration::from_secs(3);

/// Closes the workers, once.
pub(crate) struct Closing {
    /// By when they must be done.
    pub(crate) limit: watch::Sender<Option<Instant>>,
    /// What they left.
    pub(crate) ended: watch::Receiver<Option<Left>>,
}

impl Closing {
    /// Begins to close, or shortens the time for it, and awaits the end.
    pub(crate) async fn close_by(&self, limit: Instant) -> Result<(), CloseError> {
        self.limit.send_modify(|known| *known = Some(known.map_or(limit, |earlier| earlier.min(limit))));
        let mut ended = self.ended.clone();
        let left = match timeout_at(limit + GRACE, ended.wait_for(Option::is_some)).await {
            Ok(Ok(left)) => left.clone(),
            // The runtime has dropped the workers; or a hook of the application keeps one from
            // ending.
            Ok(Err(_)) | Err(_) => None,
        };
        let Left { payloads, unaccounted } = left.unwrap_or(Left { payloads: Vec::new(), unaccounted: true });
        let messages: Vec<OutgoingMessage> = payloads
            .into_iter()
            .filter_map(|payload| match payload {
                Payload::Stamped(stamped) => Some(Arc::unwrap_or_clone(stamped).message),
                Payload::Forwarded(_) => None,
            })
            .collect();
        if messages.is_empty() && !unaccounted { Ok(()) } else { Err(CloseError { messages, unaccounted }) }
    }
}

/// The time ran out while messages were unconfirmed; they are handed back, with their IDs.
#[derive(Debug, thiserror::Error)]
pub struct CloseError {
    messages: Vec<OutgoingMessage>,
    unaccounted: bool,
}

impl CloseError {
    /// The messages that were not confirmed.
    pub fn messages(&self) -> &[OutgoingMessage] {
        &self.messages
    }

    /// Takes the messages back: to publish them again or to store them. Every call of `close` gets
    /// them; they keep their IDs.
    pub fn into_messages(self) -> Vec<OutgoingMessage> {
        self.messages
    }

    /// Whether more may be unconfirmed than [`messages`](Self::messages) holds.
    ///
    /// So it is when a publishing task did not end: a hook blocks it, it panicked, or the runtime
    /// that connected the publisher is gone. The messages are then with the calls that published
    /// them.
    pub fn is_incomplete(&self) -> bool {
        self.unaccounted
    }
}

impl fmt::Display for CloseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} message(s) were not confirmed before the publisher closed", self.messages.len())?;
        if self.unaccounted {
            f.write_str("; a publishing task did not end, there may be more")
        } else {
            Ok(())
        }
    }
}
