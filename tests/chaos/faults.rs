//! How each fault is done, and how it is known to have happened.

use std::{
    os::unix::process::ExitStatusExt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    crew::{CONSUMERS, Crew, Slot},
    link::Link,
    plan::{Fault, Kind, Lane, faults},
    stage::{NODES, Stage},
    support::proxy::{From, method},
};

/// A fault that was fired. The times are since the beginning.
#[derive(Debug, Clone)]
pub struct Event {
    pub kind: Kind,
    pub at: Duration,
    pub until: Duration,
    /// What was seen of it; none if nothing was.
    pub seen: Option<String>,
}

/// How long traffic is waited for, to hit it.
const TRAFFIC: Duration = Duration::from_secs(8);

/// A fault comes after so many messages at most.
const MESSAGES: usize = 40;

pub struct Troublemaker<'a> {
    pub stage: &'a Stage,
    pub crew: &'a Crew,
    pub queue: &'a str,
    pub began: Instant,
    pub ends: Instant,
    pub events: Mutex<Vec<Event>>,
    /// Some fault was not done as it should have been: the stage is to be mended.
    pub broke: AtomicBool,
}

impl Troublemaker<'_> {
    /// All lanes at once, until it is time to end.
    pub async fn make(&self, seed: u64) {
        let lanes = Lane::ALL.map(|lane| self.lane(seed, lane));
        futures_util::future::join_all(lanes).await;
    }

    async fn lane(&self, seed: u64, lane: Lane) {
        for fault in faults(seed, lane) {
            let due = Instant::now() + fault.after;
            if due >= self.ends {
                return;
            }
            sleep_until(due).await;
            let at = self.began.elapsed();
            // What a test would die of is here a fault that did not come about.
            let seen = AssertUnwindSafe(self.fire(&fault)).catch_unwind().await.unwrap_or_else(|_| {
                self.broke.store(true, Ordering::SeqCst);
                None
            });
            let event = Event { kind: fault.kind, at, until: self.began.elapsed(), seen };
            self.events.lock().unwrap().push(event);
        }
    }

    /// What was seen of it.
    async fn fire(&self, fault: &Fault) -> Option<String> {
        match fault.kind.lane() {
            Lane::Publishers => {
                process(&mut *Crew::pick(&self.crew.publishers, fault.whom).await?, fault).await
            }
            Lane::Consumers if fault.kind == Kind::ConsumersScaled => self.scale(fault).await,
            Lane::Consumers => {
                process(&mut *Crew::pick(&self.crew.consumers, fault.whom).await?, fault).await
            }
            Lane::Database => self.database(fault).await,
            Lane::Brokers => self.broker(fault).await,
        }
    }

    async fn scale(&self, fault: &Fault) -> Option<String> {
        let before = self.crew.consuming()?;
        let others = (1..=CONSUMERS).filter(|count| *count != before).collect::<Vec<_>>();
        let wanted = others[fault.whom % others.len()];
        self.crew.scale(wanted).await;
        Some(format!("{before} to {wanted}"))
    }

    async fn database(&self, fault: &Fault) -> Option<String> {
        let postgres = &self.stage.postgres;
        let answers =
            async || self.stage.number("SELECT 1::bigint", Duration::from_millis(300)).await.is_some();
        match fault.kind {
            Kind::BackendsTerminated => {
                let count = self.stage.terminate_backends().await.filter(|count| *count > 0)?;
                Some(format!("{count} sessions"))
            }
            Kind::DatabaseKilled => {
                postgres.kill().await;
                let gone = !answers().await;
                sleep(fault.lasts / 4).await;
                postgres.start_again().await;
                gone.then(|| "gone".to_owned())
            }
            _ => {
                postgres.pause().await;
                let silent = !answers().await;
                sleep(fault.lasts / 2).await;
                postgres.resume().await;
                silent.then(|| "silent".to_owned())
            }
        }
    }

    async fn broker(&self, fault: &Fault) -> Option<String> {
        let (cluster, nodes) = (&self.stage.cluster, self.stage.cluster.nodes());
        match fault.kind {
            Kind::LeaderKilled => {
                let leader = cluster.leader_of(self.queue).await;
                nodes[leader].kill().await;
                // The nodes that are left agree on another one.
                let next = cluster.leader_of(self.queue).await;
                sleep(fault.lasts / 2).await;
                nodes[leader].start_again().await;
                (next != leader).then(|| format!("node {leader}, then node {next} leads"))
            }
            Kind::FollowerKilled => {
                let leader = cluster.leader_of(self.queue).await;
                let other = (leader + 1 + fault.whom % (NODES - 1)) % NODES;
                nodes[other].kill().await;
                let gone = TcpStream::connect(address(nodes[other].url())).await.is_err();
                sleep(fault.lasts / 2).await;
                nodes[other].start_again().await;
                gone.then(|| format!("node {other}"))
            }
            Kind::NodeFrozen => {
                let node = fault.whom % NODES;
                nodes[node].pause().await;
                let greets = timeout(Duration::from_secs(1), greets(nodes[node].url())).await;
                sleep(fault.lasts).await;
                nodes[node].resume().await;
                greets.is_err().then(|| format!("node {node}"))
            }
            Kind::MemoryAlarm => {
                let node = fault.whom % NODES;
                nodes[node].memory_alarm(true).await;
                sleep(fault.lasts / 2).await;
                nodes[node].memory_alarm(false).await;
                Some(format!("node {node}"))
            }
            _ => {
                let mut counts = [0; NODES];
                for slot in self.crew.publishers.iter().chain(&self.crew.consumers) {
                    let Ok(slot) = slot.try_lock() else { continue };
                    (0..NODES).for_each(|node| counts[node] += slot.link.open_to(node));
                }
                let node = (0..NODES).max_by_key(|node| counts[*node])?;
                nodes[node].close_connections("chaos").await;
                (counts[node] > 0).then(|| format!("{} of node {node}", counts[node]))
            }
        }
    }
}

