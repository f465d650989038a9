//! Which confirm belongs to which message, and what it proves.
//!
//! RabbitMQ *acks* an unroutable message, right after it has sent it back with `basic.return`.
//! lapin does not match returns to publishes: it queues them, and hands the oldest one to whichever
//! confirm completes next, walking an ack of several messages in the order of a hash map. With
//! several messages in flight an unroutable one can therefore read `Ack(None)`, and a routed one
//! `Ack(Some(another message))`. This module is the rule that makes sense of it.
//!
//! # Why it is sound
//!
//! Per channel, one task owns every confirm. Three facts hold:
//!
//! 1. The broker sends a message's return before the ack that covers the message.
//! 2. lapin works in one thread, through one confirm after the other: it takes the oldest waiting
//!    return, if there is one, stores the result, and wakes the confirm's future before it touches
//!    the next confirm.
//! 3. A round (see `ready_set.rs`) polls until nothing more is ready, so that it holds every
//!    confirm that completed before any confirm in it.
//!
//! When a confirm completes as `Ack(None)`, no return was waiting at that moment (2). If its own
//! message was returned, the return had come before (1), so it was handed to a confirm that
//! completed earlier, and that one is in this round or was in an earlier one (3). Hence: **first
//! record all returns of the round, then judge**.
//!
//! `Ack(Some(other))` proves that `other` was returned, and says nothing of its own message, whose
//! return may still be waiting behind. Such an answer is *held*: until its own return shows up; or
//! until a confirm completes as `Ack(None)` in a later round, which proves that no return was
//! waiting after it; or until nothing is left unanswered, as there are never more returns than
//! confirms. Later *round*, because within one round the order of completion is not known.
//!
//! A return that matches nothing in flight means that these facts do not hold; the channel is given
//! up, and everything in flight counts as unknown.

use std::collections::HashMap;

use lapin::{Confirmation, message::BasicReturnMessage, types::ShortString};
use slab::Slab;
use tokio::time::{Duration, Instant};

use super::job::{Job, Verdict};
use crate::publisher::error::BrokerReply;

/// The messages that are in flight on one channel.
#[derive(Default)]
pub(crate) struct Unconfirmed {
    slots: Slab<InFlight>,
    held: Vec<usize>,
    sent: u64,
}

struct InFlight {
    job: Job,
    order: u64,
    /// Since when its frames are known to have left for the broker.
    written: Option<Instant>,
    answer: Option<Answer>,
    returned: Option<BrokerReply>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ack,
    Nack,
}

/// The channel broke the rules that verdicts rest on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    #[error("the channel is not in confirm mode")]
    NotInConfirmMode,
    #[error("the broker returned a message that is not in flight")]
    UnmatchedReturn,
}

impl Unconfirmed {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Takes a job in before it is sent; the number stands for it until its verdict.
    pub(crate) fn insert(&mut self, job: Job) -> usize {
        self.sent += 1;
        self.slots.insert(InFlight { job, order: self.sent, written: None, answer: None, returned: None })
    }

    /// The place in the order of sending that the message has which was taken in last.
    pub(crate) fn last_order(&self) -> u64 {
        self.sent
    }

    /// Whether suspects are in flight; nothing else is beside them.
    pub(crate) fn holds_suspects(&self) -> bool {
        self.slots.iter().next().is_some_and(|(_, first)| first.job.is_suspect())
    }

    /// Whether one of them was lost before, and more than once.
    pub(crate) fn holds_lost_again(&self) -> bool {
        self.slots.iter().any(|(_, in_flight)| in_flight.job.is_lost_again())
    }

    /// One of these ended the channel: those that `may` have done it are suspects. Gives how many
    /// they are.
    pub(crate) fn suspect(&mut self, may: impl Fn(&Job) -> bool) -> usize {
        let mut suspects = 0;
        for (_, in_flight) in &mut self.slots {
            if may(&in_flight.job) {
                in_flight.job.suspect();
                suspects += 1;
            }
        }
        suspects
    }

    /// Takes out one that `may` have done it: the only one, by the broker's word. Others can be
    /// suspects since an earlier channel.
    pub(crate) fn take(&mut self, may: impl Fn(&Job) -> bool) -> Option<Job> {
        let slot = self.slots.iter().find(|(_, in_flight)| may(&in_flight.job)).map(|(slot, _)| slot)?;
        self.held.retain(|held| *held != slot);
        Some(self.slots.remove(slot).job)
    }

