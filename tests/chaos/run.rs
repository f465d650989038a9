//! A run: first without the guard, to see what the faults are worth, then with it.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use lapin_idempotent::BoxError;

use super::{
    act::{Account, Act},
    report::Report,
    stage::Stage,
    support::unique,
    view::View,
};

#[derive(Debug, Clone, Args)]
pub struct Options {
    /// For how long faults are fired
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// What the faults follow from [default: another one each time; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// How many messages are published meanwhile [default: 5,000 a minute]
    #[arg(long)]
    messages: Option<usize>,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// The publishers write orders down and announce them through an outbox, with a relay each
    #[arg(long)]
    outbox: bool,
    /// Where the report goes: chaos.md and chaos.svg
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/chaos"))]
    out: PathBuf,
}

impl Options {
    /// For a test: with a seed whose first faults include lost acks and lost confirms.
    pub fn short(outbox: bool) -> Self {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique("report"));
        Self { minutes: 0.75, seed: Some(1), messages: Some(4000), publishers: 3, outbox, out }
    }

    fn time(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a number of messages
    fn messages(&self) -> usize {
        self.messages.unwrap_or((self.minutes * 5000.0) as usize)
    }

    /// The run without the guard is a part of the other: enough faults for some doubles.
    fn control(&self) -> (Duration, usize) {
        let time = (self.time() / 3).clamp(Duration::from_secs(20), Duration::from_secs(60)).min(self.time());
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let messages = (self.messages() as f64 * time.as_secs_f64() / self.time().as_secs_f64()) as usize;
        (time, messages)
    }
}

/// Whether everything was as promised, and would not have been without the guard.
pub async fn run(options: &Options) -> Result<bool, BoxError> {
    tokio::select! {
        right = both(options) => right,
        // Servers and processes end with what is dropped.
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into).and(Err("interrupted".into())),
    }
}

async fn both(options: &Options) -> Result<bool, BoxError> {
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    let files = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique("chaos"));
    println!("seed {seed}; starting three RabbitMQ nodes and PostgreSQL");
    let stage = Stage::set().await;
    let versions = stage.versions().await;
    let play = async |guarded: bool, time: Duration, messages: usize| -> Account {
        let view = View::new(messages);
        let how = if guarded { "with the guard" } else { "without the guard" };
        view.say(&format!("{how}: {messages} messages, faults for {} s", time.as_secs()));
        let dir = files.join(if guarded { "guarded" } else { "control" });
        let publishers = usize::from(options.publishers);
        let outbox = options.outbox;
        Act { guarded, outbox, time, messages, publishers, seed, dir: &dir }.play(&stage, &view).await
    };
    let (time, messages) = options.control();
    let control = play(false, time, messages).await;
    let account = play(true, options.time(), options.messages()).await;
    let report = Report { seed, minutes: options.minutes, versions, control, account };
    report.write(&options.out)?;
    println!("{report}");
    println!("report: {}", options.out.join("chaos.md").display());
    if report.is_right() {
        std::fs::remove_dir_all(&files)?;
    } else {
        println!("what the processes noted and logged: {}", files.display());
    }
    Ok(report.is_right())
}
