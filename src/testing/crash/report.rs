//! What was found.

use std::{collections::BTreeSet, fmt};

use crate::{
    amqp::{Kept, MemoryBroker},
    testing::{bed::wiring::Wiring, points::Point},
};

/// So many findings are told of.
const TOLD: usize = 20;

/// So much is said of a state.
const SHOWN: usize = 300;

/// What can be seen when everything has come to rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Observed {
    state: String,
    parked: BTreeSet<String>,
    published: BTreeSet<String>,
}

/// A run that ended in another way than the undisturbed one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What happened in it.
    pub points: Vec<Point>,
    /// How it differs, in one line.
    pub difference: String,
}

/// What came of all runs of a [`crash_everywhere`](super::crash_everywhere()).
#[derive(Debug, Clone)]
#[must_use = "a report that nobody looks at finds nothing"]
pub struct CrashReport {
    pub(super) runs: usize,
    pub(super) points: BTreeSet<Point>,
    pub(super) findings: Vec<Finding>,
}

impl Observed {
    pub(super) fn of(state: &str, broker: &MemoryBroker, wiring: &Wiring) -> Self {
        let parked = broker.ready(&format!("{}.parked", wiring.queue)).into_iter().map(|kept| {
            let message = kept.incoming();
            let reason = message.parked_reason().unwrap_or_default();
            format!("{} ({reason})", message.raw_message_id().unwrap_or("without an ID"))
        });
        // What becomes of the queue's own messages, the state says. Copies under one ID are one.
        let others = broker.published().into_iter().filter(|kept| !wiring.leads_here(kept));
        let name = |kept: Kept| {
            let message = kept.incoming();
            let id = message.raw_message_id().unwrap_or("without an ID");
            format!("{}/{} {id}", message.exchange(), message.routing_key())
        };
        let unrouted = broker.unrouted().into_iter().map(|kept| format!("{}, to nowhere", name(kept)));
        let published = others.map(name).chain(unrouted);
        Self { state: state.to_owned(), parked: parked.collect(), published: published.collect() }
    }

    /// Whether nothing but parked messages would tell one end from another.
    pub(super) fn is_blank(&self) -> bool {
        self.state.is_empty() && self.published.is_empty()
    }

    /// How another one differs from this.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        let mut parts = Vec::new();
        if self.state != other.state {
            parts.push(format!("the state {} became {}", shown(&self.state), shown(&other.state)));
        }
        for (what, before, after) in
            [("parked", &self.parked, &other.parked), ("published", &self.published, &other.published)]
        {
            let changed = |sign: char, some: &BTreeSet<String>, others: &BTreeSet<String>| {
                some.difference(others).map(|name| format!("{sign}{name}")).collect::<Vec<_>>()
            };
            let changes = [changed('-', before, after), changed('+', after, before)].concat();
            if !changes.is_empty() {
                let (before, after) = (before.len(), after.len());
                parts.push(format!("{what} {before} became {after}: {}", shown(&changes.join(", "))));
            }
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, point) in self.points.iter().enumerate() {
            write!(f, "{}{point}", if index == 0 { "" } else { ", then " })?;
        }
        write!(f, ": {}", self.difference)
    }
}

impl CrashReport {
    /// How many runs there were, the undisturbed one included.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Each kind of point at which something happened in a run, in their order.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        self.points.iter().copied()
    }

    /// The runs that ended in another way than the undisturbed one, in the order of their points;
    /// those in which one thing happened come first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What was found where nothing but this happened.
    pub fn finding_at(&self, point: Point) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.points == [point])
    }

    /// Says that every run ended as the undisturbed one did.
    ///
    /// # Panics
    ///
    /// If one did not: with a line for each, that names the point and the difference.
    #[track_caller]
    pub fn assert_same_everywhere(&self) {
        assert!(self.findings.is_empty(), "{self}");
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, findings, .. } = self;
        write!(f, "{} of {runs} runs ended in another way than the undisturbed one", findings.len())?;
        for finding in findings.iter().take(TOLD) {
            write!(f, "\n  {finding}")?;
        }
        let more = findings.len().saturating_sub(TOLD);
        if more > 0 { write!(f, "\n  and {more} more") } else { Ok(()) }
    }
}
