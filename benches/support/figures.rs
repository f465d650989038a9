//! Figures of stores: samples by store and case, medians, a table and a JSON file.

use std::{fs, path::Path};

use serde_json::json;

#[derive(Default)]
pub(crate) struct Figures {
    samples: Vec<((String, String), Vec<f64>)>,
    notes: Vec<(String, f64)>,
}

impl Figures {
    /// One sample: IDs a second.
    pub(crate) fn add(&mut self, store: &str, case: &str, per_second: f64) {
        eprintln!("{store:<20} {case:<28} {per_second:>9.0} IDs/s");
        let key = (store.to_owned(), case.to_owned());
        match self.samples.iter_mut().find(|(known, _)| *known == key) {
            Some((_, samples)) => samples.push(per_second),
            None => self.samples.push((key, vec![per_second])),
        }
    }

    /// One figure of another kind.
    pub(crate) fn note(&mut self, what: &str, value: f64) {
        eprintln!("{what}: {value:.2}");
        self.notes.push((what.to_owned(), value));
    }

    pub(crate) fn write(&self, name: &str) {
        println!("| store | case | IDs/s |\n|---|---|---|");
        let mut cases = Vec::new();
        for ((store, case), samples) in &self.samples {
            println!("| {store} | {case} | {:.0} |", median(samples));
            cases.push(json!({ "store": store, "case": case, "ids_per_s": median(samples) }));
        }
        println!("\n| figure | |\n|---|---|");
        for (what, value) in &self.notes {
            println!("| {what} | {value:.2} |");
            cases.push(json!({ "figure": what, "value": value }));
        }
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        fs::create_dir_all(&dir).expect("target/bench");
        let text = serde_json::to_string_pretty(&cases).expect("json");
        fs::write(dir.join(format!("{name}.json")), text).expect("write");
    }
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}
