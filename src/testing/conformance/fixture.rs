//! What a case works with: two handles on one store, a scope of its own, and the questions that all
//! cases ask.

use std::{
    error::Error,
    fmt::{self, Write},
    slice,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep};

use super::capabilities::Capabilities;
use crate::{
    idempotency::{Claim, ClaimRequest, Claims, IdempotencyStore, Scope, StoreError, StoreErrorKind},
    message::{Fingerprint, MessageId},
};

/// How a case ends.
pub(super) type Outcome = Result<(), Stop>;

/// Why a case ends before its end.
pub(super) enum Stop {
    Failed(String),
    NotApplicable(String),
}

/// The pause before a question is asked again.
pub(super) const AGAIN: Duration = Duration::from_millis(5);

pub(super) struct Fixture<S> {
    pub(super) a: Arc<S>,
    pub(super) b: Arc<S>,
    pub(super) capabilities: Capabilities,
    unique: String,
}

/// The answer to one request.
pub(super) enum Answer<T> {
    Acquired(T),
    Completed {
        fingerprint: Fingerprint,
        processed_at: SystemTime,
    },
    InProgress {
        remaining: Duration,
    },
    /// Not now: busy, or a conflict with a rival.
    Refused(StoreError),
}

/// Fails a case unless a condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::testing::conformance::fixture::failed(format!($($text)+)));
        }
    };
}
pub(super) use ensure;

pub(super) fn failed(text: impl Into<String>) -> Stop {
    Stop::Failed(text.into())
}

/// A failure by an error of the store, with all of its causes.
pub(super) fn error(what: &'static str) -> impl Fn(StoreError) -> Stop {
    move |error| failed(format!("{what}: expected Ok; came {}", causes(&error)))
}

fn causes(error: &StoreError) -> String {
    let mut text = format!("{:?} ({error}", error.kind());
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text.push(')');
    text
}

/// Whether the same work, done again, may well succeed.
pub(super) fn passes(error: &StoreError) -> bool {
    matches!(error.kind(), StoreErrorKind::Busy | StoreErrorKind::Conflict)
}

/// A verb on a session that has lost its claim fails, and says so.
pub(super) fn lost(what: &str, answer: Result<(), StoreError>) -> Outcome {
    match answer {
        Err(error) if error.kind() == StoreErrorKind::LeaseLost => Ok(()),
        Err(error) => Err(failed(format!("{what}: expected LeaseLost; came {}", causes(&error)))),
        Ok(()) => Err(failed(format!("{what}: expected LeaseLost; came Ok"))),
    }
}

/// Claims one identity, and checks the form of the answer.
pub(super) async fn claim<S: IdempotencyStore>(
    store: &S,
    request: &ClaimRequest,
) -> Result<Answer<S::Session>, Stop> {
    match store.claim(slice::from_ref(request)).await {
        Ok(claims) => answer(claims),
        Err(error) if passes(&error) => Ok(Answer::Refused(error)),
        Err(unexpected) => Err(error("claim")(unexpected)),
    }
}

/// The answer to one request, if it has the right form.
pub(super) fn answer<T>(Claims { session, claims }: Claims<T>) -> Result<Answer<T>, Stop> {
    match (session, claims.as_slice()) {
        (Some(session), [Claim::Acquired]) => Ok(Answer::Acquired(session)),
        (None, &[Claim::Completed { fingerprint, processed_at }]) => {
            Ok(Answer::Completed { fingerprint, processed_at })
        }
        (None, &[Claim::InProgress { remaining }]) => Ok(Answer::InProgress { remaining }),
        (session, claims) => {
            let with = if session.is_some() { "with" } else { "without" };
            Err(failed(format!(
                "expected one answer, and a session exactly if it is Acquired; came {claims:?} {with} a session"
            )))
        }
    }
}

impl<S: IdempotencyStore> Fixture<S> {
    pub(super) fn new(case: &str, a: Arc<S>, b: Arc<S>, capabilities: &Capabilities) -> Self {
        let unique = format!("{case}-{}", uuid::Uuid::new_v4().simple());
        Self { a, b, capabilities: capabilities.clone(), unique }
    }

