//! The settle table of the protocol, over every case that there is: what comes with a message, what
//! the store answers, what the handler does, how the commit ends, under every policy. Not a sample:
//! the domain is finite but for durations, of which the extremes stand for all.

#![cfg(feature = "testing")]
#![allow(missing_docs, unreachable_pub, clippy::expect_used, clippy::unwrap_used)]

use std::{
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use lapin_idempotent::{
    Guard, HandlerError, HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage,
    consumer::{ParkReason, Settlement, settle},
    idempotency::{
        Claim, ClaimRequest, Claims, MismatchPolicy, MissingIdPolicy, Scope, StalePolicy, StoreError,
        StoreErrorKind,
    },
    message::Fingerprint,
};

/// RabbitMQ closes the channel of whoever holds a delivery for longer (`consumer_timeout`).
const CONSUMER_TIMEOUT: Duration = Duration::from_mins(30);

const HOUR: Duration = Duration::from_hours(1);

const KINDS: [StoreErrorKind; 9] = [
    StoreErrorKind::Unavailable,
    StoreErrorKind::Busy,
    StoreErrorKind::Full,
    StoreErrorKind::LeaseLost,
    StoreErrorKind::Conflict,
    StoreErrorKind::RolledBack,
    StoreErrorKind::OutcomeUnknown,
    StoreErrorKind::Schema,
    StoreErrorKind::Configuration,
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Id {
    Good,
    Missing,
    Invalid,
    /// Good, on a message that is not to be handled for an hour.
    Early,
}

/// What the store answers to a claim.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    New,
    SameBody,
    OtherBody,
    InProgress(Duration),
    Fails(StoreErrorKind),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Does {
    Succeeds,
    Fails,
    Postpones(Duration),
    Refuses,
    MissesWhatItNeeds,
    Panics,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    id: Id,
    old: bool,
    says: Says,
    does: Does,
    /// How the commit ends.
    commit: Result<(), StoreErrorKind>,
    missing: MissingIdPolicy,
    mismatch: MismatchPolicy,
    stale: Option<StalePolicy>,
    retries: u32,
}

/// Store and handler, and what was seen of them.
struct Script {
    case: Case,
    claims: AtomicU32,
    opened: AtomicU32,
    handled: AtomicU32,
    committed: AtomicU32,
    ended: AtomicU32,
}

impl IdempotencyStore for Script {
    type Session = ();

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<()>, StoreError> {
        self.claims.fetch_add(1, Relaxed);
        let completed = |fingerprint| Claim::completed(fingerprint, SystemTime::UNIX_EPOCH);
        let claim = match self.case.says {
            Says::New => Claim::Acquired,
            Says::SameBody => completed(requests[0].fingerprint),
            Says::OtherBody => completed(Fingerprint::of(b"another body")),
            Says::InProgress(remaining) => Claim::in_progress(remaining),
            Says::Fails(kind) => return Err(kind.into()),
        };
        let session = (claim == Claim::Acquired).then_some(());
        self.opened.fetch_add(session.is_some().into(), Relaxed);
        Ok(Claims::new(session, vec![claim]))
    }

    async fn complete(&self, (): ()) -> Result<(), StoreError> {
        self.ended.fetch_add(1, Relaxed);
        self.case.commit?;
        self.committed.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn release(&self, (): ()) -> Result<(), StoreError> {
        self.ended.fetch_add(1, Relaxed);
        Ok(())
    }

    async fn purge(&self, _: Duration, _: u32) -> Result<u64, StoreError> {
        Ok(0)
    }
}

struct Handler(Arc<Script>);

impl IdempotentHandler<Arc<Script>> for Handler {
    async fn handle(&self, message: &IncomingMessage, (): &mut ()) -> HandlerResult {
        assert_eq!(message.body().as_ref(), b"body");
        self.0.handled.fetch_add(1, Relaxed);
        match self.0.case.does {
            Does::Succeeds => Ok(()),
            Does::Fails => Err(HandlerError::retry("failed")),
            Does::Postpones(delay) => Err(HandlerError::retry_after(delay, "later")),
            Does::Refuses => Err(HandlerError::reject("refused")),
            Does::MissesWhatItNeeds => Err(HandlerError::unavailable("away")),
            // Without the panic hook, which would print all of them.
            Does::Panics => resume_unwind(Box::new("panicked")),
        }
    }
}

/// The table of the protocol's description, row by row.
fn expected(case: &Case) -> Settlement {
    // "Another try": all failures of this delivery are counted.
    let retry = Settlement::Retry { after: None, failures: case.retries + 1 };
    // Rivals stood in the way; it is nobody's failure.
    let conflict = Settlement::Hold { after: Duration::from_secs(1) };
    let away = Settlement::Hold { after: Duration::from_secs(1) };
    match (case.id, case.missing) {
        (Id::Early, _) => return Settlement::Defer { after: HOUR },
        (Id::Invalid, _) => return Settlement::Park(ParkReason::InvalidId),
        (Id::Missing, MissingIdPolicy::Park) => return Settlement::Park(ParkReason::MissingId),
        _ => {}
    }
    match case.says {
        Says::SameBody => return Settlement::Ack,
        Says::OtherBody if case.mismatch == MismatchPolicy::Duplicate => return Settlement::Ack,
        Says::OtherBody => return Settlement::Park(ParkReason::FingerprintMismatch),
        Says::InProgress(remaining) => {
            return Settlement::Hold { after: remaining.min(Duration::from_secs(10)) };
        }
        Says::Fails(StoreErrorKind::Conflict) => return conflict,
        Says::Fails(_) => return away,
        Says::New => {}
    }
    if case.old && case.stale == Some(StalePolicy::Park) {
        return Settlement::Park(ParkReason::Indeterminate);
    }
    match (case.does, case.commit) {
        (Does::Fails | Does::Panics, _) => retry,
        (Does::Postpones(delay), _) => Settlement::Retry { after: Some(delay), failures: 1 },
        (Does::Refuses, _) => Settlement::Park(ParkReason::Rejected),
        (Does::MissesWhatItNeeds, _) => away,
        (Does::Succeeds, Ok(())) => Settlement::Ack,
        (Does::Succeeds, Err(StoreErrorKind::RolledBack)) => retry,
        (Does::Succeeds, Err(StoreErrorKind::Conflict)) => conflict,
        (Does::Succeeds, Err(StoreErrorKind::LeaseLost)) => Settlement::Hold { after: Duration::ZERO },
        (Does::Succeeds, Err(_)) => away,
    }
}

/// What must hold whatever the table says.
fn check(case: &Case, seen: &Script, settlement: Settlement) {
    let count = |counter: &AtomicU32| counter.load(Relaxed);
    let known = case.says == Says::SameBody
        || case.says == Says::OtherBody && case.mismatch == MismatchPolicy::Duplicate;
    let took_effect = count(&seen.committed) == 1 || (known && count(&seen.claims) > 0);
    assert_eq!(
        settlement == Settlement::Ack,
        took_effect,
        "acked if and only if it has taken effect: {case:?}"
    );
    assert!(count(&seen.committed) <= 1, "committed twice: {case:?}");
    assert_eq!(count(&seen.opened), count(&seen.ended), "a session was left open: {case:?}");
    if case.says != Says::New {
        assert_eq!(count(&seen.handled), 0, "handled without a claim: {case:?}");
    }
    match settlement {
        Settlement::Hold { after } => assert!(after < CONSUMER_TIMEOUT, "{case:?}"),
        Settlement::Retry { failures, .. } => {
            assert!(failures > 0, "a failure that is not counted: {case:?}");
        }
        _ => {}
    }
}

async fn run(case: Case) {
    let count = AtomicU32::default;
    let script = Arc::new(Script {
        case,
        claims: count(),
        opened: count(),
        handled: count(),
        committed: count(),
        ended: count(),
    });
    let mut message = IncomingMessage::new("body");
    match case.id {
        Id::Good => message = message.with_message_id("order-42"),
        Id::Missing => {}
        Id::Invalid => message = message.with_message_id("order\n42"),
        Id::Early => {
            let due = SystemTime::UNIX_EPOCH.elapsed().unwrap() + HOUR;
            let due = i64::try_from(due.as_millis()).unwrap();
            message = message.with_message_id("order-42").with_header("x-idempotency-not-before", due);
        }
    }
    if case.old {
        message = message.with_timestamp(1_000_000_000);
    }
    let mut guard = Guard::new(Arc::clone(&script), Scope::new("ledger").unwrap())
        .missing_id(case.missing)
        .fingerprint_mismatch(case.mismatch)
        .immediate_retries(case.retries);
    if let Some(policy) = case.stale {
        guard = guard.retention(HOUR, policy);
    }
    let outcome = guard.process(&message, &Handler(Arc::clone(&script))).await;
    let settlement = settle(&outcome);
    check(&case, &script, settlement);
    match (settlement, expected(&case)) {
        // A little of the hour has passed.
        (Settlement::Defer { after }, Settlement::Defer { after: most }) => {
            assert!(after <= most && after + Duration::from_mins(1) > most, "{case:?}");
        }
        (settlement, expected) => assert_eq!(settlement, expected, "{case:?}"),
    }
}

/// All values of one part of a case, for each of the cases so far.
fn each<T: Copy>(cases: Vec<Case>, values: &[T], set: impl Fn(&mut Case, T)) -> Vec<Case> {
    let with = |(mut case, value)| {
        set(&mut case, value);
        case
    };
    let pairs = cases.into_iter().flat_map(|case| values.iter().map(move |value| (case, *value)));
    pairs.map(with).collect()
}

fn cases() -> Vec<Case> {
    let mut says = vec![Says::New, Says::SameBody, Says::OtherBody];
    says.extend([Duration::ZERO, HOUR, Duration::MAX].map(Says::InProgress));
    says.extend(KINDS.map(Says::Fails));
    let does = [
        Does::Succeeds,
        Does::Fails,
        Does::Postpones(Duration::ZERO),
        Does::Postpones(Duration::MAX),
        Does::Refuses,
        Does::MissesWhatItNeeds,
        Does::Panics,
    ];
    let mut commits = vec![Ok(())];
    commits.extend(KINDS.map(Err));
    let missing =
        [MissingIdPolicy::Park, MissingIdPolicy::DeriveFromContent, MissingIdPolicy::HandleUnguarded];
    let mut cases = vec![Case {
        id: Id::Good,
        old: false,
        says: Says::New,
        does: Does::Succeeds,
        commit: Ok(()),
        missing: MissingIdPolicy::Park,
        mismatch: MismatchPolicy::Park,
        stale: None,
        retries: 0,
    }];
    cases = each(cases, &[Id::Good, Id::Missing, Id::Invalid, Id::Early], |case, id| case.id = id);
    cases = each(cases, &[false, true], |case, old| case.old = old);
    cases = each(cases, &says, |case, says| case.says = says);
    cases = each(cases, &does, |case, does| case.does = does);
    cases = each(cases, &commits, |case, commit| case.commit = commit);
    cases = each(cases, &missing, |case, policy| case.missing = policy);
    cases = each(cases, &[MismatchPolicy::Park, MismatchPolicy::Duplicate], |case, p| case.mismatch = p);
    let stale = [None, Some(StalePolicy::Park), Some(StalePolicy::Handle)];
    cases = each(cases, &stale, |case, policy| case.stale = policy);
    each(cases, &[0, 2], |case, retries| case.retries = retries)
}

/// The clock stands, so that pauses between attempts take no time.
#[tokio::test(start_paused = true)]
async fn every_case_is_settled_as_the_protocol_says() {
    let cases = cases();
    assert_eq!(cases.len(), 4 * 2 * 15 * 7 * 10 * 3 * 2 * 3 * 2);
    for case in cases {
        run(case).await;
    }
}
