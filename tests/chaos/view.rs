//! What is seen while it runs: on a terminal a few lines that change, elsewhere one line every
//! fifteen seconds.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use super::{faults::Event, plan::Kind, tally::Sample};

const EVERY: Duration = Duration::from_secs(15);

pub struct View {
    bar: ProgressBar,
    /// When the last line was written.
    line: Mutex<Duration>,
}

impl View {
    pub fn new(messages: usize) -> Self {
        let bar = ProgressBar::new(messages as u64);
        let style =
            ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos} of {len} took effect\n{msg}");
        bar.set_style(style.expect("template"));
        Self { bar, line: Mutex::new(Duration::ZERO) }
    }

    pub fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            println!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    pub fn show(&self, sample: &Sample, events: &[Event]) {
        let mut kinds: BTreeMap<Kind, usize> = BTreeMap::new();
        for event in events.iter().filter(|event| event.seen.is_some()) {
            *kinds.entry(event.kind).or_default() += 1;
        }
        let state = format!(
            "{} confirmed, lag {}, {} duplicates absorbed, {} consumers, {} faults",
            sample.confirmed,
            sample.lag(),
            sample.duplicates,
            sample.consumers,
            kinds.values().sum::<usize>(),
        );
        if !self.bar.is_hidden() {
            let kinds: Vec<_> =
                kinds.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
            let kinds: Vec<_> = kinds.chunks(4).map(|kinds| kinds.join(" · ")).collect();
            self.bar.set_position(sample.effects as u64);
            self.bar.set_message(format!("{state}\n{}", kinds.join("\n")));
            return;
        }
        let mut line = self.line.lock().unwrap();
        if sample.at < *line || sample.at >= *line + EVERY {
            *line = sample.at;
            println!("{:>5} s: {} took effect, {state}", sample.at.as_secs(), sample.effects);
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
