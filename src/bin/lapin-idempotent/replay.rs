//! Replays: messages that take effect once more, on purpose.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use futures_util::{StreamExt, stream};
use lapin_idempotent::{
    IdempotentPublisher, MessageId, Scope,
    consumer::{Parked as Looking, ParkedChoice, Unpark},
    message::Epoch,
    store::{ReplayOpening, ReplayOutlook, Replays},
};

use crate::{
    ask::{Done, Failure, chain, may},
    exported::{Line, lines},
    options::{Consent, Filter, Replay},
    parked::is_wanted,
    print::{Printer, Record, utc},
    servers::{AnyStore, Servers},
};

/// How many messages are on their way together.
const IN_FLIGHT: usize = 64;

/// For how long the publisher may take to end.
const CLOSING: std::time::Duration = std::time::Duration::from_secs(10);

/// The same for the replays of each SQL store.
macro_rules! with_replays {
    ($store:expr, $name:ident => $body:expr) => {
        match $store {
            AnyStore::Postgres(store) => {
                let $name = Replays::new(store.clone());
                $body
            }
            AnyStore::MySql(store) => {
                let $name = Replays::new(store.clone());
                $body
            }
            AnyStore::Sqlite(store) => {
                let $name = Replays::new(store.clone());
                $body
            }
            AnyStore::Redis(_) => {
                return Err(Failure::usage(
                    "Redis keeps no list of replays: its consumers list them in code",
                ));
            }
        }
    };
}

pub(crate) use with_replays;

/// What is to be sent.
struct Sending<'a> {
    servers: &'a Servers,
    store: AnyStore,
    scope: &'a Scope,
    epoch: &'a Epoch,
    filter: &'a Filter,
    to: Option<&'a str>,
    most: u64,
    delivery_limit: Option<u32>,
}

pub(crate) async fn run(command: &Replay, servers: &Servers, printer: Printer) -> Result<Done, Failure> {
    match command {
        Replay::Open { scope, epoch, by, because, consent } => {
            let store = servers.store()?;
            let what = format!("let messages take effect once more in scope {scope:?} as {epoch:?}");
            if !may(consent, &what)? {
                return Ok(Done::Well);
            }
            let opened = with_replays!(&store, of => of.open(scope, epoch, by, because).await)?;
            changed(printer, scope, epoch, ("opened", opened))
        }
        Replay::Close { scope, epoch, consent } => {
            let store = servers.store()?;
            if !may(consent, &format!("close {epoch:?} in scope {scope:?}"))? {
                return Ok(Done::Well);
            }
            let closed = with_replays!(&store, of => of.close(scope, epoch).await)?;
            changed(printer, scope, epoch, ("closed", closed))
        }
        Replay::List { scope } => {
            let list = with_replays!(&servers.store()?, of => of.list(scope.as_ref()).await)?;
            printer.list(&list.iter().map(record).collect::<Vec<_>>())?;
            Ok(Done::Well)
        }
        Replay::Send { scope, epoch, from, filter, to, limit, delivery_limit, consent } => {
            let sending = Sending {
                servers,
                store: servers.store()?,
                scope,
                epoch,
                filter,
                to: to.as_deref(),
                most: limit.unwrap_or(u64::MAX),
                delivery_limit: Some(*delivery_limit).filter(|limit| *limit > 0),
            };
            match (&from.from_queue, &from.from_file) {
                (Some(queue), _) => sending.queue(queue, consent, printer).await,
                (None, Some(file)) => sending.file(file, consent, printer).await,
                (None, None) => Err(Failure::usage("from where?")),
            }
        }
    }
}

