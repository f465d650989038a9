//! What is written about a run, as Markdown.

use std::{
    fmt::{self, Write},
    fs, io,
    path::Path,
    time::Duration,
};

use super::{
    act::Account, audit::Findings, crew::CONSUMERS, faults::Event, plan::Kind, stage::NODES, tally::Sample,
    timeline, verdict::Verdict,
};

pub struct Report {
    pub seed: u64,
    pub minutes: f64,
    /// Of RabbitMQ and PostgreSQL.
    pub versions: (String, String),
    /// Without the guard.
    pub control: Account,
    pub account: Account,
}

impl Report {
    pub fn is_right(&self) -> bool {
        let findings = self.account.findings.as_ref().is_none_or(Findings::are_right);
        self.account.verdict.is_right() && findings && self.account.stuck == 0 && !self.is_void()
    }

    /// Faults that do no harm without the guard say nothing about it.
    fn is_void(&self) -> bool {
        self.control.verdict.doubled.is_empty()
    }

    pub fn write(&self, out: &Path) -> io::Result<()> {
        fs::create_dir_all(out)?;
        fs::write(out.join("chaos.md"), self.markdown())?;
        fs::write(out.join("chaos.svg"), timeline::draw(&self.account))
    }

    fn sentence(&self) -> &'static str {
        match (self.is_right(), self.is_void()) {
            (true, _) if self.account.findings.is_some() => {
                "What was committed was published in its order and took effect once, what was rolled back was not, and the queue is empty."
            }
            (true, _) => "Nothing was lost, nothing took effect twice, and the queue is empty.",
            (_, true) => "VOID: no effect was doubled without the guard.",
            _ => "NOT AS PROMISED.",
        }
    }

    fn markdown(&self) -> String {
        let mut text = String::new();
        self.write_to(&mut text).expect("a string");
        text
    }

    fn write_to(&self, text: &mut String) -> fmt::Result {
        let Self { seed, minutes, versions: (rabbitmq, postgres), account, control } = self;
        let messages = account.verdict.messages;
        writeln!(text, "# A chaos run\n")?;
        writeln!(text, "{}\n", self.sentence())?;
        let outbox = if account.findings.is_some() { " OUTBOX=1" } else { "" };
        writeln!(text, "```sh\nmake chaos MINUTES={minutes} SEED={seed} MESSAGES={messages}{outbox}\n```\n")?;
        if account.findings.is_some() {
            writeln!(
                text,
                "Publishers write orders down in PostgreSQL and announce them through an outbox, in one transaction, a tenth of which is rolled back; each has a relay. \
                 A second queue keeps every copy, and is compared with the orders in the end.\n"
            )?;
        }
        writeln!(
            text,
            "Written by the run itself. A cluster of {NODES} RabbitMQ {rabbitmq} nodes with a quorum queue, PostgreSQL {postgres}, publishers and up to {CONSUMERS} \
             consumers as processes of their own, on {} cores. The seed decides which faults come, in which order, to whom and after which pause; the moment that they hit is \
             the machine's. The same faults were first fired at consumers without the guard.\n",
            std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        )?;
        writeln!(text, "| | with the guard | without |\n|---|---|---|")?;
        for ((name, with), (_, without)) in rows(account).iter().zip(rows(control)) {
            writeln!(text, "| {name} | {with} | {without} |")?;
        }
        writeln!(text, "\n![What happened when](chaos.svg)\n")?;
        writeln!(
            text,
            "## Faults\n\nThose of the run with the guard. They come in four lanes, which overlap: publishers, consumers, database, brokers.\n"
        )?;
        writeln!(
            text,
            "| Fault | fired | seen | what is done, and what counts as seen |\n|---|---|---|---|"
        )?;
        for kind in Kind::ALL {
            let (fired, seen) = count(&account.events, kind);
            writeln!(text, "| {} | {fired} | {seen} | {} |", kind.name(), kind.meaning())?;
        }
        writeln!(text, "\n## Duplicates absorbed\n\n| Cause | copies |\n|---|---|")?;
        for (cause, count) in account.tally.duplicates() {
            writeln!(text, "| {cause} | {count} |")?;
        }
        writeln!(text, "\nAt least: what a killed consumer did not come to note is not among them.\n")?;
        if account.tally.failed.is_empty() {
            return writeln!(text, "No call of a publisher failed.");
        }
        let failed = account.tally.failed.iter().map(|(kind, count)| format!("{kind} {count}"));
        writeln!(
            text,
            "Calls that failed after all their attempts, and were made again by the application under the same ID: {}.",
            failed.collect::<Vec<_>>().join(", ")
        )
    }
}

