//! All lanes of a publisher: several connections, several channels on each.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::future::{join_all, try_join_all};
use lapin::Channel;
use tokio::{
    join,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{
    connection::{Link, Topology},
    error::PublishErrorKind,
    job::Job,
    lane::Lane,
    observe::AttemptHook,
    payload::Payload,
    places::Places,
    retry::RetryPolicy,
    status::{LaneState, Monitor},
};
use crate::{
    amqp::{ConnectError, ConnectOptions, Connection},
    error::caught,
};

/// How long a lane that panicked rests before it goes on: what made it panic may be there still.
const REST: Duration = Duration::from_millis(100);

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

impl Setup {
    fn link(&self) -> Arc<Link> {
        Arc::new(Link::new(self.connect.clone(), self.topology.clone(), self.channels))
    }
}

/// Where messages are handed over.
pub(crate) struct Lanes {
    doors: Vec<Door>,
    monitor: Arc<Monitor>,
}

/// The way into one lane.
struct Door {
    jobs: mpsc::UnboundedSender<Job>,
    entered: AtomicUsize,
    left: Arc<AtomicUsize>,
}

/// The other side of a [`Door`].
pub(crate) struct Intake {
    jobs: mpsc::UnboundedReceiver<Job>,
    taken: usize,
    left: Arc<AtomicUsize>,
}

impl Intake {
    pub(crate) async fn recv_many(&mut self, jobs: &mut Vec<Job>, limit: usize) -> usize {
        let taken = self.jobs.recv_many(jobs, limit).await;
        self.taken = self.taken.wrapping_add(taken);
        taken
    }

    /// Takes over the next of those that are still here once this is closed; `None` when there will be no more.
    pub(crate) async fn recv(&mut self) -> Option<Job> {
        self.jobs.recv().await
    }

    pub(crate) fn try_recv(&mut self) -> Option<Job> {
        let job = self.jobs.try_recv().ok()?;
        self.taken = self.taken.wrapping_add(1);
        Some(job)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub(crate) fn close(&mut self) {
        self.jobs.close();
    }

    /// Lets the others know how many of those that it took the lane still has.
    pub(crate) fn report(&self, still_here: usize) {
        self.left.store(self.taken.wrapping_sub(still_here), Relaxed);
    }
}

impl Door {
    fn new() -> (Self, Intake) {
        let (sender, jobs) = mpsc::unbounded_channel();
        let left = Arc::new(AtomicUsize::new(0));
        let door = Self { jobs: sender, entered: AtomicUsize::new(0), left: Arc::clone(&left) };
        (door, Intake { jobs, taken: 0, left })
    }

    /// Gives the job back if the lane has ended.
    fn enter(&self, job: Job) -> Option<Job> {
        self.entered.fetch_add(1, Relaxed);
        self.jobs.send(job).err().map(|refused| refused.0)
    }

    /// How many are in there, about.
    fn load(&self) -> usize {
        self.entered.load(Relaxed).wrapping_sub(self.left.load(Relaxed))
    }
}

/// A publisher's lanes at work.
pub(crate) struct Started {
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) monitor: Arc<Monitor>,
    pub(crate) closing: watch::Sender<Option<Instant>>,
    /// Holds what was left, once all lanes have ended and all connections are closed.
    pub(crate) ended: watch::Receiver<Option<Left>>,
}

/// What lanes left when they ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Left {
    /// What was not confirmed.
    pub(crate) payloads: Vec<Payload>,
    /// A lane panicked while it was to end, or never ended: more may be unconfirmed.
    pub(crate) unaccounted: bool,
}

impl Left {
    /// What several lanes left.
    fn of<E>(lanes: Vec<Result<Self, E>>) -> Self {
        let mut all = Self::default();
        for lane in lanes {
            let Ok(left) = lane else {
                all.unaccounted = true;
                continue;
            };
            all.payloads.extend(left.payloads);
            all.unaccounted |= left.unaccounted;
        }
        all
    }
}

/// Opens all connections and channels, then starts their lanes.
pub(crate) async fn start(setup: Setup) -> Result<Started, ConnectError> {
    let links = try_join_all((0..setup.connections).map(|_| open(setup.link(), setup.channels))).await?;
    Ok(set_to_work(setup, links))
}

/// Starts the lanes, which open their connections and channels by themselves.
pub(crate) fn start_unconnected(setup: Setup) -> Started {
    let unopened = || (0..setup.channels).map(|_| None).collect();
    let links = (0..setup.connections).map(|_| (setup.link(), unopened())).collect();
    set_to_work(setup, links)
}

type Opened = (Arc<Connection>, Channel);

