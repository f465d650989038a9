//! Dependencies point one way: message <- idempotency <- {publisher, consumer}; store implements the traits of idempotency;
//! testing tries stores, and nothing depends on it.
//! lapin is named only where AMQP is spoken, sqlx only in the stores, and no file outgrows its reader.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

const LONGEST: usize = 400;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All files under `src`, with their code: comments left out.
fn code() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        (path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/"), code.join("\n"))
    };
    found.into_iter().map(read).collect()
}

fn assert_unnamed(word: &str, allowed: &[&str]) {
    for (file, code) in code() {
        if !allowed.iter().any(|prefix| file.starts_with(prefix)) {
            assert!(!code.contains(word), "{file} names {word}");
        }
    }
}

#[test]
fn lapin_is_named_only_where_amqp_is_spoken() {
    assert_unnamed("lapin::", &["amqp", "publisher/", "consumer/"]);
    assert_unnamed("use lapin", &["amqp", "publisher/", "consumer/", "docs/", "lib.rs"]);
}

#[test]
fn databases_are_named_only_in_stores() {
    assert_unnamed("sqlx", &["store/", "docs/", "lib.rs"]);
    assert_unnamed("redis", &["store/", "lib.rs"]);
}

/// Whether a module of the crate is named by its path, or in a list that starts with `use crate::{`.
fn imports(code: &str, module: &str) -> bool {
    let lists = code.split("use crate::{").skip(1).filter_map(|rest| rest.split("};").next());
    let listed = lists.flat_map(str::lines).any(|line| line.starts_with(&format!("    {module}::")));
    listed || code.contains(&format!("crate::{module}::"))
}

#[test]
fn dependencies_point_one_way() {
    let forbidden = [
        ("message/", ["amqp", "idempotency", "publisher", "consumer", "store", "testing"].as_slice()),
        ("idempotency/", &["amqp", "publisher", "consumer", "store", "testing"]),
        ("amqp", &["idempotency", "publisher", "consumer", "store", "testing"]),
        ("publisher/", &["idempotency", "consumer", "store", "testing"]),
        ("consumer/", &["store", "testing"]),
        ("store/", &["amqp", "publisher", "consumer", "testing"]),
        ("testing/", &["amqp", "publisher", "consumer"]),
    ];
    for (file, code) in code() {
        for (folder, modules) in forbidden {
            if file.starts_with(folder) {
                for module in modules {
                    assert!(!imports(&code, module), "{file} depends on {module}");
                }
            }
        }
    }
}

#[test]
fn no_file_outgrows_its_reader() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for dir in ["src", "tests", "examples", "benches"] {
        sources(&root.join(dir), &mut found);
    }
    for path in found {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= LONGEST, "{} has {lines} lines", path.display());
    }
}