fn changed(
    printer: Printer,
    scope: &Scope,
    epoch: &Epoch,
    change: (&'static str, bool),
) -> Result<Done, Failure> {
    printer.one(&vec![
        ("scope", scope.as_str().into()),
        ("epoch", epoch.as_str().into()),
        (change.0, change.1.into()),
    ])?;
    Ok(Done::Well)
}

fn record(opening: &ReplayOpening) -> Record {
    vec![
        ("scope", opening.scope.as_str().into()),
        ("epoch", opening.epoch.as_str().into()),
        ("open", opening.closed_at.is_none().into()),
        ("replayed", opening.replayed.into()),
        ("by", opening.opened_by.as_str().into()),
        ("because", opening.reason.as_str().into()),
        ("opened_at", utc(opening.opened_at).into()),
        ("closed_at", opening.closed_at.map(utc).into()),
    ]
}

impl Sending<'_> {
    async fn is_open(&self) -> Result<bool, Failure> {
        let openings = with_replays!(&self.store, of => of.list(Some(self.scope)).await)?;
        Ok(openings.iter().any(|opening| opening.epoch == *self.epoch && opening.closed_at.is_none()))
    }

    async fn may(&self, consent: &Consent, what: &str) -> Result<bool, Failure> {
        if !self.is_open().await? {
            return Err(Failure::Failed(format!(
                "{:?} is not open in scope {:?}, so they would be parked: `replay open` comes first",
                self.epoch, self.scope
            )));
        }
        may(consent, what)
    }

    async fn queue(&self, queue: &str, consent: &Consent, printer: Printer) -> Result<Done, Failure> {
        let amqp = self.servers.amqp()?;
        if consent.dry_run {
            let mut ids = Vec::new();
            let looking = Looking::new(amqp, queue).delivery_limit(self.delivery_limit);
            let choose = |message: &lapin_idempotent::IncomingMessage| {
                if is_wanted(self.filter, message) {
                    ids.push(message.raw_message_id().unwrap_or_default().to_owned());
                }
                if ids.len() as u64 >= self.most { ParkedChoice::LeaveAndStop } else { ParkedChoice::Leave }
            };
            looking.each(choose).await?;
            return self.told(&ids, printer).await;
        }
        let what =
            format!("send messages of {queue:?} to take effect once more in scope {:?}", self.scope.as_str());
        if !self.may(consent, &what).await? {
            return Ok(Done::Well);
        }
        let filter = self.filter.clone();
        let mut unpark = Unpark::new(amqp, queue)
            .delivery_limit(self.delivery_limit)
            .limit(self.most)
            .only(move |message| is_wanted(&filter, message))
            .replay(self.epoch.clone());
        if let Some(to) = self.to {
            unpark = unpark.to(to);
        }
        let unparked = unpark.run().await?;
        printer.one(&vec![
            ("sent", unparked.moved.into()),
            ("left", unparked.left.into()),
            ("failed", unparked.failed.into()),
            ("last_error", unparked.last_error.into()),
        ])?;
        if unparked.failed > 0 {
            return Err(Failure::Failed("some messages could not be sent; they stay parked".to_owned()));
        }
        Ok(Done::Well)
    }

    async fn file(&self, file: &Path, consent: &Consent, printer: Printer) -> Result<Done, Failure> {
        // All of it is read before anything is sent.
        let mut ids = Vec::new();
        for line in self.chosen(file)? {
            let Line { number, message } = line?;
            message.validate().map_err(|error| bad(number, &error))?;
            ids.push(message.id().map(ToString::to_string).unwrap_or_default());
        }
        if consent.dry_run {
            return self.told(&ids, printer).await;
        }
        let what = format!(
            "send {} messages of {} to take effect once more in scope {:?}",
            ids.len(),
            file.display(),
            self.scope.as_str()
        );
        if !self.may(consent, &what).await? {
            return Ok(Done::Well);
        }
        let publisher = IdempotentPublisher::builder(self.servers.amqp()?).connect().await?;
        let (mut confirmed, mut failed) = (0_u64, None);
        let publish = async |line: Result<Line, Failure>| {
            let Line { number, message } = line?;
            let sent = publisher.publish_idempotent(message).await;
            sent.map(|_| ()).map_err(|error| unsent(number, &error))
        };
        // What is on its way behind a line that failed is waited for, and counted.
        let stopped = AtomicBool::new(false);
        let lines = self.chosen(file)?.take_while(|_| !stopped.load(Relaxed));
        let mut sending = stream::iter(lines).map(publish).buffered(IN_FLIGHT);
        while let Some(sent) = sending.next().await {
            match sent {
                Ok(()) => confirmed += 1,
                Err(error) => {
                    stopped.store(true, Relaxed);
                    failed.get_or_insert(error);
                }
            }
        }
        drop(sending);
        let closed = publisher.close(CLOSING).await;
        printer.one(&vec![("sent", confirmed.into())])?;
        if let Some(failed) = failed {
            return Err(failed);
        }
        closed?;
        Ok(Done::Well)
    }

    /// The lines of a file that are wanted, in the epoch.
    fn chosen(
        &self,
        file: &Path,
    ) -> Result<impl Iterator<Item = Result<Line, Failure>> + Send + use<'_>, Failure> {
        let replayed = |line: Result<Line, Failure>| {
            let Line { number, message } = line?;
            let message = message.replay(self.epoch.as_str()).map_err(|error| bad(number, &error))?;
            Ok(Line { number, message })
        };
        let most = usize::try_from(self.most).unwrap_or(usize::MAX);
        Ok(lines(file, self.to, self.filter)?.map(replayed).take(most))
    }

    /// What would become of them.
    async fn told(&self, ids: &[String], printer: Printer) -> Result<Done, Failure> {
        let (mut run, mut known, mut never, mut unusable) = (0_u64, 0_u64, 0_u64, 0_u64);
        with_replays!(&self.store, of => {
            for id in ids {
                let Ok(id) = MessageId::new(id.as_str()) else {
                    unusable += 1;
                    continue;
                };
                match of.look(self.scope, self.epoch, &id).await? {
                    ReplayOutlook::WouldRun => run += 1,
                    ReplayOutlook::Known => known += 1,
                    _ => never += 1,
                }
            }
        });
        printer.one(&vec![
            ("open", self.is_open().await?.into()),
            ("would_run", run.into()),
            ("known_in_this_epoch", known.into()),
            ("never_ran", never.into()),
            ("without_a_usable_id", unusable.into()),
        ])?;
        Ok(Done::Well)
    }
}

/// What is wrong with a line.
fn bad(line: usize, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Failed(format!("line {line}: {}; nothing was sent", chain(error)))
}

/// Why a line could not be sent.
fn unsent(line: usize, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::Failed(format!(
        "line {line}: {}; a few lines behind it were on their way, and nothing after these was sent. \
         To send the file again is harmless",
        chain(error)
    ))
}
