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
    job::Job,
    lane::Lane,
    observe::AttemptHook,
    payload::Payload,
    places::Places,
    retry::RetryPolicy,
    status::{LaneState, Monitor},
};
use crate::amqp::{ConnectError, ConnectOptions};

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
    let (doors, jobs): (Vec<_>, Vec<_>) = (0..connections * channels).map(|_| Door::new()).unzip();
    let lanes = Arc::new(Lanes { doors, monitor: Arc::clone(&monitor) });
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
    let link = Arc::new(Link::new(connect, topology, channels));
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
        // If the lane has ended, the job is dropped, and with it its sender: the caller sees a closed publisher.
        let _ = door.enter(job);
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
