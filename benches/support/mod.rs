//! Measuring: time, CPU of this process, peak memory; medians over rounds; a table and a JSON file.

use std::{
    collections::BTreeMap, fmt::Write, fs, future::Future, path::Path, process::Command, time::Duration,
};

use bytes::Bytes;
use lapin::{
    Channel, Connection, ConnectionProperties,
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

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
    /// Only cases whose name holds this.
    filter: String,
    /// By queue and case, in the order of the first round.
    samples: Vec<((String, String), Vec<Sample>)>,
}

/// What one run of one case took.
#[derive(Clone, Serialize, Deserialize)]
struct Sample {
    per_second: f64,
    cpu_us: f64,
    /// CPU of the broker and of the databases: of all their processes on this machine, so only good
    /// on one that is quiet.
    broker_us: f64,
    store_us: f64,
    rss_mb: f64,
    /// From publishing to the commit, where that is measured.
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    /// What else was measured.
    others: BTreeMap<String, f64>,
}

/// What a run took in all, and each of its messages.
#[derive(Default)]
#[allow(clippy::struct_field_names)]
pub(crate) struct Took {
    pub(crate) took: Duration,
    pub(crate) latencies: Vec<Duration>,
    pub(crate) others: BTreeMap<String, f64>,
}

/// A column of the report: what cases are compared with, each with which.
pub(crate) type Ratio = (&'static str, fn(&str) -> Option<&'static str>);

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
    let measured = || [cpu(), cpu_of(&["beam.smp"]), cpu_of(&["postgres", "redis-server", "valkey-server"])];
    let before = measured();
    let run: Took = run.await.into();
    let after = measured();
    let each =
        |index: usize| after[index].saturating_sub(before[index]).as_secs_f64() * 1e6 / messages as f64;
    let sample = Sample {
        per_second: messages as f64 / run.took.as_secs_f64(),
        cpu_us: each(0),
        broker_us: each(1),
        store_us: each(2),
        rss_mb: peak_rss_mb(),
        p50_ms: run.percentile(50),
        p99_ms: run.percentile(99),
        others: run.others,
    };
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
            samples: Vec::new(),
        }
    }

    /// Runs one case once, in a process of its own: neither memory nor warmed-up threads are
    /// inherited.
    pub(crate) fn measure(&mut self, case: &str, queue: &str, messages: usize) {
        if !case.contains(&self.filter) {
            return;
        }
        let output = Command::new(std::env::current_exe().expect("myself"))
            .args(["--once", case, queue, &messages.to_string()])
            .stderr(std::process::Stdio::inherit())
            .output()
            .expect("run");
        assert!(output.status.success(), "{case} failed");
        let sample: Sample = serde_json::from_slice(&output.stdout).expect("a sample");
        eprintln!(
            "{queue:>8} {case:<40} {:>9.0} msg/s, µs a message: client {:>6.1}, broker {:>6.1}, store {:>6.1}",
            sample.per_second, sample.cpu_us, sample.broker_us, sample.store_us
        );
        let key = (queue.to_owned(), case.to_owned());
        match self.samples.iter_mut().find(|(known, _)| *known == key) {
            Some((_, samples)) => samples.push(sample),
            None => self.samples.push((key, vec![sample])),
        }
    }

    /// Prints how a case compares with the best of some others in the same round: the median of the
    /// rounds.
    #[allow(dead_code, reason = "not all benches compare with more than one reference")]
    pub(crate) fn print_ratio(&self, queue: &str, case: &str, others: &[&str]) {
        let of = |case: &str| {
            let key = (queue.to_owned(), case.to_owned());
            self.samples.iter().find(|(known, _)| *known == key).map(|(_, samples)| samples)
        };
        let Some(ours) = of(case) else { return };
        let others: Vec<&Vec<Sample>> = others.iter().filter_map(|other| of(other)).collect();
        let print = |what: &str, value: fn(&Sample) -> Option<f64>| {
            let ratios = ours.iter().enumerate().filter_map(|(round, ours)| {
                let best = others.iter().filter_map(|other| value(&other[round])).reduce(f64::max)?;
                Some(value(ours)? / best)
            });
            let ratios: Vec<f64> = ratios.collect();
            if !ratios.is_empty() {
                let absolute = median(ours.iter().filter_map(value));
                println!("| {queue} | {case} | {what} | {absolute:.1} | {:.2} |", median(ratios.into_iter()));
            }
        };
        print("msg/s", |sample| Some(sample.per_second));
        print("p50, ms", |sample| sample.p50_ms);
        print("p99, ms", |sample| sample.p99_ms);
    }

    /// Prints the medians and writes them down; a ratio is the median of the ratios of single
    /// rounds.
    pub(crate) fn report(&self, name: &str, ratios: &[Ratio]) {
        let names: Vec<String> = ratios.iter().map(|(name, _)| name.replace('_', " ")).collect();
        println!(
            "| queue | case | msg/s | {} | CPU µs a message | peak RSS MB |\n|---|---|---|{}---|---|",
            names.join(" | "),
            "---|".repeat(names.len())
        );
        let mut cases = Vec::new();
        for ((queue, case), samples) in &self.samples {
            let ratio_to = |other: &str| {
                let key = (queue.clone(), other.to_owned());
                let others =
                    self.samples.iter().find(|(known, _)| *known == key).map(|(_, samples)| samples)?;
                Some(median(samples.iter().zip(others).map(|(a, b)| a.per_second / b.per_second)))
            };
            let ratios: Vec<(&str, Option<f64>)> = (ratios.iter())
                .map(|(name, reference)| (*name, reference(case).and_then(ratio_to)))
                .collect();
            let shown: Vec<String> = (ratios.iter())
                .map(|(_, ratio)| ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")))
                .collect();
            let per_second = median(samples.iter().map(|sample| sample.per_second));
            let cpu_us = median(samples.iter().map(|sample| sample.cpu_us));
            let rss_mb = median(samples.iter().map(|sample| sample.rss_mb));
            let shown = shown.join(" | ");
            println!("| {queue} | {case} | {per_second:.0} | {shown} | {cpu_us:.1} | {rss_mb:.0} |");
            cases.push(json!({
                "name": case, "queue": queue, "msgs_per_s": per_second,
                "cpu_us_per_msg": cpu_us, "rss_mb": rss_mb,
            }));
            for (name, ratio) in ratios {
                cases.last_mut().expect("a case")[name] = ratio.into();
            }
            for name in samples[0].others.keys() {
                let value = median(samples.iter().filter_map(|sample| sample.others.get(name).copied()));
                cases.last_mut().expect("a case")[name] = value.into();
                println!("    {queue}, {case}: {name} {value:.1}");
            }
            let [p50, p99] = percentiles(samples);
            if let (Some(p50), Some(p99), Some(case)) = (p50, p99, cases.last_mut()) {
                (case["p50_ms"], case["p99_ms"]) = (p50.into(), p99.into());
            }
        }
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        fs::create_dir_all(&dir).expect("target/bench");
        let text = serde_json::to_string_pretty(&cases).expect("json");
        fs::write(dir.join(format!("{name}.json")), text).expect("write");
        let bars: Vec<(String, f64)> = (self.samples.iter())
            .map(|((queue, case), samples)| {
                (format!("{queue}: {case}"), median(samples.iter().map(|sample| sample.per_second)))
            })
            .collect();
        fs::write(dir.join(format!("{name}.svg")), plot("messages a second, median", &bars)).expect("write");
    }
}