/// To one process, or to its connections: in the middle of its work.
async fn process(slot: &mut Slot, fault: &Fault) -> Option<String> {
    let link = Arc::clone(&slot.link);
    match fault.kind {
        Kind::PublisherKilled | Kind::ConsumerKilled => {
            busy(&link, fault).await;
            let status = slot.running()?.kill().await;
            slot.start();
            (status.signal() == Some(9)).then(|| "signal 9".to_owned())
        }
        Kind::PublisherFrozen | Kind::ConsumerFrozen => {
            busy(&link, fault).await;
            let process = slot.running()?;
            let frozen = process.freeze().await;
            sleep(fault.lasts).await;
            process.thaw();
            frozen.then(|| format!("{:.1} s", fault.lasts.as_secs_f64()))
        }
        Kind::PublisherDoubled => {
            busy(&link, fault).await;
            let mut first = slot.replace()?;
            let frozen = first.freeze().await;
            sleep(fault.lasts / 2).await;
            first.thaw();
            sleep(Duration::from_secs(2)).await;
            let both = first.ended().is_none() && slot.running().is_some();
            first.kill().await;
            (frozen && both).then(|| "both ran".to_owned())
        }
        Kind::PublisherCut | Kind::ConsumerCut => {
            busy(&link, fault).await;
            let cut = link.cut();
            (cut > 0).then(|| format!("{cut} connections"))
        }
        Kind::ConfirmsLost => lose(&link, From::Broker, fault.whom % 3).await,
        Kind::AcksLost => lose(&link, From::Client, fault.whom % 3).await,
        _ => {
            busy(&link, fault).await;
            let held = link.stall();
            sleep(fault.lasts).await;
            link.flow();
            let held = held.load(Ordering::SeqCst);
            (held > 0).then(|| format!("{:.1} s", fault.lasts.as_secs_f64()))
        }
    }
}

/// Waits until some messages have gone by. A fault that comes while nothing is under way shows
/// little.
async fn busy(link: &Link, fault: &Fault) {
    let (from, method) = match fault.kind.lane() {
        Lane::Publishers => (From::Client, method::BASIC_PUBLISH),
        _ => (From::Broker, method::BASIC_DELIVER),
    };
    let passed = link.after(from, method, 1 + fault.whom % MESSAGES);
    // Or until it is clear that there are none.
    let _ = timeout(TRAFFIC, passed.notified()).await;
    link.flow();
}

/// So many acks or confirms vanish, and then the connection goes, so that none of them is made up
/// for.
async fn lose(link: &Link, from: From, count: usize) -> Option<String> {
    let seen = link.lose(from, method::BASIC_ACK, count);
    let until = Instant::now() + TRAFFIC;
    while seen.load(Ordering::SeqCst) <= count && Instant::now() < until {
        sleep(Duration::from_millis(50)).await;
    }
    let lost = seen.load(Ordering::SeqCst).min(count + 1);
    link.flow();
    link.cut();
    (lost > 0).then(|| lost.to_string())
}

fn address(url: &str) -> &str {
    url.rsplit_once('@').map_or(url, |(_, rest)| rest.split('/').next().unwrap_or(rest))
}

/// Whether an AMQP server answers.
async fn greets(url: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address(url)).await else { return false };
    stream.write_all(b"AMQP\0\0\x09\x01").await.is_ok() && stream.read_u8().await.is_ok()
}
