//! Ways to get the protocol wrong. The model must catch each of them; some are what other libraries
//! ship.

use super::protocol::{LIMIT, Protocol, Store};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// The delivery is acked before the work is done.
    AckFirst,
    /// The ID is committed in a transaction of its own, before the effect.
    IdThenEffect,
    /// The effect is committed in a transaction of its own, before the ID.
    EffectThenId,
    /// A commit whose answer is lost counts as done.
    UnknownCommitTakenAsDone,
    /// The store is not asked when the broker says `redelivered = false`.
    FirstDeliveryTakenAsNew,
    /// Records are forgotten before the retention has passed.
    PurgeTooEarly,
    /// What is older than the retention is judged by a missing record.
    NoAgeGate,
    /// Each attempt of the publisher has an ID of its own.
    NewIdOnRetry,
    /// `basic.return` and its ack count as a confirm.
    ReturnTakenAsConfirm,
    /// `basic.nack` counts as a confirm.
    NackTakenAsConfirm,
    /// A message that was nacked counts as in no queue.
    NackTakenAsUnpublished,
    /// A publish that was on its way when the connection went counts as published.
    CutTakenAsConfirm,
    /// A confirm that comes late is taken for the message that has its delivery tag on the new
    /// channel.
    LateConfirmTakenByTag,
    /// An error denies the publish whatever became of earlier attempts.
    UnknownTakenAsUnpublished,
    /// The ID of a message is random, and made anew when its publisher's process starts again.
    NewIdAfterRestart,
    /// A record is forgotten when the publisher has its confirm and no copy is left in the broker.
    ForgottenOnceQuiet,
    /// A lease is completed by whoever comes.
    NoFence,
    /// A lease is completed without a look at the token, if there is one.
    CompleteWithoutToken,
    /// A lease is released without a look at the token.
    ReleaseWithoutToken,
    /// A message whose handler failed is acked.
    FailureCountedAsHandled,
    /// A batch is acked though one of its messages failed.
    BatchAckedWhenOneFailed,
    /// A message that goes to a delay queue or to parking is acked before its copy is confirmed.
    AckBeforePassedOn,
    /// A message that comes back from parking is handled whatever its age.
    UnparkVouchesBlindly,
    /// After a reconnect, deliveries of the old channel are settled on the new one.
    SettledOnAnotherChannel,
    /// While the store is away, messages are given back; the broker counts, and nobody looks.
    NackWhileStoreAway,
    /// A message that was given back almost too often is published anew, and acked before that is
    /// confirmed.
    AckBeforeMovedOn,
    /// Nobody looks how often a message was given back.
    LimitNotWatched,
    /// A header is enough for a replay: nobody looks whether its epoch is open.
    HeaderWithoutRow,
    /// An epoch is closed while a replay in it is under way.
    CloseDoesNotWait,
    /// A replay is let through, and nothing remembers that.
    ReplayUnrecorded,
    /// A replay is remembered as long as other identities, and its epoch may be open for longer.
    ReplayKnownByIdentityOnly,
    /// A replay has the identity of its original, and so is a duplicate.
    EpochNoPartOfIdentity,
}

impl Mutant {
    pub const ALL: [Self; 32] = [
        Self::AckFirst,
        Self::IdThenEffect,
        Self::EffectThenId,
        Self::UnknownCommitTakenAsDone,
        Self::FirstDeliveryTakenAsNew,
        Self::PurgeTooEarly,
        Self::NoAgeGate,
        Self::NewIdOnRetry,
        Self::ReturnTakenAsConfirm,
        Self::NackTakenAsConfirm,
        Self::NackTakenAsUnpublished,
        Self::CutTakenAsConfirm,
        Self::LateConfirmTakenByTag,
        Self::UnknownTakenAsUnpublished,
        Self::NewIdAfterRestart,
        Self::ForgottenOnceQuiet,
        Self::NoFence,
        Self::CompleteWithoutToken,
        Self::ReleaseWithoutToken,
        Self::FailureCountedAsHandled,
        Self::BatchAckedWhenOneFailed,
        Self::AckBeforePassedOn,
        Self::UnparkVouchesBlindly,
        Self::SettledOnAnotherChannel,
        Self::NackWhileStoreAway,
        Self::AckBeforeMovedOn,
        Self::LimitNotWatched,
        Self::HeaderWithoutRow,
        Self::CloseDoesNotWait,
        Self::ReplayUnrecorded,
        Self::ReplayKnownByIdentityOnly,
        Self::EpochNoPartOfIdentity,
    ];

    /// The smallest world that shows it.
    pub fn world(self) -> Protocol {
        let leases = matches!(self, Self::NoFence | Self::CompleteWithoutToken | Self::ReleaseWithoutToken);
        let two = matches!(
            self,
            Self::BatchAckedWhenOneFailed | Self::SettledOnAnotherChannel | Self::LateConfirmTakenByTag
        );
        let limited =
            matches!(self, Self::NackWhileStoreAway | Self::AckBeforeMovedOn | Self::LimitNotWatched);
        let three =
            matches!(self, Self::UnparkVouchesBlindly | Self::ReleaseWithoutToken | Self::LimitNotWatched);
        let replays = matches!(
            self,
            Self::HeaderWithoutRow
                | Self::CloseDoesNotWait
                | Self::ReplayUnrecorded
                | Self::ReplayKnownByIdentityOnly
                | Self::EpochNoPartOfIdentity
        );
        Protocol {
            store: if leases { Store::Leases } else { Store::Transactions },
            messages: if two { 2 } else { 1 },
            consumers: if leases { 2 } else { 1 },
            batch: if self == Self::BatchAckedWhenOneFailed { 2 } else { 1 },
            faults: match self {
                // The store goes away once.
                Self::NackWhileStoreAway => 1,
                _ if three => 3,
                _ => 2,
            },
            late: matches!(
                self,
                Self::LateConfirmTakenByTag
                    | Self::UnknownTakenAsUnpublished
                    | Self::NewIdAfterRestart
                    | Self::ForgottenOnceQuiet
            ),
            limit: limited.then_some(LIMIT),
            replays,
            mutant: Some(self),
        }
    }
}
