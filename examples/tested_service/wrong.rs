//! A handler that does it wrong: it sends an e-mail by itself.

use std::sync::{Arc, Mutex, PoisonError};

use lapin_idempotent::{
    BoxError, HandlerError, HandlerResult, IdempotentHandler, IncomingMessage, SqliteStore, SqliteTransaction,
};
use tokio::task::yield_now;

use crate::ledger::{Debit, book};

/// What sends e-mails.
pub(crate) trait MailServer: Send + Sync + 'static {
    fn send(&self, to: &str, text: &str) -> impl Future<Output = Result<(), BoxError>> + Send;
}

/// A mail server in memory. What it has sent is sent, whatever becomes of a transaction. Clones are
/// the same.
#[derive(Clone, Default)]
pub(crate) struct Mailbox(Arc<Mutex<Vec<String>>>);

impl Mailbox {
    pub(crate) fn sent(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl MailServer for Mailbox {
    async fn send(&self, to: &str, text: &str) -> Result<(), BoxError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{to}: {text}"));
        // Its answer takes a while.
        yield_now().await;
        Ok(())
    }
}

/// Books a debit and tells its owner. The row is in the session and the e-mail is not: whatever
/// makes the handler run again sends it again.
pub(crate) struct BookAndMail<M> {
    pub(crate) mails: M,
}

impl<M: MailServer> IdempotentHandler<SqliteStore> for BookAndMail<M> {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let debit: Debit = message.json()?;
        book(&debit, tx).await?;
        let sent = self.mails.send(&debit.account, &format!("{} was debited", debit.amount)).await;
        sent.map_err(HandlerError::retry)
    }
}
