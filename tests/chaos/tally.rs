//! What the processes have noted so far.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{journal::Tail, publisher::Note};

pub struct Tally {
    publishers: Vec<Tail>,
    consumers: Vec<Tail>,
    /// By number.
    pub confirmed: Vec<bool>,
    /// How often confirmed messages were sent.
    pub attempts: u64,
    /// Calls that failed, by kind; the application made them again.
    pub failed: BTreeMap<String, u64>,
    /// Deliveries by outcome, duplicates by cause as well.
    pub outcomes: BTreeMap<String, u64>,
}

impl Tally {
    pub fn new(messages: usize, publishers: Vec<PathBuf>, consumers: Vec<PathBuf>) -> Self {
        Self {
            publishers: publishers.into_iter().map(Tail::new).collect(),
            consumers: consumers.into_iter().map(Tail::new).collect(),
            confirmed: vec![false; messages],
            attempts: 0,
            failed: BTreeMap::new(),
            outcomes: BTreeMap::new(),
        }
    }

    /// Reads what has come since.
    pub fn read(&mut self) {
        for line in self.publishers.iter_mut().flat_map(Tail::lines) {
            match Note::parse(&line) {
                Some(Note::Confirmed { number, attempts }) => {
                    self.confirmed[usize::try_from(number).expect("small")] = true;
                    self.attempts += attempts;
                }
                Some(Note::Failed { kind }) => *self.failed.entry(kind).or_default() += 1,
                // The line that a process died in.
                None => {}
            }
        }
        for line in self.consumers.iter_mut().flat_map(Tail::lines) {
            *self.outcomes.entry(line).or_default() += 1;
        }
    }

    pub fn confirmed(&self) -> usize {
        self.confirmed.iter().filter(|confirmed| **confirmed).count()
    }

    /// Duplicates that were absorbed, as far as they were noted, by cause.
    pub fn duplicates(&self) -> impl Iterator<Item = (&str, u64)> {
        let causes = self.outcomes.iter();
        causes.filter_map(|(name, count)| Some((name.strip_prefix("duplicate ")?, *count)))
    }

    pub fn all_duplicates(&self) -> u64 {
        self.duplicates().map(|(_, count)| count).sum()
    }
}

/// How far it was at a time since the beginning.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    pub at: Duration,
    pub confirmed: usize,
    pub effects: usize,
    pub duplicates: u64,
    pub consumers: usize,
}

impl Sample {
    /// Confirmed, and without an effect so far.
    pub fn lag(&self) -> usize {
        self.confirmed.saturating_sub(self.effects)
    }
}
