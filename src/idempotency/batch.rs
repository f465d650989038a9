//! Several messages in one session: group commit.
//!
//! One claim, one session, one commit. Whatever goes wrong with one message goes wrong for all of
//! them then, so the batch is run again one message in each session, in order: a bad message never
//! fails its neighbours. No savepoints.

use std::collections::{HashMap, hash_map::Entry};

use super::{
    claim::{Claim, ClaimRequest, Claims},
    guard::Guard,
    handler::IdempotentHandler,
    identity::{Identified, identified, known_as},
    outcome::Outcome,
    store::{IdempotencyStore, StoreError, StoreErrorKind},
};
use crate::{
    error::Chain,
    message::{IncomingMessage, MessageId},
};

/// What became of a batch.
pub(crate) struct Batch {
    /// In the order of the messages.
    pub(crate) outcomes: Vec<Outcome>,
    /// Whether one session held them all; if not, they were handled one by one.
    pub(crate) together: bool,
}

/// The messages of a batch by identity.
struct Requested<'m> {
    requests: Vec<ClaimRequest>,
    /// The first message of each request.
    first: Vec<Identified<'m>>,
    /// What each message is.
    roles: Vec<Role>,
}

enum Role {
    /// It has its outcome: no ID, or one that cannot be used.
    Decided(Outcome),
    /// The first one with its identity: the request of this index.
    First(usize),
    /// A copy of an earlier one in the same batch.
    Copy(usize),
}

/// Why a batch has no common outcome.
enum Apart {
    /// It is to be run one by one.
    OneByOne,
    /// The store refuses one of the identities, and nothing was begun: it is to be run by halves.
    Halves,
}

impl<S: IdempotencyStore> Guard<S> {
    /// Runs the handler on several messages, if the store can hold them in one session: one claim,
    /// one transaction, one commit.
    ///
    /// Gives what [`process`](Self::process) would give for each of them in turn, in their order.
    /// If the handler or the commit fails for all, the transaction is rolled back and each message
    /// is processed alone, so that a handler may run twice for a message whose neighbour fails;
    /// nothing of the first run was committed. If the store refuses one of the identities, halves
    /// of the batch are tried until it is alone. A copy of a message in the same batch is a
    /// duplicate. Messages of a [replay](super::ReplayPolicy) are processed alone, in their place;
    /// those between them together. When the store cannot be asked, it is not asked for the rest;
    /// nor is the handler when it has said that what it depends on is away.
    ///
    /// # Cancellation
    ///
    /// As for [`process`](Self::process).
    pub async fn process_batch<H>(&self, messages: &[IncomingMessage], handler: &H) -> Vec<Outcome>
    where
        H: IdempotentHandler<S>,
    {
        self.batch(messages, handler).await.outcomes
    }

    pub(crate) async fn batch<H>(&self, messages: &[IncomingMessage], handler: &H) -> Batch
    where
        H: IdempotentHandler<S>,
    {
        let mut outcomes = Vec::with_capacity(messages.len());
        // What is not decided, in order from the end. A message of a replay is alone.
        let alone = |message: &IncomingMessage| self.is_replay(message);
        let mut parts: Vec<_> = messages.chunk_by(|a, b| !alone(a) && !alone(b)).rev().collect();
        let mut sessions = 0;
        while let Some(part) = parts.pop() {
            sessions += 1;
            if S::BATCHES && part.len() > 1 && !outcomes.last().is_some_and(Outcome::is_unavailable) {
                let identified = self.identify_all(part);
                match self.together(&identified, handler).await {
                    Ok(decided) => {
                        outcomes.extend(self.spread(identified, part, decided));
                        continue;
                    }
                    Err(Apart::Halves) => {
                        let (left, right) = part.split_at(part.len() / 2);
                        parts.extend([right, left]);
                        continue;
                    }
                    Err(Apart::OneByOne) => sessions += part.len(),
                }
            }
            for message in part {
                let outcome = match outcomes.last() {
                    // Each question to a store that is away may take as long as its limit: one is
                    // enough.
                    Some(Outcome::StoreUnavailable { error }) => unavailable(error),
                    Some(Outcome::DependencyUnavailable { error }) => {
                        Outcome::DependencyUnavailable { error: Chain(&**error).to_string().into() }
                    }
                    _ => self.process(message, handler).await,
                };
                outcomes.push(outcome);
            }
        }
        Batch { outcomes, together: messages.len() < 2 || (S::BATCHES && sessions == 1) }
    }

