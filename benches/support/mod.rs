//! Measuring: time, CPU of this process, peak memory; a process of its own for each sample.

pub(crate) mod figures;
#[allow(dead_code, reason = "the report writes it")]
pub(crate) mod readme;
pub(crate) mod report;
#[cfg(all(feature = "mysql", feature = "postgres", feature = "redis", feature = "sqlite"))]
#[allow(dead_code, reason = "not all benches ask databases")]
pub(crate) mod servers;

use std::{collections::BTreeMap, fs, future::Future, path::Path, process::Command, time::Duration};

use self::{
    figures::{Figures, PER_SECOND, Sample},
    report::{Aims, verdicts},
};
use bytes::Bytes;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};

/// The processes of stores; MariaDB names itself by its thread.
const STORES: [&str; 5] = ["postgres", "mariadbd", "mysqld", "redis-server", "valkey-server"];

/// 256 bytes of JSON.
pub(crate) fn body() -> Bytes {
    let mut body = br#"{"order":"order-0000042","account":"account-17","amount":500,"note":""#.to_vec();
    body.resize(254, b'x');
    body.extend_from_slice(b"\"}");
    body.into()
}

pub(crate) struct Bench {
    pub(crate) messages: usize,
    pub(crate) rounds: usize,
    /// Only cases whose name holds this, or one of these with | between them.
    filter: String,
    figures: Figures,
}

/// What a run took in all, and each of its messages.
#[derive(Default)]
#[allow(clippy::struct_field_names)]
pub(crate) struct Took {
    pub(crate) took: Duration,
    pub(crate) latencies: Vec<Duration>,
    pub(crate) others: BTreeMap<String, f64>,
}

impl From<Duration> for Took {
    fn from(took: Duration) -> Self {
        Self { took, ..Self::default() }
    }
}

impl Took {
    fn percentile(&self, percent: usize) -> Option<f64> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(index).map(|took| took.as_secs_f64() * 1e3)
    }
}

pub(crate) fn amqp() -> String {
    std::env::var("AMQP_URL").expect("AMQP_URL: run `make bench`")
}

/// In a child: which case to run once, on which kind of queue, with how many messages.
pub(crate) fn child() -> Option<(String, String, usize)> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--once").skip(1);
    Some((arguments.next()?, arguments.next()?, arguments.next()?.parse().ok()?))
}

/// Runs a case once and prints its sample; it says itself how long the messages took, so that
/// connecting does not count.
pub(crate) async fn once(messages: usize, run: impl Future<Output = impl Into<Took>>) {
    // Resets the peak of the resident set, see proc(5).
    let _ = fs::write("/proc/self/clear_refs", "5");
    let measured = || [cpu(), cpu_of(&["beam.smp"]), cpu_of(&STORES)];
    let before = measured();
    let run: Took = run.await.into();
    let after = measured();
    let each =
        |index: usize| after[index].saturating_sub(before[index]).as_secs_f64() * 1e6 / messages as f64;
    let mut sample = Sample::from([
        (PER_SECOND.to_owned(), messages as f64 / run.took.as_secs_f64()),
        ("cpu_us".to_owned(), each(0)),
        // All processes of theirs on this machine, so only good on one that is quiet.
        ("broker_us".to_owned(), each(1)),
        ("store_us".to_owned(), each(2)),
        ("rss_mb".to_owned(), peak_rss_mb()),
    ]);
    for (name, percent) in [("p50_ms", 50), ("p99_ms", 99)] {
        sample.extend(run.percentile(percent).map(|took| (name.to_owned(), took)));
    }
    sample.extend(run.others);
    println!("{}", serde_json::to_string(&sample).expect("json"));
}

impl Bench {
    pub(crate) fn from_args(messages: usize, rounds: usize) -> Self {
        // Cargo passes --bench.
        let numbers: Vec<usize> =
            std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
        Self {
            messages: numbers.first().copied().unwrap_or(messages),
            rounds: numbers.get(1).copied().unwrap_or(rounds),
            filter: std::env::args()
                .skip(1)
                .find(|argument| !argument.starts_with('-') && argument.parse::<usize>().is_err())
                .unwrap_or_default(),
            figures: Figures::default(),
        }
    }