/// The figures of a run.
fn rows(account: &Account) -> Vec<(&'static str, String)> {
    let Account { verdict, findings, tally, events, samples, took, restarts, stuck } = account;
    let Verdict { messages, confirmed, effects, lost, doubled, foreign, left } = verdict;
    let copies: i64 = doubled.iter().map(|(_, count)| count - 1).sum();
    let left: Vec<_> = left.iter().map(|(queue, count)| format!("{queue} {count}")).collect();
    let seen = events.iter().filter(|event| event.seen.is_some()).count();
    let kinds = Kind::ALL.iter().filter(|kind| count(events, **kind).1 > 0).count();
    let mut rows = vec![
        ("messages", messages.to_string()),
        ("confirmed", confirmed.to_string()),
        ("attempts that were noted", tally.attempts.to_string()),
        ("effects", effects.to_string()),
        ("**lost**: confirmed, without effect", lost.len().to_string()),
        ("**doubled**: with more than one effect", format!("{} ({copies} effects too many)", doubled.len())),
        ("effects of nothing", foreign.to_string()),
        ("left in queues", if left.is_empty() { "0".to_owned() } else { left.join(", ") }),
        ("faults seen", format!("{seen} of {kinds} kinds ({} fired)", events.len())),
        ("duplicates absorbed", tally.all_duplicates().to_string()),
        (
            "failed deliveries, tried again",
            tally.outcomes.get("retry").copied().unwrap_or_default().to_string(),
        ),
        ("processes started again by themselves", restarts.to_string()),
        ("consumers that did not stop when asked", stuck.to_string()),
        ("longest time without a new confirm", seconds(longest_pause(samples, |sample| sample.confirmed))),
        ("longest time without a new effect", seconds(longest_pause(samples, |sample| sample.effects))),
        ("most messages behind", samples.iter().map(Sample::lag).max().unwrap_or_default().to_string()),
        ("all took effect and was acked after", seconds(*took)),
    ];
    if let Some(findings) = findings {
        let Findings { committed, copies, unpublished, uncommitted, overtaken } = findings;
        rows.extend([
            ("orders committed", committed.to_string()),
            ("copies published", copies.to_string()),
            ("**committed, and not published**", unpublished.to_string()),
            ("**published, and not committed**", uncommitted.to_string()),
            ("**overtaken** by a later order of the account", overtaken.to_string()),
        ]);
    }
    rows
}

fn seconds(time: Duration) -> String {
    format!("{:.0} s", time.as_secs_f64())
}

fn count(events: &[Event], kind: Kind) -> (usize, usize) {
    let of_kind = events.iter().filter(|event| event.kind == kind);
    (of_kind.clone().count(), of_kind.filter(|event| event.seen.is_some()).count())
}

/// While there was something to come.
fn longest_pause(samples: &[Sample], what: impl Fn(&Sample) -> usize) -> Duration {
    let end = samples.iter().map(&what).max().unwrap_or_default();
    let (mut since, mut last, mut longest) = (Duration::ZERO, 0, Duration::ZERO);
    for sample in samples {
        let now = what(sample);
        if now > last {
            longest = longest.max(sample.at.saturating_sub(since));
            (since, last) = (sample.at, now);
        }
        if now == end {
            break;
        }
    }
    longest
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n  {:<42} {:>24} {:>24}\n", "", "with the guard", "without")?;
        for ((name, with), (_, without)) in rows(&self.account).iter().zip(rows(&self.control)) {
            writeln!(f, "  {:<42} {with:>24} {without:>24}", name.replace("**", ""))?;
        }
        writeln!(f, "\n  {}", self.sentence())
    }
}