    fn identify_all<'m>(&self, messages: &'m [IncomingMessage]) -> Requested<'m> {
        let mut known: HashMap<MessageId, usize> = HashMap::with_capacity(messages.len());
        let mut all =
            Requested { requests: Vec::new(), first: Vec::new(), roles: Vec::with_capacity(messages.len()) };
        for message in messages {
            let role = match self.request(message) {
                Err(outcome) => Role::Decided(outcome),
                Ok(request) => match known.entry(request.message_id.clone()) {
                    Entry::Occupied(known) => {
                        known_as(message, &request, None);
                        Role::Copy(*known.get())
                    }
                    Entry::Vacant(new) => {
                        let index = *new.insert(all.requests.len());
                        all.first.push(identified(message, &request, None));
                        all.requests.push(request);
                        Role::First(index)
                    }
                },
            };
            all.roles.push(role);
        }
        all
    }

    /// One session for all requests; their outcomes, if they have a common fate.
    async fn together<H>(&self, identified: &Requested<'_>, handler: &H) -> Result<Vec<Outcome>, Apart>
    where
        H: IdempotentHandler<S>,
    {
        let Requested { requests, first, .. } = identified;
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let Claims { session, claims } = match self.store().claim(requests).await {
            Ok(claims) => claims,
            // Somebody is in the way of one of them, and not of the others.
            Err(error) if matches!(error.kind(), StoreErrorKind::Busy | StoreErrorKind::Conflict) => {
                return Err(Apart::OneByOne);
            }
            Err(error) if error.kind() == StoreErrorKind::Refused => return Err(Apart::Halves),
            Err(error) => return Ok(requests.iter().map(|_| unavailable(&error)).collect()),
        };
        let mut lost = None;
        if let Some(mut session) = session {
            let stale = |(message, claim): (&Identified<'_>, &Claim)| {
                *claim == Claim::Acquired && self.too_old(message).is_some()
            };
            if first.iter().zip(&claims).any(stale) {
                self.give_back(session).await;
                return Err(Apart::OneByOne);
            }
            let acquired: Vec<&IncomingMessage> = first
                .iter()
                .zip(&claims)
                .filter_map(|(message, claim)| (*claim == Claim::Acquired).then_some(&**message))
                .collect();
            let work = handler.handle_batch(&acquired, &mut session);
            if self.run(acquired.len(), work).await.is_err() {
                self.give_back(session).await;
                return Err(Apart::OneByOne);
            }
            match self.store().complete(session).await {
                Ok(()) => {}
                // Certain: nothing was committed.
                Err(error)
                    if matches!(error.kind(), StoreErrorKind::Conflict | StoreErrorKind::RolledBack) =>
                {
                    return Err(Apart::OneByOne);
                }
                Err(error) => lost = Some(error),
            }
        }
        let outcome =
            |((message, request), claim): ((&Identified<'_>, &ClaimRequest), &Claim)| match (claim, &lost) {
                (Claim::Acquired, None) => Outcome::Processed,
                (Claim::Acquired, Some(error)) => unavailable(error),
                (taken, _) => self.decided(message, request.fingerprint, Some(taken)),
            };
        Ok(first.iter().zip(requests).zip(&claims).map(outcome).collect())
    }

    /// What a copy is, of a message that came before it in the same batch.
    fn copy_of(&self, first: &Outcome, request: &ClaimRequest, copy: &IncomingMessage) -> Outcome {
        let found = copy.fingerprint();
        match first {
            Outcome::Processed => self.known(copy, self.now.get(), request.fingerprint, found),
            Outcome::Duplicate(known) => self.known(copy, known.processed_at, known.fingerprint, found),
            Outcome::FingerprintMismatch { stored, .. } => self.known(copy, self.now.get(), *stored, found),
            Outcome::InProgress { remaining } => Outcome::InProgress { remaining: *remaining },
            Outcome::StoreUnavailable { error } => unavailable(error),
            // A batch that holds together has no other outcomes; and this one asks again.
            _ => unavailable(&StoreErrorKind::Unavailable.into()),
        }
    }

    /// The outcomes of all messages, from those of the requests.
    fn spread(
        &self,
        identified: Requested<'_>,
        messages: &[IncomingMessage],
        of_requests: Vec<Outcome>,
    ) -> Vec<Outcome> {
        let Requested { requests, roles, .. } = identified;
        let copies: Vec<Option<Outcome>> = (roles.iter().zip(messages))
            .map(|(role, message)| match role {
                Role::Copy(index) => Some(self.copy_of(&of_requests[*index], &requests[*index], message)),
                _ => None,
            })
            .collect();
        let mut of_requests: Vec<Option<Outcome>> = of_requests.into_iter().map(Some).collect();
        let missing = || unavailable(&StoreErrorKind::Configuration.into());
        (roles.into_iter().zip(copies))
            .map(|(role, copy)| match role {
                Role::Decided(outcome) => outcome,
                Role::First(index) => of_requests[index].take().unwrap_or_else(missing),
                Role::Copy(_) => copy.unwrap_or_else(missing),
            })
            .collect()
    }
}

/// The same error once more; its causes as text, as they cannot be cloned.
fn unavailable(error: &StoreError) -> Outcome {
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Outcome::StoreUnavailable { error: StoreError::new(error.kind(), cause) }
}
