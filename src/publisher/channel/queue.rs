//! Where messages are handed over: one queue for each channel, and the choice of the shortest.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::{sync::mpsc, time::Instant};

use super::job::Job;
use crate::publisher::{error::PublishErrorKind, status::Monitor};

/// Where messages are handed over.
pub(crate) struct Dispatcher {
    pub(crate) queues: Vec<JobSender>,
    pub(crate) monitor: Arc<Monitor>,
}

/// The sending half of a channel's queue.
pub(crate) struct JobSender {
    jobs: mpsc::UnboundedSender<Job>,
    entered: AtomicUsize,
    left: Arc<AtomicUsize>,
}

/// The receiving half.
pub(crate) struct JobReceiver {
    jobs: mpsc::UnboundedReceiver<Job>,
    taken: usize,
    left: Arc<AtomicUsize>,
}

impl JobReceiver {
    /// One into which nothing comes.
    #[cfg(test)]
    pub(crate) fn closed() -> Self {
        JobSender::new().1
    }

    pub(crate) async fn recv_many(&mut self, jobs: &mut Vec<Job>, limit: usize) -> usize {
        let taken = self.jobs.recv_many(jobs, limit).await;
        self.taken = self.taken.wrapping_add(taken);
        taken
    }

    /// Takes over the next of those that are still here once this is closed; `None` when there will
    /// be no more.
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

    /// Lets the others know how many of those that it took the worker still has.
    pub(crate) fn report(&self, still_here: usize) {
        self.left.store(self.taken.wrapping_sub(still_here), Relaxed);
    }
}

impl JobSender {
    pub(crate) fn new() -> (Self, JobReceiver) {
        let (sender, jobs) = mpsc::unbounded_channel();
        let left = Arc::new(AtomicUsize::new(0));
        let queue = Self { jobs: sender, entered: AtomicUsize::new(0), left: Arc::clone(&left) };
        (queue, JobReceiver { jobs, taken: 0, left })
    }

    /// Gives the job back if the worker has ended.
    fn enter(&self, job: Job) -> Option<Job> {
        self.entered.fetch_add(1, Relaxed);
        self.jobs.send(job).err().map(|refused| refused.0)
    }

    /// How many are in there, about.
    fn load(&self) -> usize {
        self.entered.load(Relaxed).wrapping_sub(self.left.load(Relaxed))
    }
}

impl Dispatcher {
    /// Hands a job to the worker with the fewest: a slow one gets less, and one that was just
    /// answered gets all of the next ones. A worker that has no channel gets none while
    /// another has.
    pub(crate) fn send(&self, job: Job) {
        let queue = match self.queues.as_slice() {
            [only] => only,
            // None is up: blocked or reconnecting, all of them.
            queues => {
                let up = self.lightest(|worker| self.monitor.is_up(worker));
                up.or_else(|| self.lightest(|_| true)).unwrap_or(&queues[0])
            }
        };
        if let Some(job) = queue.enter(job) {
            job.fail_with(PublishErrorKind::Closed, None, Instant::now());
        }
    }

    /// Takes over a job from a worker that has no connection, if another has one; gives it back if
    /// not.
    pub(crate) fn adopt(&self, job: Job, from: usize) -> Option<Job> {
        match self.lightest(|worker| worker != from && self.monitor.is_up(worker)) {
            Some(queue) => queue.enter(job),
            None => Some(job),
        }
    }

    fn lightest(&self, eligible: impl Fn(usize) -> bool) -> Option<&JobSender> {
        let workers = self.queues.iter().enumerate().filter(|(worker, _)| eligible(*worker));
        workers.map(|(_, queue)| queue).min_by_key(|queue| queue.load())
    }
}
