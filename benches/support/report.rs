//! Tables of what was measured, and what of `aims.toml` was reached.

use std::fmt::Write;

use serde::Deserialize;

use super::figures::{Case, Figures, PER_SECOND};

/// What is to be reached, and which tables there are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Aims {
    #[serde(rename = "table")]
    tables: Vec<Table>,
    #[serde(rename = "aim")]
    aims: Vec<Aim>,
}

/// How the cases of a bench are shown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    bench: String,
    /// What a case runs on.
    place: String,
    /// Figures by name, and the heading of each; a column is left out if no case has it.
    columns: Vec<(String, String)>,
    #[serde(default, rename = "ratio")]
    ratios: Vec<Ratio>,
}

/// What cases are compared with, by messages a second.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ratio {
    heading: String,
    of: String,
    /// Cases whose name begins like this, of those that no earlier ratio of this heading took.
    #[serde(default)]
    begins: String,
    #[serde(default)]
    ends: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Aim {
    /// What is to be reached, for people.
    text: String,
    bench: String,
    place: String,
    case: String,
    #[serde(default = "per_second")]
    figure: String,
    /// The cases whose best it is divided by.
    #[serde(default)]
    of: Vec<String>,
    /// The cases whose best is taken off.
    #[serde(default)]
    above: Vec<String>,
    at_least: Option<f64>,
    at_most: Option<f64>,
}

fn per_second() -> String {
    PER_SECOND.to_owned()
}

/// What became of an aim.
pub(crate) struct Judged<'a> {
    aim: &'a Aim,
    found: f64,
    pub(crate) reached: bool,
}

impl Aims {
    pub(crate) fn read(text: &str) -> Self {
        let aims: Self = toml::from_str(text).expect("aims.toml");
        for aim in &aims.aims {
            assert!(aim.at_least.is_some() != aim.at_most.is_some(), "one bound: {aim:?}");
            assert!(aim.of.is_empty() || aim.above.is_empty(), "one comparison: {aim:?}");
        }
        aims
    }

    /// The cases of a bench, as a table of Markdown.
    pub(crate) fn table(&self, bench: &str, figures: &Figures) -> String {
        let table = self.tables.iter().find(|table| table.bench == bench).expect("a table of the bench");
        let has =
            |name: &str| figures.cases.iter().any(|case| case.rounds.iter().any(|s| s.contains_key(name)));
        let columns: Vec<_> = table.columns.iter().filter(|(name, _)| has(name)).collect();
        let mut headings: Vec<&str> = Vec::new();
        for ratio in &table.ratios {
            if !headings.contains(&ratio.heading.as_str()) {
                headings.push(&ratio.heading);
            }
        }
        let mut text = format!("| {} | case |", table.place);
        for name in columns.iter().map(|(_, heading)| heading.as_str()).chain(headings.iter().copied()) {
            let _ = write!(text, " {name} |");
        }
        text.push_str("\n|---|---|");
        text.push_str(&"---|".repeat(columns.len() + headings.len()));
        text.push('\n');
        for Case { place, name, .. } in &figures.cases {
            let _ = write!(text, "| {place} | {name} |");
            for (figure, _) in &columns {
                let _ =
                    write!(text, " {} |", figures.median(place, name, figure).map(shown).unwrap_or_default());
            }
            for heading in &headings {
                let found = table.ratio(heading, name).and_then(|ratio| {
                    figures.compared(place, name, PER_SECOND, std::slice::from_ref(&ratio.of), |a, b| a / b)
                });
                let _ = write!(text, " {} |", found.map(|ratio| format!("{ratio:.2}")).unwrap_or_default());
            }
            text.push('\n');
        }
        text
    }

    /// What became of the aims of a bench; of those whose cases were measured.
    pub(crate) fn judge<'a>(&'a self, bench: &str, figures: &Figures) -> Vec<Judged<'a>> {
        let aims = self.aims.iter().filter(|aim| aim.bench == bench);
        aims.filter_map(|aim| aim.judge(figures)).collect()
    }
}

impl Table {
    fn ratio(&self, heading: &str, case: &str) -> Option<&Ratio> {
        self.ratios.iter().find(|ratio| {
            ratio.heading == heading && case.starts_with(&ratio.begins) && case.ends_with(&ratio.ends)
        })
    }
}

impl Aim {
    fn judge(&self, figures: &Figures) -> Option<Judged<'_>> {
        let Self { place, case, figure, .. } = self;
        let found = if !self.of.is_empty() {
            figures.compared(place, case, figure, &self.of, |a, b| a / b)?
        } else if !self.above.is_empty() {
            figures.compared(place, case, figure, &self.above, |a, b| a - b)?
        } else {
            figures.median(place, case, figure)?
        };
        let reached =
            self.at_least.is_none_or(|least| found >= least) && self.at_most.is_none_or(|most| found <= most);
        Some(Judged { aim: self, found, reached })
    }

    fn bound(&self) -> String {
        match (self.at_least, self.at_most) {
            (Some(least), _) => format!("at least {least}"),
            (_, Some(most)) => format!("at most {most}"),
            _ => String::new(),
        }
    }
}

/// What became of aims, as a table of Markdown: for each suite a column.
pub(crate) fn verdicts(suites: &[(&str, Vec<Judged<'_>>)]) -> String {
    let mut text = "| aim | on | bound |".to_owned();
    for (suite, _) in suites {
        let _ = write!(text, " {suite} |");
    }
    let _ = write!(text, "\n|---|---|---|{}\n", "---|".repeat(suites.len()));
    let mut aims: Vec<&Aim> = Vec::new();
    for judged in suites.iter().flat_map(|(_, judged)| judged) {
        if !aims.iter().any(|aim| std::ptr::eq(*aim, judged.aim)) {
            aims.push(judged.aim);
        }
    }
    for aim in aims {
        let _ = write!(text, "| {} | {} | {} |", aim.text, aim.place, aim.bound());
        for (_, judged) in suites {
            let cell = judged.iter().find(|judged| std::ptr::eq(judged.aim, aim)).map(|judged| {
                format!("{} {}", shown(judged.found), if judged.reached { "reached" } else { "**missed**" })
            });
            let _ = write!(text, " {} |", cell.unwrap_or_default());
        }
        text.push('\n');
    }
    text
}

/// Three digits that count, or the whole number.
fn shown(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}
