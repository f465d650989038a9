//! `README.md`, of its template and of what was measured.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    figures::Figures,
    report::{Aims, Judged, verdicts},
};

/// What was measured, by suite of servers and by bench.
pub(crate) struct Suites(pub(crate) BTreeMap<String, BTreeMap<String, Figures>>);

impl Suites {
    /// One bench among the servers of each suite.
    fn of<'a>(&'a self, bench: &'a str) -> impl Iterator<Item = (&'a str, &'a Figures)> {
        self.0.iter().filter_map(move |(suite, benches)| Some((suite.as_str(), benches.get(bench)?)))
    }

    /// Which of its aims were reached.
    pub(crate) fn judged<'a>(&'a self, aims: &'a Aims, bench: &'a str) -> Vec<(&'a str, Vec<Judged<'a>>)> {
        self.of(bench).map(|(suite, figures)| (suite, aims.judge(bench, figures))).collect()
    }
}

/// A line `{{figures BENCH}}` of the template becomes the tables of all suites, and one
/// `{{aims BENCH}}` what was reached.
pub(crate) fn readme(template: &str, aims: &Aims, suites: &Suites) -> String {
    let mut text = String::new();
    for line in template.lines() {
        let asked = line.strip_prefix("{{").and_then(|line| line.strip_suffix("}}"));
        match asked.map(|asked| asked.split_once(' ').expect("two words")) {
            None => text.push_str(line),
            Some(("figures", bench)) => {
                let tables: Vec<String> = suites
                    .of(bench)
                    .map(|(suite, figures)| {
                        let setting = figures.setting.iter().map(|(what, value)| format!("{what} {value}"));
                        let setting = setting.collect::<Vec<_>>().join(", ");
                        format!("`{suite}`: {setting}.\n\n{}", aims.table(bench, figures))
                    })
                    .collect();
                text.push_str(tables.join("\n").trim_end());
            }
            Some(("aims", bench)) => {
                let judged = suites.judged(aims, bench);
                let _ = write!(text, "{}", verdicts(&judged).trim_end());
            }
            Some((what, _)) => panic!("{what}?"),
        }
        text.push('\n');
    }
    text
}
