//! Starting the workers of a publisher, keeping them at work, and their end.

use std::{sync::Arc, time::Duration};

use futures_util::future::{join_all, try_join_all};
use lapin::Channel;
use tokio::{
    join,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    channel::{ChannelWorker, Dispatcher, JobSender, WorkerContext, WorkerOptions},
    connection::SharedConnection,
    payload::Payload,
    permits::InFlightPermits,
    status::{Monitor, WorkerState},
};
use crate::{
    amqp::{ConnectError, ConnectOptions, Connection, Topology},
    error::caught,
};

/// How long a worker that panicked rests before it goes on: what made it panic may be there still.
const REST: Duration = Duration::from_millis(100);

/// What the workers are started with.
pub(crate) struct Setup {
    pub(crate) connect: ConnectOptions,
    pub(crate) topology: Option<Topology>,
    pub(crate) connections: usize,
    pub(crate) channels: usize,
    pub(crate) options: WorkerOptions,
    pub(crate) permits: Arc<InFlightPermits>,
}

impl Setup {
    fn connection(&self) -> Arc<SharedConnection> {
        Arc::new(SharedConnection::new(self.connect.clone(), self.topology.clone(), self.channels))
    }
}

/// A publisher's workers at work.
pub(crate) struct Started {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) closing: watch::Sender<Option<Instant>>,
    /// Holds what was left, once all workers have ended and all connections are closed.
    pub(crate) ended: watch::Receiver<Option<Left>>,
}

/// What workers left when they ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Left {
    /// What was not confirmed.
    pub(crate) payloads: Vec<Payload>,
    /// A worker panicked while it was to end, or never ended: more may be unconfirmed.
    pub(crate) unaccounted: bool,
}

impl Left {
    /// What several workers left.
    fn of<E>(workers: Vec<Result<Self, E>>) -> Self {
        let mut all = Self::default();
        for worker in workers {
            let Ok(left) = worker else {
                all.unaccounted = true;
                continue;
            };
            all.payloads.extend(left.payloads);
            all.unaccounted |= left.unaccounted;
        }
        all
    }
}

/// Opens all connections and channels, then starts their workers.
pub(crate) async fn start(setup: Setup) -> Result<Started, ConnectError> {
    let shared =
        try_join_all((0..setup.connections).map(|_| open(setup.connection(), setup.channels))).await?;
    Ok(spawn_workers(setup, shared))
}

/// Starts the workers, which open their connections and channels by themselves.
pub(crate) fn start_unconnected(setup: Setup) -> Started {
    let unopened = || (0..setup.channels).map(|_| None).collect();
    let shared = (0..setup.connections).map(|_| (setup.connection(), unopened())).collect();
    spawn_workers(setup, shared)
}

type Opened = (Arc<Connection>, Channel);

/// A connection with what was opened on it for each of its workers.
type Opening = (Arc<SharedConnection>, Vec<Option<Opened>>);

async fn open(connection: Arc<SharedConnection>, channels: usize) -> Result<Opening, ConnectError> {
    let mut opened = Vec::with_capacity(channels);
    for _ in 0..channels {
        opened.push(Some(connection.channel().await?));
    }
    Ok((connection, opened))
}

fn spawn_workers(setup: Setup, shared: Vec<Opening>) -> Started {
    let Setup { connections, channels, options, permits, .. } = setup;
    let monitor = Arc::new(Monitor::new(connections, channels, Arc::clone(&permits)));
    let (closing, closed) = watch::channel(None);
    let (queues, jobs): (Vec<_>, Vec<_>) = (0..connections * channels).map(|_| JobSender::new()).unzip();
    let dispatcher = Arc::new(Dispatcher { queues, monitor: Arc::clone(&monitor) });
    let context = WorkerContext {
        options,
        permits: Arc::clone(&permits),
        monitor: Arc::clone(&monitor),
        dispatcher: Arc::downgrade(&dispatcher),
        closing: closed,
    };
    let mut jobs = jobs.into_iter().enumerate();
    let mut working = Vec::new();
    for (connection, channels) in shared {
        let running: Vec<_> = channels
            .into_iter()
            .zip(jobs.by_ref())
            .map(|(first, (number, jobs))| {
                if first.is_some() {
                    monitor.set_worker(number, WorkerState::Up);
                }
                let worker = ChannelWorker::new(context.clone(), number, Arc::clone(&connection), jobs);
                tokio::spawn(keep(worker, number, first, context.clone()))
            })
            .collect();
        working.push(tokio::spawn(finish(connection, running)));
    }
    let (sender, ended) = watch::channel(None);
    let at_the_end = AtTheEnd { monitor: Arc::clone(&monitor), permits };
    tokio::spawn(async move {
        let left = Left::of(join_all(working).await);
        drop(at_the_end);
        sender.send_replace(Some(left));
    });
    Started { dispatcher, monitor, closing, ended }
}

/// Says that the publisher is closed, also when its runtime has dropped its tasks.
struct AtTheEnd {
    monitor: Arc<Monitor>,
    permits: Arc<InFlightPermits>,
}

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        self.permits.close();
        self.monitor.closed();
    }
}

/// Runs a worker to its end. If it panics, what it had in flight fails, as it may have been
/// published; the rest goes on, on a new channel.
async fn keep(
    mut worker: ChannelWorker,
    number: usize,
    mut first: Option<Opened>,
    context: WorkerContext,
) -> Left {
    let mut unaccounted = false;
    loop {
        match caught("a publishing task", Box::pin(worker.run(first.take()))).await {
            Ok(payloads) => return Left { payloads, unaccounted },
            Err(panicked) => {
                unaccounted |= context.closing.borrow().is_some();
                tracing::error!(error = %panicked, "a publishing task goes on after a panic");
                context.monitor.set_worker(number, WorkerState::Down);
                context.monitor.error(panicked.to_string());
                let _ = join!(sleep(REST), caught("a publishing task", worker.rest(REST)));
            }
        }
    }
}

/// Closes a connection when all its workers are done.
async fn finish(connection: Arc<SharedConnection>, workers: Vec<JoinHandle<Left>>) -> Left {
    let left = Left::of(join_all(workers).await);
    connection.close().await;
    left
}
