//! One channel's life, as far as it matters to the next.

use std::time::Duration;

use tokio::time::Instant;

use super::job::Job;

/// How often one message must be nacked on a channel before another channel is tried.
const NACKS: u32 = 3;

/// How long a channel lives before it is given up for its nacks.
const TRIAL: Duration = Duration::from_secs(3);

/// Counts generations, and tells when one is worn.
///
/// A nack is the queue's word: it is full, or its leader is moving. But a channel of RabbitMQ that
/// has first published to a quorum queue while its leader was dead can go on to nack everything for
/// that queue, although there has long been a new leader (seen on 3.10.8, for as long as the
/// channel lived). A new channel looks the leader up again.
#[derive(Debug, Default)]
pub(crate) struct NackWatch {
    number: u64,
    since: Option<Instant>,
    worn: bool,
    /// Answers of the broker: all that were ever heard, and those before this generation.
    heard: u64,
    heard_before: u64,
    /// How many before it ended without an answer, one after the other.
    fruitless: u32,
}

impl NackWatch {
    pub(crate) fn begin(&mut self, now: Instant) {
        *self = Self {
            number: self.number + 1,
            since: Some(now),
            worn: false,
            heard_before: self.heard,
            ..*self
        };
    }

    /// Notes answers of the broker.
    pub(crate) fn hears(&mut self, answers: usize) {
        self.heard += answers as u64;
    }

    /// How many answers there were, in all generations.
    pub(crate) fn heard(&self) -> u64 {
        self.heard
    }

    /// Its connection ended. Gives how many did so one after the other without a single answer; 0
    /// if this one had some.
    pub(crate) fn lost(&mut self) -> u32 {
        self.fruitless = if self.heard == self.heard_before { self.fruitless.saturating_add(1) } else { 0 };
        self.fruitless
    }

    /// Notes that a message was nacked.
    pub(crate) fn nacked(&mut self, job: &mut Job, now: Instant) {
        let on_trial = self.since.is_some_and(|since| now - since < TRIAL);
        if job.count_nack(self.number) >= NACKS && !on_trial {
            self.worn = true;
        }
    }

    /// Whether to stop sending and, once nothing is in flight, to try another channel.
    pub(crate) fn is_worn(&self) -> bool {
        self.worn
    }
}
