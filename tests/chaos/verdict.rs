//! What became of every message.

use std::collections::HashMap;

use super::{
    stage::{Left, Stage},
    tally::Tally,
};

#[derive(Debug, Clone)]
pub struct Verdict {
    pub messages: usize,
    pub confirmed: usize,
    /// Rows.
    pub effects: i64,
    /// Confirmed, and without an effect.
    pub lost: Vec<usize>,
    /// With more than one effect, and how many there are.
    pub doubled: Vec<(usize, i64)>,
    /// Effects of messages that nobody published.
    pub foreign: usize,
    /// Queues that are not empty.
    pub left: Left,
}

impl Verdict {
    pub async fn reach(stage: &Stage, effects: &str, tally: &Tally, left: Left) -> Self {
        let rows = stage.rows(&format!("SELECT number, count(*) FROM {effects} GROUP BY number")).await;
        let rows: HashMap<i64, i64> = rows.expect("the database answers").into_iter().collect();
        let number = |n: usize| i64::try_from(n).expect("small");
        let messages = tally.confirmed.len();
        let count = |n: usize| rows.get(&number(n)).copied().unwrap_or_default();
        Self {
            messages,
            confirmed: tally.confirmed(),
            effects: rows.values().sum(),
            lost: (0..messages).filter(|n| tally.confirmed[*n] && count(*n) == 0).collect(),
            doubled: (0..messages).map(|n| (n, count(n))).filter(|(_, count)| *count > 1).collect(),
            foreign: rows.keys().filter(|n| **n < 0 || **n >= number(messages)).count(),
            left,
        }
    }

    /// Every message was confirmed and took effect once, and nothing is left.
    pub fn is_right(&self) -> bool {
        let all =
            self.confirmed == self.messages && self.effects == i64::try_from(self.messages).expect("small");
        all && self.lost.is_empty() && self.doubled.is_empty() && self.foreign == 0 && self.left.is_empty()
    }
}
