//! Dependencies point one way: message <- idempotency <- {publisher, consumer}; publisher <-
//! outbox; store implements the traits of idempotency and of outbox; testing tries stores and
//! handlers and stands in for the rest, and nothing depends on it. lapin is named only where AMQP
//! is spoken, sqlx only in the stores, and no file outgrows its reader.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
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
    assert_unnamed("use lapin", &["amqp", "bin/", "publisher/", "consumer/", "docs/", "lib.rs"]);
}

#[test]
fn databases_are_named_only_in_stores() {
    assert_unnamed("sqlx", &["store/", "docs/", "lib.rs"]);
    // The command line takes a store by its URL.
    assert_unnamed("redis", &["bin/", "store/", "lib.rs"]);
}

/// Whether a module of the crate is named by its path, or in a list that starts with `use
/// crate::{`.
fn imports(code: &str, module: &str) -> bool {
    let lists = code.split("use crate::{").skip(1).filter_map(|rest| rest.split("};").next());
    let listed = lists.flat_map(str::lines).any(|line| line.starts_with(&format!("    {module}::")));
    listed || code.contains(&format!("crate::{module}::"))
}

#[test]
fn dependencies_point_one_way() {
    let forbidden = [
        (
            "message/",
            ["amqp", "idempotency", "outbox", "publisher", "consumer", "store", "testing"].as_slice(),
        ),
        ("idempotency/", &["amqp", "outbox", "publisher", "consumer", "store", "testing"]),
        ("amqp", &["idempotency", "outbox", "publisher", "consumer", "store", "testing"]),
        ("publisher/", &["idempotency", "outbox", "consumer", "store", "testing"]),
        ("outbox/", &["amqp", "consumer", "store", "testing"]),
        ("consumer/", &["outbox", "store", "testing"]),
        ("store/", &["amqp", "publisher", "consumer", "testing"]),
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

/// The circles that do no harm: a constructor's sugar, types that make each other, a trait and what
/// its methods are given.
const HARMLESS: [&[&str]; 7] = [
    &["consumer/builder", "consumer/consume"],
    &[
        "message/headers",
        "message/id",
        "message/outgoing",
        "message/stored",
        "message/strategy",
        "message/validate",
    ],
    &["outbox/metrics", "outbox/status"],
    &["publisher/builder", "publisher/pending", "publisher/publish", "publisher/publish_all"],
    &["publisher/metrics", "publisher/status"],
    &["store/redis/connection", "store/redis/sentinel"],
    &["store/sql/dialect", "store/sql/statements"],
];

/// The paths that `use` statements and expressions name, lists taken apart.
fn paths(code: &str) -> Vec<String> {
    fn flatten(prefix: &str, tree: &str, found: &mut Vec<String>) {
        let Some((start, list)) = tree.split_once('{') else {
            if !tree.trim().is_empty() {
                found.push(format!("{prefix}{}", tree.trim()));
            }
            return;
        };
        let (prefix, mut depth, mut item) = (format!("{prefix}{}", start.trim()), 0, String::new());
        for c in list.chars() {
            match c {
                ',' if depth == 0 => flatten(&prefix, &std::mem::take(&mut item), found),
                '}' if depth == 0 => break,
                _ => {
                    depth += i32::from(c == '{') - i32::from(c == '}');
                    item.push(c);
                }
            }
        }
        flatten(&prefix, &item, found);
    }
    let mut found = Vec::new();
    for tree in code.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        flatten("", tree, &mut found);
    }
    let word = |c: char| !(c.is_alphanumeric() || c == '_' || c == ':');
    found.extend(
        code.split(word)
            .filter(|word| word.starts_with("super::") || word.starts_with("crate::"))
            .map(Into::into),
    );
    found
}

/// A file as the path of its module, without the module's tests.
fn module(file: &str, code: &str) -> Option<(String, String)> {
    let path = file.strip_suffix("/mod.rs").or_else(|| file.strip_suffix(".rs"))?;
    let code = code.split("#[cfg(test)]\nmod tests {").next()?;
    (!path.ends_with("/tests") && path != "lib").then(|| (path.to_owned(), code.to_owned()))
}

/// What a path means that is named in `module`, as far as it is in the crate.
fn absolute(module: &str, path: &str, is_folder: bool) -> Option<String> {
    if let Some(rest) = path.strip_prefix("crate::") {
        return Some(rest.replace("::", "/"));
    }
    let mut at: Vec<&str> = module.split('/').collect();
    let mut rest = path;
    if is_folder && !path.starts_with("super::") {
        return Some(format!("{module}/{}", path.strip_prefix("self::").unwrap_or(path).replace("::", "/")));
    }
    while let Some(inner) = rest.strip_prefix("super::") {
        at.pop()?;
        rest = inner;
    }
    (rest != path).then(|| format!("{}/{}", at.join("/"), rest.replace("::", "/")))
}

#[test]
fn no_circle_of_modules_but_the_harmless_ones() {
    let files = code();
    let modules: Vec<(String, String)> = files.iter().filter_map(|(file, code)| module(file, code)).collect();
    let is_folder = |module: &str| files.iter().any(|(file, _)| *file == format!("{module}/mod.rs"));
    // What a folder hands on belongs to the module that it is from.
    let handed_on = |folder: &str, item: &str| {
        let (_, code) = modules.iter().find(|(module, _)| module == folder)?;
        let from = paths(code).into_iter().find(|path| path.ends_with(&format!("::{item}")))?;
        Some(format!("{folder}/{}", from.trim_start_matches("self::").split("::").next()?))
    };
    // Within one folder, between what lies directly in it.
    let mut edges: BTreeSet<(String, String)> = BTreeSet::new();
    for (from, code) in &modules {
        for path in paths(code) {
            let Some(target) = absolute(from, &path, is_folder(from)) else { continue };
            let (mine, theirs): (Vec<&str>, Vec<&str>) =
                (from.split('/').collect(), target.split('/').collect());
            let common = mine.iter().zip(&theirs).take_while(|(mine, theirs)| mine == theirs).count();
            let (Some(mine_next), Some(theirs_next)) = (mine.get(common), theirs.get(common)) else {
                continue;
            };
            let folder = mine[..common].join("/");
            let named =
                if common == 0 { (*theirs_next).to_owned() } else { format!("{folder}/{theirs_next}") };
            let to = if modules.iter().any(|(module, _)| *module == named) {
                named
            } else if let Some(module) = handed_on(&folder, theirs_next) {
                module
            } else {
                continue;
            };
            let mine = if common == 0 { (*mine_next).to_owned() } else { format!("{folder}/{mine_next}") };
            if mine != to {
                edges.insert((mine, to));
            }
        }
    }
    assert!(
        edges.contains(&("consumer/run".to_owned(), "consumer/consumption".to_owned())),
        "it sees imports"
    );
    // Whoever can be reached from where it leads to is in a circle.
    let reach = |start: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start.to_owned()]);
        while let Some(at) = next.pop() {
            for (_, to) in edges.iter().filter(|(from, _)| *from == at) {
                if seen.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        seen
    };
    let all: BTreeSet<&String> = edges.iter().map(|(from, _)| from).collect();
    let circles: BTreeSet<Vec<String>> = all
        .iter()
        .filter_map(|module| {
            let reached = reach(module);
            let circle =
                reached.iter().filter(|other| reach(other).contains(*module)).cloned().collect::<Vec<_>>();
            (!circle.is_empty()).then_some(circle)
        })
        .collect();
    let harmless: BTreeSet<Vec<String>> =
        HARMLESS.iter().map(|circle| circle.iter().map(|name| (*name).to_owned()).collect()).collect();
    assert_eq!(circles, harmless);
}

/// Comments and docs fit beside each other in a diff. rustfmt cuts code, not them.
#[test]
fn comments_have_at_most_100_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for dir in ["src", "tests", "examples", "benches", "demo", "fuzz/fuzz_targets"] {
        sources(&root.join(dir), &mut found);
    }
    for path in found {
        let mut is_code = false;
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let comment = line.trim_start();
            if !comment.starts_with("//") {
                is_code = false;
                continue;
            }
            let text = comment.trim_start_matches(['/', '!']).trim_start();
            is_code ^= text.starts_with("```");
            // A row of a table cannot be cut.
            if !is_code && !text.starts_with('|') {
                assert!(line.chars().count() <= 100, "{}:{}", path.display(), number + 1);
            }
        }
    }
}
