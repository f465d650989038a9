//! The guide's reference, and what operators watch, name what the code has, and nothing else.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The words that begin so, of letters, digits, `_` and `-`.
fn words(text: &str, prefix: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let words =
        text.split(|c| !is_word(c)).filter(|word| word.len() > prefix.len() && word.starts_with(prefix));
    words.map(ToOwned::to_owned).collect()
}

/// The code of a file, without its tests and comments.
fn code(path: &str) -> String {
    let text = read(path);
    let code = text.split("mod tests {").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What stands behind `=> "` in a file.
fn names(path: &str) -> BTreeSet<String> {
    let code = code(path);
    let behind = code.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next());
    behind.filter(|name| !name.contains(' ')).map(ToOwned::to_owned).collect()
}

fn quoted(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect()
}

#[test]
fn every_header_is_in_the_reference_and_no_other() {
    let defined = words(&code("src/message/headers.rs"), "x-idempotency-");
    assert_eq!(words(&read("src/guide/reference.md"), "x-idempotency-"), defined);
    assert!(defined.len() > 10, "{defined:?}");
}

#[test]
fn every_metric_is_in_the_reference_and_what_is_watched_exists() {
    let mut recorded = BTreeSet::new();
    for file in ["src/publisher/metrics.rs", "src/consumer/telemetry.rs"] {
        recorded.extend(words(&code(file), "idempotent_"));
    }
    assert!(recorded.len() > 10, "{recorded:?}");
    assert_eq!(words(&read("src/guide/reference.md"), "idempotent_"), recorded);
    for file in ["docs/operations/alerts.yml", "docs/operations/dashboard.json"] {
        let watched = words(&read(file), "idempotent_");
        assert!(!watched.is_empty(), "{file}");
        for name in watched {
            let name = name.strip_suffix("_sum").or(name.strip_suffix("_count")).unwrap_or(&name);
            assert!(recorded.contains(name), "{file} watches {name}, which nothing records");
        }
    }
}

#[test]
fn every_outcome_reason_cause_and_state_is_in_the_reference() {
    let said = quoted(&read("src/guide/reference.md"));
    for file in [
        "src/idempotency/outcome.rs",
        "src/consumer/settlement.rs",
        "src/consumer/status.rs",
        "src/publisher/status.rs",
    ] {
        let names = names(file);
        assert!(names.len() >= 5, "{file}: {names:?}");
        for name in names {
            assert!(said.contains(&name), "{file} has {name}, which the reference does not name");
        }
    }
}

#[test]
fn what_a_reader_meets_first_is_short() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 90, "{} lines", readme.lines().count());
    assert!(readme.split_whitespace().count() <= 650, "{} words", readme.split_whitespace().count());
    let pages = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide")).unwrap();
    let pages = pages.map(|page| format!("src/guide/{}", page.unwrap().file_name().to_string_lossy()));
    let pages: Vec<String> =
        pages.filter(|page| Path::new(page).extension().is_some_and(|ext| ext == "md")).collect();
    assert_eq!(pages.len(), 8, "{pages:?}");
    for page in &pages {
        assert!(read(page).lines().count() <= 120, "{page}");
    }
    for file in pages.iter().map(String::as_str).chain(["README.md", "DESIGN.md", "CONTRIBUTING.md"]) {
        for (number, line) in read(file).lines().enumerate() {
            assert!(line.chars().count() <= 100, "{file}:{}: {line}", number + 1);
        }
    }
}
