//! What `make bench` ends with: what was measured, among the servers of each suite, and which aims
//! were reached. Exits with 1 if one was not and `BENCH_STRICT=1`.

#![allow(missing_docs, clippy::expect_used, clippy::cast_precision_loss)]

#[allow(dead_code, reason = "nothing is measured here")]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use support::{
    figures::Figures,
    report::{Aims, Judged, verdicts},
};

const BENCHES: [&str; 4] = ["publish", "consume", "outbox", "stores"];

fn main() -> ExitCode {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let aims = Aims::read(include_str!("aims.toml"));
    let suites = by_suite(&here.join("target/bench"));
    let mut missed = 0;
    for bench in BENCHES {
        let of = suites.iter().filter_map(|(suite, benches)| Some((suite.as_str(), benches.get(bench)?)));
        let judged: Vec<(&str, Vec<Judged<'_>>)> =
            of.map(|(suite, figures)| (suite, aims.judge(bench, figures))).collect();
        if !judged.is_empty() {
            println!("{bench}\n\n{}", verdicts(&judged));
        }
        missed += judged.iter().flat_map(|(_, judged)| judged).filter(|judged| !judged.reached).count();
    }
    println!("{missed} aims missed");
    let strict = std::env::var("BENCH_STRICT").is_ok_and(|strict| strict == "1");
    if strict && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What a folder holds, by suite of servers and by bench.
fn by_suite(folder: &Path) -> BTreeMap<String, BTreeMap<String, Figures>> {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let name = |path: &Path| path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("figures");
        (name(path), serde_json::from_str(&text).expect("figures"))
    };
    let suites = entries(folder).into_iter().filter(|path| path.is_dir());
    suites.map(|suite| (name(&suite), entries(&suite).iter().map(read).collect())).collect()
}
