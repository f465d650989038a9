//! One attempt to publish one message.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use lapin::{Channel, Confirmation, options::BasicPublishOptions};
use tokio::time::Instant;

use super::{confirms::Unconfirmed, job::Job};
use crate::{
    message::InvalidMessage,
    publisher::{
        error::PublishErrorKind,
        payload::{Frames, Payload},
        status::Monitor,
        telemetry::AttemptHook,
    },
};

/// Up to which message, in the order of sending, everything has left for the broker.
#[derive(Debug, Default)]
pub(super) struct Written(AtomicU64);

impl Written {
    pub(super) fn up_to(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts an attempt, unless nobody waits for the message any more.
///
/// `headers`: how many bytes of them the broker's frames hold, where that is less than was asked
/// for.
pub(super) fn admit(
    mut job: Job,
    unconfirmed: &mut Unconfirmed,
    monitor: &Monitor,
    headers: Option<usize>,
    now: Instant,
) -> Option<(usize, Frames)> {
    if job.is_abandoned() {
        return None;
    }
    if job.is_overdue(now) {
        job.fail(now);
        return None;
    }
    if let Some(limit) = headers {
        let bytes = job.payload().headers_len();
        if bytes > limit {
            // Sent, it would end the connection.
            let invalid = InvalidMessage::HeadersTooLong { bytes, limit };
            job.fail_with(PublishErrorKind::Invalid, Some(invalid.into()), now);
            return None;
        }
    }
    match job.next_attempt() {
        Ok(frames) => {
            if job.attempts() > 1 {
                monitor.retried();
            }
            Some((unconfirmed.insert(job), frames))
        }
        Err(error) => {
            job.fail_with(PublishErrorKind::Invalid, Some(Box::new(error)), now);
            None
        }
    }
}

/// Shows an attempt to the application's hook.
pub(super) fn show(hook: &AttemptHook, job: &Job, result: Result<(), PublishErrorKind>) {
    if let Payload::Stamped(stamped) = job.payload() {
        hook.call(stamped, job.attempts(), result);
    }
}

/// One attempt: the frames are queued in this future's first poll, `written` learns when they have
/// left, and it ends with the confirm.
///
/// Written out, not an `async fn`, which would keep its arguments a second time: the future is
/// moved once a message, and it is large.
#[inline(always)] // as for `PublishSet::push`
#[allow(clippy::inline_always)]
pub(super) fn publish(
    channel: &Channel,
    (slot, order): (usize, u64),
    frames: Frames,
    mandatory: bool,
    written: &Written,
) -> impl Future<Output = (usize, lapin::Result<Confirmation>)> {
    let Frames { exchange, routing_key, properties, body, mandatory: own } = frames;
    let options = BasicPublishOptions { mandatory: own.unwrap_or(mandatory), immediate: false };
    async move {
        match channel.basic_publish(exchange, routing_key, options, &body, properties).await {
            Ok(confirm) => {
                written.0.fetch_max(order, Relaxed);
                (slot, confirm.await)
            }
            Err(error) => (slot, Err(error)),
        }
    }
}