/// A connection with what was opened on it for each of its lanes.
type Opening = (Arc<Link>, Vec<Option<Opened>>);

async fn open(link: Arc<Link>, channels: usize) -> Result<Opening, ConnectError> {
    let mut opened = Vec::with_capacity(channels);
    for _ in 0..channels {
        opened.push(Some(link.channel().await?));
    }
    Ok((link, opened))
}

fn set_to_work(setup: Setup, links: Vec<Opening>) -> Started {
    let Setup { connections, channels, options, places, .. } = setup;
    let monitor = Arc::new(Monitor::new(connections, channels, Arc::clone(&places)));
    let (closing, closed) = watch::channel(None);
    let (doors, jobs): (Vec<_>, Vec<_>) = (0..connections * channels).map(|_| Door::new()).unzip();
    let lanes = Arc::new(Lanes { doors, monitor: Arc::clone(&monitor) });
    let around = Surroundings {
        options,
        places: Arc::clone(&places),
        monitor: Arc::clone(&monitor),
        lanes: Arc::downgrade(&lanes),
        closing: closed,
    };
    let mut jobs = jobs.into_iter().enumerate();
    let mut working = Vec::new();
    for (link, channels) in links {
        let running: Vec<_> = channels
            .into_iter()
            .zip(jobs.by_ref())
            .map(|(first, (number, jobs))| {
                if first.is_some() {
                    monitor.set_lane(number, LaneState::Up);
                }
                let lane = Lane::new(around.clone(), number, Arc::clone(&link), jobs);
                tokio::spawn(keep(lane, number, first, around.clone()))
            })
            .collect();
        working.push(tokio::spawn(finish(link, running)));
    }
    let (sender, ended) = watch::channel(None);
    let at_the_end = AtTheEnd { monitor: Arc::clone(&monitor), places };
    tokio::spawn(async move {
        let left = Left::of(join_all(working).await);
        drop(at_the_end);
        sender.send_replace(Some(left));
    });
    Started { lanes, monitor, closing, ended }
}

/// Says that the publisher is closed, also when its runtime has dropped its tasks.
struct AtTheEnd {
    monitor: Arc<Monitor>,
    places: Arc<Places>,
}

impl Drop for AtTheEnd {
    fn drop(&mut self) {
        self.places.close();
        self.monitor.closed();
    }
}

/// Runs a lane to its end. If it panics, what it had in flight fails, as it may have been published; the rest goes on, on a
/// new channel.
async fn keep(mut lane: Lane, number: usize, mut first: Option<Opened>, around: Surroundings) -> Left {
    let mut unaccounted = false;
    loop {
        match caught("a publishing task", Box::pin(lane.run(first.take()))).await {
            Ok(payloads) => return Left { payloads, unaccounted },
            Err(panicked) => {
                unaccounted |= around.closing.borrow().is_some();
                tracing::error!(error = %panicked, "a publishing task goes on after a panic");
                around.monitor.set_lane(number, LaneState::Down);
                around.monitor.error(panicked.to_string());
                let _ = join!(sleep(REST), caught("a publishing task", lane.rest(REST)));
            }
        }
    }
}

/// Closes a connection when all its lanes are done.
async fn finish(link: Arc<Link>, lanes: Vec<JoinHandle<Left>>) -> Left {
    let left = Left::of(join_all(lanes).await);
    link.close().await;
    left
}

impl Lanes {
    /// Hands a job to the lane with the fewest: a slow one gets less, and one that was just answered gets the next ones, all at
    /// once. A lane that has no channel gets none while another has.
    pub(crate) fn send(&self, job: Job) {
        let door = match self.doors.as_slice() {
            [only] => only,
            // None is up: blocked or reconnecting, all of them.
            doors => {
                let up = self.lightest(|lane| self.monitor.is_up(lane));
                up.or_else(|| self.lightest(|_| true)).unwrap_or(&doors[0])
            }
        };
        if let Some(job) = door.enter(job) {
            job.fail_with(PublishErrorKind::Closed, None, Instant::now());
        }
    }

    /// Takes over a job from a lane that has no connection, if another has one; gives it back if not.
    pub(crate) fn adopt(&self, job: Job, from: usize) -> Option<Job> {
        match self.lightest(|lane| lane != from && self.monitor.is_up(lane)) {
            Some(door) => door.enter(job),
            None => Some(job),
        }
    }

    fn lightest(&self, eligible: impl Fn(usize) -> bool) -> Option<&Door> {
        let lanes = self.doors.iter().enumerate().filter(|(lane, _)| eligible(*lane));
        lanes.map(|(_, door)| door).min_by_key(|door| door.load())
    }
}
