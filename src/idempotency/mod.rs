//! Deciding: whether a delivery is new, and what became of it. What a service implements
//! ([`IdempotentHandler`]), and what a store does ([`IdempotencyStore`]).
//!
//! [`Guard`] decides about a delivery, and says what it found by an [`Outcome`]:
//!
//! ![A delivery is read, its ID is claimed, the handler runs, the transaction commits; each step
//! has its outcomes, and each outcome leads to one of four ends: acked, held, delayed,
//! parked.][outcomes]
#![doc = ""]
#![doc = include_str!("../guide/pictures/embedded.md")]
//!
//! A *store* remembers identities, which are (scope, message ID), and opens a *session* around the
//! handler: a SQL transaction, or a lease. What the handler writes through a SQL session is
//! committed together with the identity, in one transaction. What it does elsewhere is not covered
//! by that.
//!
//! # Invariants
//!
//! * **I1** An ack follows a commit: a delivery is settled as handled only after `complete`
//!   returned `Ok`.
//! * **I2** At most one committed effect per (scope, message ID) within the retention.
//! * **I3** A released claim can be claimed again.
//! * **I4** A stale lease changes nothing: it neither completes nor releases a successor's claim.
//! * **I5** A publish is `Ok` only if its own confirm came and its own message was not returned.
//! * **I6** Every attempt of one message carries the same ID and the same body.
//! * **I7** Purging never forgets an ID that is younger than the retention.
//!
//! Where the guard cannot know, it fails closed: an unknown commit is a failure, the delivery comes
//! again, and the claim of that delivery finds out what happened.

mod ask;
mod asked;
mod batch;
mod causation;
mod claim;
mod coalesce;
mod guard;
mod handler;
mod handler_fn;
mod identify;
mod identity;
mod key;
mod outcome;
mod policy;
mod purge;
mod replay;
mod rpc;
mod store;

pub(crate) use batch::Batch;
pub use causation::NoIdentity;
pub use claim::{Claim, ClaimRequest, Claims, Lease, Record};
pub use guard::Guard;
pub use handler::{HandlerError, HandlerResult, IdempotentHandler};
pub use handler_fn::{HandlerFn, handler_fn};
pub use identity::Identity;
pub use key::{InvalidScope, KeySource, Scope, effect_key};
pub use outcome::{Duplicate, DuplicateCause, Outcome};
pub use policy::{MismatchPolicy, MissingIdPolicy, StalePolicy};
pub use purge::{Sweeper, SweeperHandle};
pub use replay::{ReplayClaim, ReplayPolicy, ReplayRequest, replay_id};
pub(crate) use rpc::{Answering, answered_as};
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub(crate) use rpc::{KeptReply, Sealed};
pub use rpc::{ReplyStore, RpcHandler, RpcHandlerFn, RpcResult, rpc_handler_fn};
pub use store::{IdempotencyStore, Inspect, StoreError, StoreErrorKind};
