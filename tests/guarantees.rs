//! `docs/GUARANTEES.md` names tests that exist and are run.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

fn read(path: &str) -> Option<String> {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).ok()
}

/// What stands between backticks and looks like a test: `target::module::test`.
fn named(text: &str) -> BTreeSet<&str> {
    let rows = text.lines().filter(|line| line.starts_with('|') || line.starts_with("- `"));
    let quoted = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let path = |word: &&str| word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let kept = |word: &&str| word.contains("::") && word.starts_with(|c: char| c.is_ascii_lowercase());
    quoted.filter(path).filter(kept).collect()
}

/// Why this is not a test that is run, if it is not.
fn fault(name: &str) -> Option<String> {
    let (place, test) = name.rsplit_once("::").unwrap();
    let path = place.replace("::", "/");
    let candidates = match path.strip_prefix("src/") {
        Some(path) => vec![format!("src/{path}.rs"), format!("src/{path}/mod.rs")],
        None => ["{}.rs", "{}/mod.rs", "{}/main.rs", "{}/{}.rs"]
            .map(|form| format!("tests/{}", form.replace("{}", &path)))
            .to_vec(),
    };
    let Some(code) = candidates.iter().find_map(|path| read(path)) else {
        return Some(format!("{name}: none of {candidates:?} is there"));
    };
    let Some(at) = [format!("fn {test}("), format!("fn {test}<")].iter().find_map(|text| code.find(text))
    else {
        return Some(format!("{name}: there is no such function"));
    };
    let before: Vec<_> = code[..at].lines().rev().take(4).collect();
    // In the list of its module, or made by the module itself.
    let listed = code.split_once("trials! {").is_some_and(|(_, list)| {
        let list = list.split_once('}').map_or(list, |(list, _)| list);
        list.lines().any(|line| line.trim().split(['<', ',']).next() == Some(test))
    }) || code.contains("fn trials(");
    let run = listed || before.iter().any(|line| line.contains("#[test]") || line.contains("#[tokio::test"));
    (!run).then(|| format!("{name}: nothing runs it"))
}

#[test]
fn every_promise_names_tests_that_are_run() {
    let text = read("docs/GUARANTEES.md").unwrap();
    let named = named(&text);
    assert!(named.len() > 60, "{}", named.len());
    let faults: Vec<_> = named.into_iter().filter_map(fault).collect();
    assert!(faults.is_empty(), "{faults:#?}");
    for invariant in 1..=7 {
        assert!(text.contains(&format!("(I{invariant})")), "I{invariant} has no test");
    }
}

#[test]
fn a_test_that_is_not_there_would_be_found() {
    for name in ["service::cuts::nothing", "service::nowhere::nothing", "src::amqp::uri::parsed"] {
        assert!(fault(name).is_some(), "{name}");
    }
    assert_eq!(fault("guarantees::every_promise_names_tests_that_are_run"), None);
}
