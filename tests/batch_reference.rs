//! A batch is what its messages would be one after the other: the same effects, and an outcome for
//! each as if it had been alone. Against a reference that is simple enough to be right, and a store
//! with transactions that fails where it is told to.

#![cfg(feature = "testing")]
#![allow(missing_docs, unreachable_pub, clippy::expect_used, clippy::unwrap_used)]

mod support {
    pub mod transactions;
}

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::resume_unwind,
    time::Duration,
};

use lapin_idempotent::{
    Guard, HandlerError, HandlerResult, IdempotentHandler, IncomingMessage, Outcome,
    consumer::{Settlement, settle},
    idempotency::{MismatchPolicy, MissingIdPolicy, Scope, StalePolicy, StoreErrorKind},
};
use proptest::{collection::vec, prelude::*, sample::select};
use support::transactions::{Commit, Faults, Transaction, Transactions};

/// Few, so that a batch has copies.
const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The policies under which no message takes effect twice.
const GUARDED: [MissingIdPolicy; 2] = [MissingIdPolicy::Park, MissingIdPolicy::DeriveFromContent];

#[derive(Debug, Clone)]
struct Delivery {
    id: Option<&'static str>,
    body: &'static str,
    /// Older than the retention.
    old: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    Succeeds,
    Fails,
    Refuses,
    Panics,
}

/// Decides by the message's ID, after it has written.
#[derive(Debug, Clone)]
struct Handler {
    by_id: BTreeMap<&'static str, Does>,
    /// Writes all before it looks at one.
    in_bulk: bool,
}

#[derive(Debug, Clone)]
struct World {
    done: BTreeMap<&'static str, &'static str>,
    /// Identities that a rival holds.
    held: BTreeSet<&'static str>,
    handler: Handler,
    missing: MissingIdPolicy,
    mismatch: MismatchPolicy,
    retention: Option<Duration>,
    retries: u32,
}

impl Handler {
    fn does(&self, id: Option<&str>) -> Does {
        id.and_then(|id| self.by_id.get(id)).copied().unwrap_or(Does::Succeeds)
    }

    fn judge(&self, message: &IncomingMessage) -> HandlerResult {
        match self.does(message.raw_message_id()) {
            Does::Succeeds => Ok(()),
            Does::Fails => Err(HandlerError::retry("failed")),
            Does::Refuses => Err(HandlerError::reject("refused")),
            // Without the panic hook, which would print all of them.
            Does::Panics => resume_unwind(Box::new("panicked")),
        }
    }
}

fn effect(message: &IncomingMessage) -> (String, String) {
    (message.raw_message_id().unwrap_or_default().to_owned(), message.text().unwrap().to_owned())
}

impl IdempotentHandler<Transactions> for Handler {
    async fn handle(&self, message: &IncomingMessage, transaction: &mut Transaction) -> HandlerResult {
        transaction.effects.push(effect(message));
        self.judge(message)
    }

    async fn handle_batch(
        &self,
        messages: &[&IncomingMessage],
        transaction: &mut Transaction,
    ) -> HandlerResult {
        if self.in_bulk {
            transaction.effects.extend(messages.iter().map(|message| effect(message)));
            return messages.iter().try_for_each(|message| self.judge(message));
        }
        for message in messages {
            self.handle(message, transaction).await?;
        }
        Ok(())
    }
}

/// The promise in its simplest form: a set of identities and a list of effects.
struct Reference {
    done: BTreeMap<String, &'static str>,
    effects: Vec<(String, String)>,
}

impl Reference {
    fn new(world: &World) -> Self {
        let done = world.done.iter().map(|(id, body)| ((*id).to_owned(), *body)).collect();
        Self { done, effects: Vec::new() }
    }

