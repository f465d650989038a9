//! One attempt to publish one message.

use std::future::Future;

use lapin::{Channel, Confirmation, options::BasicPublishOptions};
use tokio::time::Instant;

use super::{
    confirms::Window,
    error::PublishErrorKind,
    job::{Frames, Job, Payload},
    observe::AttemptHook,
    status::Monitor,
};

/// Counts an attempt, unless nobody waits for the message any more.
pub(super) fn admit(
    mut job: Job,
    window: &mut Window,
    monitor: &Monitor,
    now: Instant,
) -> Option<(usize, Frames)> {
    if job.is_abandoned() {
        return None;
    }
    if job.is_overdue(now) {
        job.fail(now);
        return None;
    }
    match job.next_attempt() {
        Ok(frames) => {
            if job.attempts() > 1 {
                monitor.retried();
            }
            Some((window.insert(job, now), frames))
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

/// One attempt: the frames are queued in this future's first poll, and it ends with the confirm.
///
/// Written out, not an `async fn`, which would keep its arguments a second time: the future is moved once a message, and it
/// is large.
#[inline(always)] // as for `InProgress::push`
#[allow(clippy::inline_always)]
pub(super) fn publish(
    channel: &Channel,
    slot: usize,
    frames: Frames,
    mandatory: bool,
) -> impl Future<Output = (usize, lapin::Result<Confirmation>)> {
    let Frames { exchange, routing_key, properties, body, mandatory: own } = frames;
    let options = BasicPublishOptions { mandatory: own.unwrap_or(mandatory), immediate: false };
    async move {
        match channel.basic_publish(exchange, routing_key, options, &body, properties).await {
            Ok(confirm) => (slot, confirm.await),
            Err(error) => (slot, Err(error)),
        }
    }
}