/// The medians over the rounds.
fn percentiles(samples: &[Sample]) -> [Option<f64>; 2] {
    let of = |value: fn(&Sample) -> Option<f64>| {
        let values: Vec<f64> = samples.iter().filter_map(value).collect();
        (!values.is_empty()).then(|| median(values.into_iter()))
    };
    [of(|sample| sample.p50_ms), of(|sample| sample.p99_ms)]
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

/// A bar for each case, as SVG.
fn plot(title: &str, bars: &[(String, f64)]) -> String {
    let longest = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let height = 40 + bars.len() * 22;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" \
         font-weight=\"bold\">{title}</text>\n"
    );
    for (n, (name, value)) in bars.iter().enumerate() {
        let (y, width) = (34 + n * 22, value / longest * 440.0);
        let colour = if name.contains("raw") { "#9aa5b1" } else { "#2f6f9f" };
        let text = y + 13;
        let end = 330.0 + width;
        let _ = writeln!(
            svg,
            "<text x=\"310\" y=\"{text}\" text-anchor=\"end\">{name}</text><rect x=\"320\" y=\"{y}\" \
             width=\"{width:.1}\" height=\"16\" fill=\"{colour}\"/><text x=\"{end:.1}\" y=\"{text}\">{value:.0}</text>"
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// User and system time of this process, of all its threads; 10 ms fine, see proc(5).
pub(crate) fn cpu() -> Duration {
    ticks(Path::new("/proc/self/stat"))
}

/// The same of all processes with these names.
fn cpu_of(names: &[&str]) -> Duration {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let named = processes.filter(|process| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        names.contains(&name.trim_end())
    });
    named.map(|process| ticks(&process.join("stat"))).sum()
}

fn ticks(stat: &Path) -> Duration {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).unwrap_or_default();
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
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
