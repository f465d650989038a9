//! What takes requests.

use lapin_idempotent::{BoxError, OutgoingMessage, Publish};

use crate::ledger::Debit;

pub(crate) const DEBITS: &str = "payments.debit";

/// Publishes a debit that was asked for. Whoever calls it again for the same order, as after an
/// error or a time-out, asks for the same debit.
///
/// With an `IdempotentPublisher` in the service, and with the one of a bed in its tests.
pub(crate) async fn accept(publisher: &impl Publish, debit: &Debit) -> Result<(), BoxError> {
    let message = OutgoingMessage::to("", DEBITS).idempotency_key_parts(["debit", &debit.order]);
    publisher.publish(message.json(debit)?).await?;
    Ok(())
}