    /// Judges one round of confirms: everything that was ready, until nothing more was. See the
    /// module's page.
    pub(crate) fn judge(
        &mut self,
        round: impl IntoIterator<Item = (usize, Confirmation)>,
        verdict: &mut impl FnMut(Job, Verdict),
    ) -> Result<(), Violation> {
        let held_before = std::mem::take(&mut self.held);
        let mut clean = Vec::new();
        let mut returns = Vec::new();
        for (slot, confirmation) in round {
            let (answer, returned) = match confirmation {
                Confirmation::Ack(returned) => (Answer::Ack, returned),
                Confirmation::Nack(returned) => (Answer::Nack, returned),
                Confirmation::NotRequested => return Err(Violation::NotInConfirmMode),
            };
            if let Some(in_flight) = self.slots.get_mut(slot) {
                in_flight.answer = Some(answer);
            }
            match returned {
                None => clean.push(slot),
                Some(returned) => {
                    returns.push(returned);
                    self.held.push(slot);
                }
            }
        }
        self.record_returns(&returns)?;
        let nothing_waits = !clean.is_empty();
        for slot in clean {
            self.conclude(slot, verdict);
        }
        if nothing_waits {
            for slot in held_before {
                self.conclude(slot, verdict);
            }
        } else {
            self.held.extend(held_before);
        }
        if !self.held.is_empty() {
            let unanswered = self.slots.len() > self.held.len();
            let held = std::mem::take(&mut self.held);
            for slot in held {
                if !unanswered || self.slots[slot].returned.is_some() {
                    self.conclude(slot, verdict);
                } else {
                    self.held.push(slot);
                }
            }
        }
        Ok(())
    }

    fn record_returns(&mut self, returns: &[BasicReturnMessage]) -> Result<(), Violation> {
        if returns.is_empty() {
            return Ok(());
        }
        // One pass for all of them: each for itself would go through a large set.
        let mut by_id: HashMap<&str, Vec<(&BasicReturnMessage, Vec<usize>)>> = HashMap::new();
        for returned in returns {
            let id = returned.delivery.properties.message_id().as_ref().map_or("", ShortString::as_str);
            by_id.entry(id).or_default().push((returned, Vec::new()));
        }
        for (slot, in_flight) in &self.slots {
            let Some(candidates) = by_id.get_mut(in_flight.job.message_id().unwrap_or_default()) else {
                continue;
            };
            for (returned, matching) in candidates {
                if in_flight.job.was_returned(returned) {
                    matching.push(slot);
                }
            }
        }
        for (returned, mut matching) in by_id.into_values().flatten() {
            if matching.len() > 1 {
                // Copies with other headers may have another route: the one is meant that has most
                // of the returned ones.
                let headers = |slot: &usize| self.slots[*slot].job.headers_in(returned);
                if let Some(most) = matching.iter().filter_map(headers).max() {
                    matching.retain(|slot| headers(slot) == Some(most));
                }
            }
            if matching.is_empty() {
                return Err(Violation::UnmatchedReturn);
            }
            for slot in matching {
                let (code, text) = (returned.reply_code, returned.reply_text.to_string());
                self.slots[slot].returned = Some(BrokerReply { code, text });
            }
        }
        Ok(())
    }

    fn conclude(&mut self, slot: usize, verdict: &mut impl FnMut(Job, Verdict)) {
        let Some(in_flight) = self.slots.try_remove(slot) else { return };
        let found = match (in_flight.returned, in_flight.answer) {
            (Some(returned), _) => Verdict::Returned(returned),
            (None, Some(Answer::Ack)) => Verdict::Confirmed,
            (None, _) => Verdict::Nacked,
        };
        verdict(in_flight.job, found);
    }

    /// Answers the callers whose deadline has come. Their messages stay in flight: a confirm is
    /// never dropped.
    pub(crate) fn sweep_deadlines(&mut self, now: Instant) {
        for (_, in_flight) in &mut self.slots {
            if in_flight.job.is_overdue(now) {
                in_flight.job.give_up_waiting(now);
            }
        }
    }

    /// Starts the clocks of the confirms whose messages are written: all up to number `written` in
    /// the order of sending.
    ///
    /// What still waits behind other frames for a slow link cannot be confirmed yet.
    pub(crate) fn start_clocks(&mut self, written: u64, now: Instant) {
        for (_, in_flight) in &mut self.slots {
            if in_flight.order <= written {
                in_flight.written.get_or_insert(now);
            }
        }
    }

    /// Whether some message has waited for its confirm for longer than `limit`, since it was
    /// written.
    pub(crate) fn is_stuck(&self, now: Instant, limit: Duration) -> bool {
        let late = |in_flight: &InFlight| in_flight.written.is_some_and(|written| now - written > limit);
        self.slots.iter().any(|(_, in_flight)| in_flight.answer.is_none() && late(in_flight))
    }

    /// Starts the clocks of all confirms anew, after a time in which the broker could not answer.
    pub(crate) fn restart_clocks(&mut self, now: Instant) {
        for (_, in_flight) in &mut self.slots {
            if let Some(written) = &mut in_flight.written {
                *written = now;
            }
        }
    }

    /// Ends the set: everything in it with an unknown outcome, in the order in which it was sent,
    /// and since when it is written.
    pub(crate) fn into_unknown(mut self) -> impl Iterator<Item = (Job, Option<Instant>)> {
        let mut left: Vec<InFlight> = self.slots.drain().collect();
        left.sort_unstable_by_key(|in_flight| in_flight.order);
        left.into_iter().map(|in_flight| (in_flight.job, in_flight.written))
    }
}

#[cfg(test)]
mod tests;