    /// The outcome's name.
    fn deliver(&mut self, delivery: &Delivery, world: &World) -> &'static str {
        let identity = match (delivery.id, world.missing) {
            (Some(id), _) if id.contains('\n') => return "invalid_id",
            (Some(id), _) => id.to_owned(),
            (None, MissingIdPolicy::DeriveFromContent) => format!("content {}", delivery.body),
            (None, MissingIdPolicy::HandleUnguarded) => format!("random {}", self.done.len()),
            (None, _) => return "missing_id",
        };
        if delivery.id.is_some_and(|id| world.held.contains(id)) {
            return "in_progress";
        }
        match self.done.get(&identity) {
            Some(body) if *body == delivery.body => return "duplicate",
            Some(_) if world.mismatch == MismatchPolicy::Duplicate => return "duplicate",
            Some(_) => return "fingerprint_mismatch",
            None => {}
        }
        if delivery.old && world.retention.is_some() {
            return "indeterminate";
        }
        match world.handler.does(delivery.id) {
            Does::Succeeds => {
                self.done.insert(identity, delivery.body);
                self.effects.push((delivery.id.unwrap_or_default().to_owned(), delivery.body.to_owned()));
                "processed"
            }
            Does::Refuses => "reject",
            Does::Fails | Does::Panics => "retry",
        }
    }
}

fn message(delivery: &Delivery) -> IncomingMessage {
    let mut message = IncomingMessage::new(delivery.body);
    if let Some(id) = delivery.id {
        message = message.with_message_id(id);
    }
    if delivery.old { message.with_timestamp(1_000_000_000) } else { message }
}

fn guard(world: &World, store: Transactions) -> Guard<Transactions> {
    let guard = Guard::new(store, Scope::new("ledger").unwrap())
        .missing_id(world.missing)
        .fingerprint_mismatch(world.mismatch)
        .immediate_retries(world.retries);
    match world.retention {
        Some(retention) => guard.retention(retention, StalePolicy::Park),
        None => guard,
    }
}

/// Whose clock stands, so that pauses between attempts take no time.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(work)
}

fn deliveries() -> impl Strategy<Value = Vec<Delivery>> {
    let id = prop_oneof![10 => select(&IDS).prop_map(Some), 1 => Just(None), 1 => Just(Some("a\nb"))];
    let body = prop_oneof![6 => Just("0"), 1 => Just("1")];
    let delivery = (id, body, prop::bool::weighted(0.1));
    vec(delivery.prop_map(|(id, body, old)| Delivery { id, body, old }), 0..12)
}

fn worlds(missing: &[MissingIdPolicy]) -> impl Strategy<Value = World> + use<> {
    let does = prop_oneof![
        12 => Just(Does::Succeeds), 1 => Just(Does::Fails), 1 => Just(Does::Refuses), 1 => Just(Does::Panics)
    ];
    let does = vec(does, IDS.len());
    let done = vec(prop_oneof![4 => Just(None), 1 => Just(Some("0")), 1 => Just(Some("1"))], IDS.len());
    let held = vec(prop::bool::weighted(0.05), IDS.len());
    let policies = (
        select(missing.to_vec()),
        select(&[MismatchPolicy::Park, MismatchPolicy::Duplicate]),
        any::<bool>().prop_map(|gate| gate.then_some(Duration::from_hours(24))),
        0..3_u32,
    );
    (done, held, does, any::<bool>(), policies).prop_map(|(done, held, does, in_bulk, policies)| {
        let (missing, mismatch, retention, retries) = policies;
        World {
            done: IDS.into_iter().zip(done).filter_map(|(id, body)| Some((id, body?))).collect(),
            held: IDS.into_iter().zip(held).filter_map(|(id, held)| held.then_some(id)).collect(),
            handler: Handler { by_id: IDS.into_iter().zip(does).collect(), in_bulk },
            missing,
            mismatch,
            retention,
            retries,
        }
    })
}

