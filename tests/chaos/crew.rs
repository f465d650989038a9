//! The processes: started, started again when they die, more or fewer of them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Mutex;

use super::{link::Link, process::Process, stage::Stage};

/// At most so many consumers run at once.
pub const CONSUMERS: usize = 5;
/// With so many it begins.
const CONSUMERS_AT_FIRST: usize = 3;

/// How long a consumer may take to stop when it is asked to: it drains for ten seconds.
const STOPPING: Duration = Duration::from_secs(60);

/// A place for a process.
pub struct Slot {
    pub link: Arc<Link>,
    pub journal: PathBuf,
    arguments: Vec<String>,
    process: Option<Process>,
    /// Whether one is to run here.
    wanted: bool,
}

impl Slot {
    async fn new(stage: &Stage, dir: &Path, name: &str, role: &[String]) -> Self {
        let link = Arc::new(Link::start(&stage.nodes()).await);
        let journal = dir.join(format!("{name}.journal"));
        let mut arguments = role.to_vec();
        for url in link.urls() {
            arguments.extend(["--amqp".to_owned(), url]);
        }
        arguments.extend(["--journal".to_owned(), journal.to_str().expect("UTF-8").to_owned()]);
        Self { link, journal, arguments, process: None, wanted: false }
    }

    pub fn start(&mut self) {
        self.process = Some(self.another());
        self.wanted = true;
    }

    /// A process for the same work, beside the one that runs here.
    fn another(&self) -> Process {
        Process::start(&self.arguments, &self.journal.with_extension("log"))
    }

    /// The process that runs here, if there is one.
    pub fn running(&mut self) -> Option<&mut Process> {
        let process = self.process.as_mut()?;
        if process.ended().is_none() { Some(process) } else { None }
    }

    /// Replaces the process: the one that ran is given, and runs on.
    pub fn replace(&mut self) -> Option<Process> {
        let another = self.another();
        self.process.replace(another).filter(|_| self.wanted)
    }

    /// Whether it stopped in time when it was asked to.
    pub async fn stop(&mut self) -> bool {
        self.wanted = false;
        let Some(mut process) = self.process.take() else { return true };
        process.ended().is_some() || process.stop(STOPPING).await
    }

    /// All its work is done: a publisher's, that is.
    pub fn is_done(&mut self) -> bool {
        let done = |process: &mut Process| process.ended().is_some_and(|status| status.success());
        self.process.as_mut().is_some_and(done)
    }
}

pub struct Crew {
    pub publishers: Vec<Mutex<Slot>>,
    pub consumers: Vec<Mutex<Slot>>,
    /// How often a process was started again that nobody had killed.
    pub restarts: AtomicUsize,
}

impl Crew {
    /// `publish` and `consume` are the arguments of each process, but for its connections and its
    /// journal.
    pub async fn start(stage: &Stage, dir: &Path, publish: &[Vec<String>], consume: &[String]) -> Self {
        let (mut publishers, mut consumers) = (Vec::new(), Vec::new());
        for (n, role) in publish.iter().enumerate() {
            publishers.push(Slot::new(stage, dir, &format!("publisher-{n}"), role).await);
        }
        for n in 0..CONSUMERS {
            consumers.push(Slot::new(stage, dir, &format!("consumer-{n}"), consume).await);
        }
        publishers.iter_mut().chain(consumers.iter_mut().take(CONSUMERS_AT_FIRST)).for_each(Slot::start);
        let locked = |slots: Vec<Slot>| slots.into_iter().map(Mutex::new).collect();
        Self { publishers: locked(publishers), consumers: locked(consumers), restarts: AtomicUsize::new(0) }
    }

    /// Starts those again that have ended and should not have: one that cannot connect at its start
    /// gives up. A place that is locked is somebody's who sees to it.
    pub fn supervise(&self) {
        for slot in self.publishers.iter().chain(&self.consumers) {
            let Ok(mut slot) = slot.try_lock() else { continue };
            if slot.wanted && slot.running().is_none() && !slot.is_done() {
                slot.start();
                self.restarts.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    pub async fn published(&self) -> bool {
        for slot in &self.publishers {
            if !slot.lock().await.is_done() {
                return false;
            }
        }
        true
    }

    /// How many consumers there are to be, if no place is locked.
    pub fn consuming(&self) -> Option<usize> {
        let wanted = self.consumers.iter().map(|slot| slot.try_lock().map(|slot| usize::from(slot.wanted)));
        wanted.sum::<Result<usize, _>>().ok()
    }

    /// One that runs; `whom` counts round.
    pub async fn pick(slots: &[Mutex<Slot>], whom: usize) -> Option<tokio::sync::MutexGuard<'_, Slot>> {
        for n in 0..slots.len() {
            let mut slot = slots[(whom + n) % slots.len()].lock().await;
            if slot.wanted && slot.running().is_some() {
                return Some(slot);
            }
        }
        None
    }

    /// Starts and stops consumers, to so many.
    pub async fn scale(&self, wanted: usize) {
        for (n, slot) in self.consumers.iter().enumerate() {
            let mut slot = slot.lock().await;
            if n >= wanted {
                slot.stop().await;
            } else if !slot.wanted {
                slot.start();
            }
        }
    }

    /// Stops all consumers: how many had to be killed.
    pub async fn stop(&self) -> usize {
        let mut killed = 0;
        for slot in &self.consumers {
            killed += usize::from(!slot.lock().await.stop().await);
        }
        killed
    }
}
