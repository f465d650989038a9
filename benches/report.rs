//! What `make bench` ends with: what was measured, among the servers of each suite, which aims were
//! reached, and `README.md` of it. Exits with 1 if an aim was not reached and `BENCH_STRICT=1`.
//!
//! With `BENCH_PUBLISH=1` the figures go into `benches/figures`, and the README beside it is
//! written of those that are there.

#![allow(missing_docs, clippy::expect_used, clippy::cast_precision_loss)]

#[allow(dead_code, reason = "nothing is measured here")]
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use support::{
    figures::Figures,
    readme::{Suites, readme},
    report::{Aims, verdicts},
};

const BENCHES: [&str; 4] = ["publish", "consume", "outbox", "stores"];

fn main() -> ExitCode {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (measured, kept) = (here.join("target/bench"), here.join("benches/figures"));
    let aims = Aims::read(include_str!("aims.toml"));
    let suites = by_suite(&measured);
    let mut missed = 0;
    for bench in BENCHES {
        let judged = suites.judged(&aims, bench);
        if !judged.is_empty() {
            println!("{bench}\n\n{}", verdicts(&judged));
        }
        missed += judged.iter().flat_map(|(_, judged)| judged).filter(|judged| !judged.reached).count();
    }
    println!("{missed} aims missed");
    let template = include_str!("README.in.md");
    if is_set("BENCH_PUBLISH") {
        keep(&measured, &kept);
        write(&here.join("benches/README.md"), &readme(template, &aims, &by_suite(&kept)));
    } else {
        write(&measured.join("README.md"), &readme(template, &aims, &suites));
    }
    if is_set("BENCH_STRICT") && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| value == "1")
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).expect("README.md");
    println!("written: {}", path.display());
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> String {
    path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
}

fn is_figures(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// What a folder holds, by suite of servers and by bench.
fn by_suite(folder: &Path) -> Suites {
    let read = |path: &Path| -> (String, Figures) {
        let text = fs::read_to_string(path).expect("figures");
        (name(path), serde_json::from_str(&text).expect("figures"))
    };
    let benches =
        |suite: &Path| entries(suite).iter().filter(|path| is_figures(path)).map(|path| read(path)).collect();
    let suites = entries(folder).into_iter().filter(|path| path.is_dir());
    Suites(suites.map(|suite| (name(&suite), benches(&suite))).collect())
}

/// Figures and plots, to be committed.
fn keep(from: &Path, to: &Path) {
    for suite in entries(from).into_iter().filter(|path| path.is_dir()) {
        let folder = to.join(suite.file_name().expect("a name"));
        fs::create_dir_all(&folder).expect("benches/figures");
        for file in entries(&suite) {
            fs::copy(&file, folder.join(file.file_name().expect("a name"))).expect("copy");
        }
    }
}
