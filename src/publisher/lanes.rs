//! All lanes of a publisher: several connections, several channels on each.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::{join_all, try_join_all};
use lapin::{Channel, Connection};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};

use super::{
    connection::{Link, Topology},
    job::{Job, Payload},
    lane::Lane,
    observe::AttemptHook,
    places::Places,
    retry::RetryPolicy,
    status::{LaneState, Monitor},
};
use crate::amqp::{ConnectError, ConnectOptions};

/// How many messages in a row go to one lane: enough that a lane is woken for more than one.
const RUN: usize = 32;

/// What a lane needs to know; the same for all lanes of a publisher.
#[derive(Debug, Clone)]
pub(crate) struct LaneOptions {
    pub(crate) retry: RetryPolicy,
    pub(crate) confirm_timeout: Duration,
    pub(crate) mandatory: bool,
    pub(crate) on_attempt: AttemptHook,
}

impl LaneOptions {
    /// How often deadlines are looked at: fine enough for the shortest of them, coarse enough to cost nothing.
    pub(crate) fn resolution(&self) -> Duration {
        let finest = self.confirm_timeout.min(self.retry.total()) / 20;
        finest.clamp(Duration::from_millis(5), Duration::from_millis(100))
    }
}

/// What a lane shares with the others of its publisher.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) options: LaneOptions,
    pub(crate) places: Arc<Places>,
    pub(crate) monitor: Arc<Monitor>,
    /// Weak, or the publisher could never be seen to be dropped.
    pub(crate) lanes: Weak<Lanes>,
    /// The time by which the lanes must be done, once the publisher is being closed.
    pub(crate) closing: watch::Receiver<Option<Instant>>,
}

/// What the lanes are started with.
pub(crate) struct Setup {
    pub(crate) connect: ConnectOptions,
    pub(crate) topology: Option<Topology>,
    pub(crate) connections: usize,
    pub(crate) channels: usize,
    pub(crate) options: LaneOptions,
    pub(crate) places: Arc<Places>,
}

/// Where messages are handed over.
pub(crate) struct Lanes {
    intakes: Vec<mpsc::UnboundedSender<Job>>,
    monitor: Arc<Monitor>,
    next: AtomicUsize,
}

/// A publisher's lanes at work.
pub(crate) struct Started {
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) closing: watch::Sender<Option<Instant>>,
    /// Ends when all lanes have; gives what they left unconfirmed.
    pub(crate) working: JoinHandle<Vec<Payload>>,
}

/// Opens all connections and channels, then starts their lanes.
pub(crate) async fn start(setup: Setup) -> Result<Started, ConnectError> {
    let Setup { connect, topology, connections, channels, options, places } = setup;
    let opening = (0..connections).map(|_| open(connect.clone(), topology.clone(), channels));
    let opened = try_join_all(opening).await?;
    let monitor = Arc::new(Monitor::new(connections, channels, Arc::clone(&places)));
    let (closing, closed) = watch::channel(None);
    let (intakes, jobs): (Vec<_>, Vec<_>) =
        (0..connections * channels).map(|_| mpsc::unbounded_channel()).unzip();
    let lanes = Arc::new(Lanes { intakes, monitor: Arc::clone(&monitor), next: AtomicUsize::new(0) });
    let around = Surroundings {
        options,
        places,
        monitor: Arc::clone(&monitor),
        lanes: Arc::downgrade(&lanes),
        closing: closed,
    };
    let mut jobs = jobs.into_iter().enumerate();
    let mut working = Vec::new();
    for (link, channels) in opened {
        let running: Vec<_> = channels
            .into_iter()
            .zip(jobs.by_ref())
            .map(|(first, (number, jobs))| {
                monitor.set_lane(number, LaneState::Up);
                let lane = Lane::new(around.clone(), number, Arc::clone(&link), jobs);
                tokio::spawn(lane.run(Some(first)))
            })
            .collect();
        working.push(tokio::spawn(finish(link, running)));
    }
    let at_the_end = Arc::clone(&monitor);
    let working = tokio::spawn(async move {
        let left = join_all(working).await.into_iter().filter_map(Result::ok).flatten().collect();
        at_the_end.closed();
        left
    });
    Ok(Started { lanes, monitor, closing, working })
}

type Opened = (Arc<Connection>, Channel);

async fn open(
    connect: ConnectOptions,
    topology: Option<Topology>,
    channels: usize,
) -> Result<(Arc<Link>, Vec<Opened>), ConnectError> {
    let link = Arc::new(Link::new(connect, topology));
    let mut opened = Vec::with_capacity(channels);
    for _ in 0..channels {
        opened.push(link.channel().await?);
    }
    Ok((link, opened))
}

/// Closes a connection when all its lanes are done.
async fn finish(link: Arc<Link>, lanes: Vec<JoinHandle<Vec<Payload>>>) -> Vec<Payload> {
    let left = join_all(lanes).await.into_iter().filter_map(Result::ok).flatten().collect();
    link.close().await;
    left
}

impl Lanes {
    /// Hands a job to a lane that can send it, or else to any.
    pub(crate) fn send(&self, job: Job) {
        let count = self.intakes.len();
        let lane = if count == 1 {
            0
        } else {
            let turn = self.next.fetch_add(1, Relaxed) / RUN;
            (0..count)
                .map(|offset| (turn + offset) % count)
                .find(|lane| self.monitor.is_up(*lane))
                .unwrap_or(turn % count)
        };
        // If the lane has ended, the job is dropped, and with it its sender: the caller sees a closed publisher.
        let _ = self.intakes[lane].send(job);
    }

    /// Takes over a job from a lane that has no connection, if another has one; gives it back if not.
    pub(crate) fn adopt(&self, job: Job, from: usize) -> Option<Job> {
        let other = (0..self.intakes.len()).find(|lane| *lane != from && self.monitor.is_up(*lane));
        match other {
            Some(lane) => self.intakes[lane].send(job).err().map(|refused| refused.0),
            None => Some(job),
        }
    }
}
