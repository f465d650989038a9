//! The loop that sends: it waits for whatever comes first, and lets the worker decide.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};

use futures_util::{
    future::{Fuse, FusedFuture, FutureExt},
    stream::{FuturesUnordered, StreamExt},
};
use tokio::{
    sync::watch,
    task::unconstrained,
    time::{Instant, sleep},
};

use super::{
    holding::{Emptied, Holding},
    memory::{Outgoing, Sent},
    requests::perform,
    settings::Settings,
    verdicts::Refusal,
    worker::Worker,
};
use crate::{
    OutgoingMessage, PublishError, Receipt,
    error::{Panicked, caught},
    outbox::{
        contract::Outbox,
        status::RelayMonitor,
        verdict::{reason, shortened},
    },
    publisher::{Publish, PublishErrorKind},
};

/// So many verdicts are taken before anything else is looked at.
const VERDICTS: usize = 256;

/// What the loop is told of from outside.
pub(super) struct Told {
    /// The lanes.
    pub(super) holding: watch::Receiver<Holding>,
    /// Everything is to be read once more.
    pub(super) refreshed: watch::Receiver<()>,
    /// Whether commits of other processes are heard of.
    pub(super) heard: watch::Receiver<bool>,
}

/// Relays until `shutdown`, and then to the end of what is in flight.
pub(super) async fn work<O: Outbox, P: Publish>(
    outbox: &O,
    publisher: &P,
    settings: &Settings,
    monitor: &RelayMonitor,
    told: Told,
    empty: watch::Sender<Emptied>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let Told { mut holding, mut refreshed, mut heard } = told;
    let mut woken = outbox.waker().subscribe();
    let mut worker = Worker::new(settings, monitor);
    if !is_ready(publisher) {
        // What a publisher is given before it was ever connected waits in it, for as long as its
        // policy says.
        worker.broker_pause = Some(Duration::ZERO);
    }
    let mut sends = FuturesUnordered::new();
    let mut verdicts = Vec::with_capacity(VERDICTS);
    let mut asked = pin!(Fuse::terminated());
    let mut broker = pin!(Fuse::terminated());
    let mut alarm = pin!(sleep(Duration::ZERO));
    let mut shutdown = pin!(shutdown.fuse());
    loop {
        let now = Instant::now();
        if woken.has_changed().unwrap_or(false) {
            woken.mark_unchanged();
            worker.wake();
        }
        worker.tick(now);
        while let Some(outgoing) = worker.next(now) {
            match outgoing {
                Outgoing::Message(sent, message) => sends.push(send(publisher, sent, *message)),
                Outgoing::Unreadable(sent, reason) => {
                    let kind = PublishErrorKind::Invalid;
                    worker.verdict(&sent, Err(Refusal { kind, reason, is_ready: true }), now);
                }
            }
        }
        if asked.is_terminated()
            && let Some(request) = worker.next_request(now)
        {
            asked.set(perform(outbox, request).fuse());
        }
        if let (Some(pause), true) = (worker.broker_pause(), broker.is_terminated()) {
            broker.set(back(publisher, pause).fuse());
        }
        worker.report(&empty);
        if worker.is_done(now, asked.is_terminated()) {
            return;
        }
        let due = worker.due(now, asked.is_terminated());
        if let Some(due) = due.filter(|due| alarm.deadline() != *due) {
            alarm.as_mut().reset(due);
        }
        tokio::select! {
            biased;
            () = &mut shutdown => worker.stop(Instant::now()),
            Ok(()) = holding.changed() => worker.hold(&holding.borrow_and_update(), Instant::now()),
            Ok(()) = heard.changed() => worker.hears(*heard.borrow_and_update()),
            Ok(()) = refreshed.changed() => worker.refresh(),
            done = &mut asked => worker.done(done, Instant::now()),
            () = &mut broker => worker.broker_back(),
            () = some(&mut sends, &mut verdicts) => {
                let now = Instant::now();
                for (sent, result) in verdicts.drain(..) {
                    worker.verdict(&sent, refused(publisher, result), now);
                }
            }
            Ok(()) = woken.changed() => worker.wake(),
            () = &mut alarm, if due.is_some() => {}
        }
    }
}

/// What came of a publish.
type Published = Result<Result<Receipt, PublishError>, Panicked>;

/// A panic of a publisher, which may be the application's, is the matter of its message and of no
/// other.
async fn send<P: Publish>(publisher: &P, sent: Sent, message: OutgoingMessage) -> (Sent, Published) {
    let published = caught("the publisher", async { publisher.publish(message).await }).await;
    (sent, published)
}

/// Whether the publisher has a connection now.
fn is_ready<P: Publish>(publisher: &P) -> bool {
    // With tokio's budget of this task used up, nothing of tokio's is ever ready.
    let ready = unconstrained(caught("the publisher", async { publisher.ready().await }));
    matches!(ready.now_or_never(), Some(Ok(())))
}

/// Waits until the broker is worth another try.
async fn back<P: Publish>(publisher: &P, pause: Duration) {
    sleep(pause).await;
    if let Err(panicked) = caught("the publisher", async { publisher.ready().await }).await {
        // Whether it has a connection is found by sending.
        tracing::error!(error = %panicked, "it is not known whether the broker is there");
    }
}

/// Waits for some verdicts, and takes those that are there. Nothing is lost if it is dropped.
async fn some<F: Future>(sends: &mut FuturesUnordered<F>, verdicts: &mut Vec<F::Output>) {
    poll_fn(|cx| {
        while verdicts.len() < VERDICTS {
            match sends.poll_next_unpin(cx) {
                Poll::Ready(Some(verdict)) => verdicts.push(verdict),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if verdicts.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

fn refused<P: Publish>(publisher: &P, result: Published) -> Result<(), Refusal> {
    let error = match result {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error,
        Err(panicked) => {
            let reason = shortened(&panicked.to_string());
            return Err(Refusal { kind: PublishErrorKind::Refused, reason, is_ready: true });
        }
    };
    let kind = error.kind();
    // It matters for this one only.
    let is_ready = kind == PublishErrorKind::TimedOut && is_ready(publisher);
    Err(Refusal { kind, reason: reason(&error), is_ready })
}
