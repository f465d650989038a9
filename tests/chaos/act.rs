//! One run of a crew under faults, with or without the guard.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lapin_idempotent::{PostgresOutbox, PostgresStore};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    audit::{Audit, Findings},
    crew::Crew,
    faults::{Event, Troublemaker},
    producer,
    stage::{Left, Stage},
    tally::{Sample, Tally},
    verdict::Verdict,
    view::View,
};

/// What share of the time there is something new to publish; the rest is for what is late.
const PUBLISHING: f64 = 0.95;

/// So long without progress, once all faults are over, counts as the end.
const PATIENCE: Duration = Duration::from_secs(180);

pub struct Act<'a> {
    pub guarded: bool,
    /// Whether the publishers have an outbox.
    pub outbox: bool,
    pub time: Duration,
    pub messages: usize,
    pub publishers: usize,
    pub seed: u64,
    pub dir: &'a Path,
}

/// All that is known of it.
pub struct Account {
    pub verdict: Verdict,
    /// With an outbox.
    pub findings: Option<Findings>,
    pub tally: Tally,
    pub events: Vec<Event>,
    pub samples: Vec<Sample>,
    /// Until the last effect and an empty queue.
    pub took: Duration,
    /// Processes that were started again although nobody had killed them.
    pub restarts: usize,
    /// Consumers that did not stop when asked to.
    pub stuck: usize,
}

impl Act<'_> {
    pub async fn play(&self, stage: &Stage, view: &View) -> Account {
        std::fs::create_dir_all(self.dir).expect("folder");
        let queue = stage.queue().await;
        let table = |what: &str| format!("{what}_{}", if self.guarded { "guarded" } else { "control" });
        let effects = table("effect");
        let store = PostgresStore::connect(stage.postgres.url()).await.expect("connect");
        let store = store.table(&table("identity")).expect("name");
        store.create_schema().await.expect("schema");
        store.pool().close().await;
        stage
            .run(&format!("CREATE TABLE {effects} (number bigint NOT NULL, amount bigint NOT NULL)"))
            .await
            .expect("table");

        let tables = if self.guarded { "guarded" } else { "control" };
        let audit = if self.outbox {
            let outbox = PostgresOutbox::connect(stage.postgres.url()).await.expect("connect");
            let outbox = outbox.table(&producer::outbox_table(tables)).expect("name");
            outbox.create_schema().await.expect("schema");
            outbox.pool().close().await;
            stage.run(&producer::schema(tables)).await.expect("tables");
            Some(Audit::of(stage, &queue).await)
        } else {
            None
        };

        let consume = self.consume(stage.postgres.url(), &queue, &table("identity"), &effects);
        let publish = self.publish(stage.postgres.url(), &queue, tables);
        let crew = Crew::start(stage, self.dir, &publish, &consume).await;
        let began = Instant::now();
        let trouble = Troublemaker {
            stage,
            crew: &crew,
            queue: &queue,
            began,
            ends: began + self.time,
            events: Mutex::default(),
            broke: AtomicBool::new(false),
        };
        let mut watch = Watch::new(self, stage, &crew, &trouble, view, &effects).await;
        tokio::select! {
            () = trouble.make(self.seed) => {}
            () = watch.on() => {}
        }
        if trouble.broke.load(Ordering::SeqCst) {
            stage.mend().await;
        }
        watch.until_done(self.messages).await;
        let left = watch.until_empty(&queue).await;
        let took = began.elapsed();
        let (mut tally, samples) = (watch.tally, watch.samples);
        let stuck = crew.stop().await;
        tally.read();
        // What a consumer had in hand has gone back to the queue.
        let left = if left.is_empty() { stage.ready(&queue).await } else { left };
        let verdict = Verdict::reach(stage, &effects, &tally, left).await;
        let findings = match &audit {
            Some(audit) => Some(audit.judge(stage, tables).await),
            None => None,
        };
        let restarts = crew.restarts.load(Ordering::SeqCst);
        let events = trouble.events.into_inner().unwrap();
        Account { verdict, findings, tally, events, samples, took, restarts, stuck }
    }

    fn publish(&self, postgres: &str, queue: &str, tables: &str) -> Vec<Vec<String>> {
        let start = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        let rate = |count: usize| count as f64 / (self.time.as_secs_f64() * PUBLISHING);
        let first = |n: usize| n * self.messages / self.publishers;
        let shares = (0..self.publishers).map(|n| {
            let count = first(n + 1) - first(n);
            let words = [
                ("--first", first(n).to_string()),
                ("--count", count.to_string()),
                ("--start", start.to_string()),
                ("--per-second", rate(count).to_string()),
                ("--queue", queue.to_owned()),
            ];
            if !self.outbox {
                return arguments("publish", &words);
            }
            let mut arguments = arguments("produce", &words);
            arguments.extend(["--postgres", postgres, "--tables", tables].map(str::to_owned));
            arguments
        });
        shares.collect()
    }

    fn consume(&self, postgres: &str, queue: &str, identities: &str, effects: &str) -> Vec<String> {
        let words = [
            ("--postgres", postgres.to_owned()),
            ("--queue", queue.to_owned()),
            ("--identities", identities.to_owned()),
            ("--effects", effects.to_owned()),
        ];
        let mut arguments = arguments("consume", &words);
        if !self.guarded {
            arguments.push("--without-guard".to_owned());
        }
        arguments
    }
}