fn faults() -> impl Strategy<Value = Faults> {
    let kinds = [
        StoreErrorKind::Unavailable,
        StoreErrorKind::Busy,
        StoreErrorKind::Full,
        StoreErrorKind::Conflict,
        StoreErrorKind::OutcomeUnknown,
        StoreErrorKind::RolledBack,
        StoreErrorKind::LeaseLost,
    ];
    let claim = prop_oneof![4 => Just(None), 1 => select(kinds[..4].to_vec()).prop_map(Some)];
    // Only where the kind says nothing of it may the commit have been made.
    let unknown = |kind| {
        let certain = [StoreErrorKind::Conflict, StoreErrorKind::RolledBack, StoreErrorKind::LeaseLost];
        !certain.contains(&kind)
    };
    let fails = (select(kinds.to_vec()), any::<bool>())
        .prop_map(move |(kind, made)| Commit::Fails { kind, made: made && unknown(kind) });
    let commit = prop_oneof![3 => Just(Commit::Succeeds), 2 => fails];
    (vec(claim, 0..10), vec(commit, 0..10), any::<bool>())
        .prop_map(|(claims, commits, releases)| Faults::new(claims, commits, releases))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn a_batch_has_the_outcomes_and_effects_of_its_messages_one_by_one(
        world in worlds(&[MissingIdPolicy::HandleUnguarded, GUARDED[0], GUARDED[1]]),
        batches in vec(deliveries(), 1..4),
    ) {
        let store = Transactions::new(&world.done, &world.held);
        let guard = guard(&world, store.clone());
        let mut reference = Reference::new(&world);
        for batch in batches {
            let messages: Vec<_> = batch.iter().map(message).collect();
            let before = store.commits();
            let outcomes = block_on(guard.process_batch(&messages, &world.handler));
            let names: Vec<_> = outcomes.iter().map(Outcome::name).collect();
            let expected: Vec<_> = batch.iter().map(|delivery| reference.deliver(delivery, &world)).collect();
            prop_assert_eq!(&names, &expected);
            prop_assert_eq!(store.effects(), reference.effects.clone());
            prop_assert_eq!(store.done().len(), reference.done.len());
            let bad = ["retry", "reject", "in_progress", "indeterminate"];
            if !names.iter().any(|name| bad.contains(name)) {
                prop_assert!(store.commits() <= before + 1, "not one transaction");
            }
        }
    }

    #[test]
    fn no_fault_of_the_store_loses_or_doubles_an_effect(
        // Who handles without an ID has no protection.
        world in worlds(&GUARDED),
        batch in deliveries(),
        faults in faults(),
    ) {
        let store = Transactions::new(&world.done, &world.held);
        let guard = guard(&world, store.clone());
        let mut left = batch.clone();
        // Once with faults; then all that was neither acked nor parked comes again, without.
        for faults in [faults, Faults::default()] {
            store.fail(faults);
            let messages: Vec<_> = left.iter().map(message).collect();
            let outcomes = block_on(guard.process_batch(&messages, &world.handler));
            prop_assert_eq!(outcomes.len(), left.len());
            let done = store.done();
            for (delivery, outcome) in left.iter().zip(&outcomes) {
                if settle(outcome) == Settlement::Ack {
                    prop_assert!(delivery.id.is_none_or(|id| done.contains(id)), "acked, not committed: {:?}", delivery);
                }
            }
            let comes_again = |outcome| !matches!(settle(outcome), Settlement::Ack | Settlement::Park(_));
            left = left.into_iter().zip(&outcomes).filter(|(_, o)| comes_again(o)).map(|(d, _)| d).collect();
        }
        let mut reference = Reference::new(&world);
        for delivery in &batch {
            reference.deliver(delivery, &world);
        }
        // The bodies may be others: when a failed message comes again, another one may have taken
        // its ID.
        let identities = |effects: &[(String, String)]| {
            let name = |(id, body): &(String, String)| if id.is_empty() { body.clone() } else { id.clone() };
            let mut names: Vec<_> = effects.iter().map(name).collect();
            names.sort();
            names
        };
        prop_assert_eq!(identities(&store.effects()), identities(&reference.effects));
    }
}