    /// Runs one case once, in a process of its own: neither memory nor warmed-up threads are
    /// inherited.
    pub(crate) fn measure(&mut self, case: &str, queue: &str, messages: usize) {
        if !self.filter.split('|').any(|part| case.contains(part)) {
            return;
        }
        let output = Command::new(std::env::current_exe().expect("myself"))
            .args(["--once", case, queue, &messages.to_string()])
            .stderr(std::process::Stdio::inherit())
            .output()
            .expect("run");
        assert!(output.status.success(), "{case} failed");
        let sample: Sample = serde_json::from_slice(&output.stdout).expect("a sample");
        let of = |figure: &str| sample.get(figure).copied().unwrap_or_default();
        eprintln!(
            "{queue:>8} {case:<40} {:>9.0} msg/s, µs a message: client {:>6.1}, broker {:>6.1}, store {:>6.1}",
            of(PER_SECOND),
            of("cpu_us"),
            of("broker_us"),
            of("store_us")
        );
        self.figures.add(queue, case, sample);
    }

    /// Prints what was measured and writes it down.
    pub(crate) fn report(mut self, bench: &str, servers: Vec<(&str, String)>) {
        let numbers = [("messages", self.messages.to_string()), ("rounds", self.rounds.to_string())];
        let setting = servers.into_iter().chain(numbers);
        self.figures.setting.extend(setting.map(|(what, value)| (what.to_owned(), value)));
        report(bench, &self.figures);
    }
}

/// Prints what was measured and writes it down.
pub(crate) fn report(bench: &str, figures: &Figures) {
    figures.write(bench);
    let aims = Aims::read(include_str!("../aims.toml"));
    println!("{}\n{}", aims.table(bench, figures), verdicts(&[("here", aims.judge(bench, figures))]));
}

/// Another order in every round, forwards and backwards, so that no case always follows the same
/// one.
pub(crate) fn in_turn(cases: &[&'static str], round: usize) -> Vec<&'static str> {
    let mut cases = cases.to_vec();
    let count = cases.len();
    cases.rotate_left(round / 2 % count);
    if round % 2 == 1 {
        cases.reverse();
    }
    cases
}

/// User and system time of this process, of all its threads; 10 ms fine, see proc(5).
pub(crate) fn cpu() -> Duration {
    ticks(Path::new("/proc/self/stat"), 11..13)
}

/// The same of all processes with these names.
fn cpu_of(names: &[&str]) -> Duration {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let named = processes.filter(|process| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        names.contains(&name.trim_end())
    });
    // With that of children that ended: PostgreSQL has a process for each connection.
    named.map(|process| ticks(&process.join("stat"), 11..15)).sum()
}

fn ticks(stat: &Path, mut which: std::ops::Range<usize>) -> Duration {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    Duration::from_millis(which.try_fold(0, |sum, index| Some(sum + ticks(index)?)).unwrap_or_default() * 10)
}

fn peak_rss_mb() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(f64::NAN) / 1024.0
}

/// A durable queue of its own.
pub(crate) struct Queue {
    pub(crate) name: String,
    channel: Channel,
    _connection: Connection,
}

impl Queue {
    pub(crate) async fn declare(amqp: &str, kind: &str) -> Self {
        // Small frames: lapin's buffers are 64 times as large, and this connection is not what is
        // measured.
        let uri = format!("{amqp}?frame_max=8192");
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await.expect("connect");
        let channel = connection.create_channel().await.expect("channel");
        // As long as names are; an outbox stores it with each message.
        let name = format!("bench.{kind}.{:08x}", uuid::Uuid::new_v4().as_fields().0);
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.as_str().into(), durable, arguments).await.expect("declare");
        Self { name, channel, _connection: connection }
    }

    pub(crate) async fn delete(&self) {
        self.channel
            .queue_delete(self.name.as_str().into(), QueueDeleteOptions::default())
            .await
            .expect("delete");
    }
}