    /// A name that no other case uses, in this run or another one.
    pub(super) fn unique(&self) -> &str {
        &self.unique
    }

    /// A request in the scope of this case. The fingerprint tells requests with different IDs
    /// apart.
    pub(super) fn request(&self, id: &str) -> ClaimRequest {
        self.request_in("", id)
    }

    /// A request in a scope of its own among those of this case.
    #[allow(clippy::expect_used, reason = "a mistake in a case; a panic fails it")]
    pub(super) fn request_in(&self, scope: &str, id: &str) -> ClaimRequest {
        let scope = Scope::new(format!("{}{scope}", self.unique)).expect("the suite's own scope");
        ClaimRequest {
            message_id: MessageId::new(id).expect("the suite's own message ID"),
            fingerprint: Fingerprint::of(format!("{scope}\n{id}").as_bytes()),
            scope,
        }
    }

    /// Claims what must be free. Somebody else may be in the way for a moment, but nobody holds it.
    pub(super) async fn acquire(&self, store: &S, request: &ClaimRequest) -> Result<S::Session, Stop> {
        let deadline = Instant::now() + self.capabilities.patience();
        loop {
            match claim(store, request).await? {
                Answer::Acquired(session) => return Ok(session),
                Answer::Refused(_) if Instant::now() < deadline => sleep(AGAIN).await,
                other => return Err(unexpected(request, "Acquired", &other)),
            }
        }
    }

    /// Claims until the answer is none that may change by itself.
    pub(super) async fn settle(&self, store: &S, request: &ClaimRequest) -> Result<Answer<S::Session>, Stop> {
        let deadline = Instant::now() + self.capabilities.patience();
        loop {
            let answer = claim(store, request).await?;
            let changes = matches!(answer, Answer::InProgress { .. } | Answer::Refused(_));
            if !changes || Instant::now() >= deadline {
                return Ok(answer);
            }
            sleep(AGAIN).await;
        }
    }

    /// Claims what becomes free by itself.
    pub(super) async fn acquire_later(&self, store: &S, request: &ClaimRequest) -> Result<S::Session, Stop> {
        match self.settle(store, request).await? {
            Answer::Acquired(session) => Ok(session),
            other => Err(unexpected(request, "Acquired, sooner or later", &other)),
        }
    }

    /// Claims what must be free, and completes it.
    pub(super) async fn complete(&self, store: &S, request: &ClaimRequest) -> Outcome {
        let session = self.acquire(store, request).await?;
        store.complete(session).await.map_err(error("complete"))
    }

    /// Checks that an identity is completed, under the fingerprint of `request`; says when it was.
    pub(super) async fn completed(&self, store: &S, request: &ClaimRequest) -> Result<SystemTime, Stop> {
        let deadline = Instant::now() + self.capabilities.patience();
        loop {
            match claim(store, request).await? {
                Answer::Completed { fingerprint, processed_at } if fingerprint == request.fingerprint => {
                    return Ok(processed_at);
                }
                Answer::Refused(_) if Instant::now() < deadline => sleep(AGAIN).await,
                other => return Err(unexpected(request, "Completed with its fingerprint", &other)),
            }
        }
    }

    /// Whether an identity is free.
    pub(super) async fn is_free(&self, store: &S, request: &ClaimRequest) -> Result<bool, Stop> {
        match self.settle(store, request).await? {
            Answer::Acquired(session) => {
                store.release(session).await.map_err(error("release"))?;
                Ok(true)
            }
            Answer::Completed { .. } => Ok(false),
            other => Err(unexpected(request, "Acquired or Completed", &other)),
        }
    }
}

/// A failure by an answer.
pub(super) fn unexpected<T>(request: &ClaimRequest, expected: &str, came: &Answer<T>) -> Stop {
    failed(format!("claim of {:?}: expected {expected}; came {came}", request.message_id.as_str()))
}

impl<T> fmt::Display for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acquired(_) => f.write_str("Acquired"),
            Self::Completed { fingerprint, .. } => write!(f, "Completed with {fingerprint}"),
            Self::InProgress { remaining } => write!(f, "InProgress for another {remaining:?}"),
            Self::Refused(error) => f.write_str(&causes(error)),
        }
    }
}
