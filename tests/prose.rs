//! What readers of comments and documents may rely on: the text says who acts, the consumer, the
//! store, the crate, and never "we".

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files(&path, found);
        } else if [".rs", ".md", ".lua"].iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// What a line says: all of it in a document, the comment in code.
fn prose(line: &str, is_document: bool) -> &str {
    let comment = |mark: &str| line.find(mark).map(|at| &line[at..]);
    if is_document { line } else { comment("// ").or(comment("//! ")).or(comment("-- ")).unwrap_or_default() }
}

fn named_by_us(text: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_alphabetic());
    words.any(|word| ["we", "us", "our", "ours"].contains(&word.to_lowercase().as_str()))
}

#[test]
fn comments_and_documents_name_who_acts() {
    assert!(named_by_us(prose("let a = b; // Ours, so far.", false)));
    assert!(named_by_us(prose("/// A row that we hold.", false)));
    assert!(!named_by_us(prose("let ours = 500; // µs, in use", false)));
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let documents = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "DESIGN.md"];
    let mut found: Vec<PathBuf> = documents.iter().map(|name| root.join(name)).collect();
    for dir in ["src", "docs", "examples", "benches", "tests"] {
        files(&root.join(dir), &mut found);
    }
    assert!(found.len() > 100, "{}", found.len());
    // It has the words that it looks for.
    found.retain(|path| !path.ends_with("tests/prose.rs"));
    for path in found {
        let is_document = path.extension().is_some_and(|ending| ending == "md");
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            assert!(!named_by_us(prose(line, is_document)), "{}:{}: {line}", path.display(), number + 1);
        }
    }
}
