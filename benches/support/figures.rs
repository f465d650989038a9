//! What benches measure, as they write it down: by place and case, each round's figures.

use std::{collections::BTreeMap, fmt::Write, fs, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The figures of one round of one case, by name.
pub(crate) type Sample = BTreeMap<String, f64>;

/// Messages, or IDs, a second.
pub(crate) const PER_SECOND: &str = "per_second";

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// What was measured, and with what: versions, messages, rounds.
    pub(crate) setting: BTreeMap<String, String>,
    pub(crate) cases: Vec<Case>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    /// The kind of queue, or the store.
    pub(crate) place: String,
    pub(crate) name: String,
    /// A sample for each round, in their order.
    pub(crate) rounds: Vec<Sample>,
}

impl Figures {
    pub(crate) fn add(&mut self, place: &str, name: &str, sample: Sample) {
        let known = self.cases.iter().position(|case| case.place == place && case.name == name);
        let index = known.unwrap_or_else(|| {
            let (place, name) = (place.to_owned(), name.to_owned());
            self.cases.push(Case { place, name, rounds: Vec::new() });
            self.cases.len() - 1
        });
        self.cases[index].rounds.push(sample);
    }

    pub(crate) fn case(&self, place: &str, name: &str) -> Option<&Case> {
        self.cases.iter().find(|case| case.place == place && case.name == name)
    }

    /// The median of a figure over the rounds.
    pub(crate) fn median(&self, place: &str, name: &str, figure: &str) -> Option<f64> {
        median(self.case(place, name)?.rounds.iter().filter_map(|sample| sample.get(figure).copied()))
    }

    /// How a figure compares with the best of some other cases in the same round: the median of
    /// the rounds.
    pub(crate) fn compared(
        &self,
        place: &str,
        name: &str,
        figure: &str,
        others: &[impl AsRef<str>],
        compare: fn(f64, f64) -> f64,
    ) -> Option<f64> {
        let others: Vec<&Case> = others.iter().filter_map(|other| self.case(place, other.as_ref())).collect();
        let rounds = &self.case(place, name)?.rounds;
        median(rounds.iter().enumerate().filter_map(|(round, sample)| {
            let others = others.iter().filter_map(|other| other.rounds.get(round)?.get(figure).copied());
            Some(compare(*sample.get(figure)?, others.reduce(f64::max)?))
        }))
    }

    /// Writes them where the report looks for them: for each suite of servers a folder.
    pub(crate) fn write(&self, bench: &str) {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench").join(suite());
        fs::create_dir_all(&dir).expect("target/bench");
        let text = serde_json::to_string_pretty(self).expect("JSON");
        fs::write(dir.join(format!("{bench}.json")), text + "\n").expect("write");
        let bars = self.cases.iter().filter_map(|Case { place, name, .. }| {
            Some((format!("{place}: {name}"), self.median(place, name, PER_SECOND)?))
        });
        let plot = plot("messages, or IDs, a second, median", &bars.collect::<Vec<_>>());
        fs::write(dir.join(format!("{bench}.svg")), plot).expect("write");
    }
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

/// Whose servers they are: `scripts/suite` says it, or they are the machine's own.
fn suite() -> String {
    let of = |release: String| {
        let value = |name: &str| release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        Some(format!("{}{}", value("ID")?, value("VERSION_ID")?.trim_matches('"')))
    };
    let machine = || fs::read_to_string("/etc/os-release").ok().and_then(of);
    std::env::var("LAPIN_IDEMPOTENT_SUITE").ok().or_else(machine).unwrap_or_else(|| "own".to_owned())
}

/// `None` of nothing.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[n / 2]),
        n => Some(f64::midpoint(values[n / 2 - 1], values[n / 2])),
    }
}