fn arguments(role: &str, words: &[(&str, String)]) -> Vec<String> {
    let mut all = vec![role.to_owned()];
    all.extend(words.iter().flat_map(|(name, value)| [(*name).to_owned(), value.clone()]));
    all
}

/// Looks after the processes, counts, and shows.
struct Watch<'a> {
    stage: &'a Stage,
    crew: &'a Crew,
    trouble: &'a Troublemaker<'a>,
    view: &'a View,
    count: String,
    tally: Tally,
    samples: Vec<Sample>,
}

impl<'a> Watch<'a> {
    async fn new(
        act: &Act<'_>,
        stage: &'a Stage,
        crew: &'a Crew,
        trouble: &'a Troublemaker<'a>,
        view: &'a View,
        effects: &str,
    ) -> Self {
        let mut journals = [Vec::new(), Vec::new()];
        for (journals, slots) in journals.iter_mut().zip([&crew.publishers, &crew.consumers]) {
            for slot in slots {
                journals.push(slot.lock().await.journal.clone());
            }
        }
        let [publishers, consumers] = journals;
        let tally = Tally::new(act.messages, publishers, consumers);
        let count = format!("SELECT count(DISTINCT number) FROM {effects}");
        Self { stage, crew, trouble, view, count, tally, samples: Vec::new() }
    }

    /// Does not end.
    async fn on(&mut self) {
        let mut seconds = interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            seconds.tick().await;
            self.look().await;
        }
    }

    async fn look(&mut self) -> Sample {
        self.crew.supervise();
        self.tally.read();
        let before = self.samples.last().copied().unwrap_or_default();
        let counted = self.stage.number(&self.count, Duration::from_secs(1)).await;
        let sample = Sample {
            at: self.trouble.began.elapsed(),
            confirmed: self.tally.confirmed(),
            // While the database is away there are no more than before.
            effects: counted.and_then(|count| usize::try_from(count).ok()).unwrap_or(before.effects),
            duplicates: self.tally.all_duplicates(),
            // A place that is locked is under a fault; its consumer will be back.
            consumers: self.crew.consuming().unwrap_or(before.consumers),
        };
        self.samples.push(sample);
        self.view.show(&sample, &self.trouble.events.lock().unwrap());
        sample
    }

    /// Until all messages are confirmed and have taken effect, or nothing moves any more.
    async fn until_done(&mut self, messages: usize) {
        let (mut moved, mut last) = (Instant::now(), Sample::default());
        while moved.elapsed() < PATIENCE {
            let now = self.look().await;
            if now.effects >= messages && self.crew.published().await {
                return;
            }
            if (now.confirmed, now.effects) != (last.confirmed, last.effects) {
                (moved, last) = (Instant::now(), now);
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Until the consumers have acked all there is; gives what they have not in the end.
    async fn until_empty(&mut self, queue: &str) -> Left {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = self.stage.left(queue).await;
            if left.is_empty() || Instant::now() > until {
                return left;
            }
            self.look().await;
            sleep(Duration::from_secs(1)).await;
        }
    }
}
