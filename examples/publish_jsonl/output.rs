//! Counts, and the files that are written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use indicatif::ProgressBar;
use lapin_idempotent::{BoxError, PublishError, Receipt, publisher::PublishErrorKind};
use serde_json::json;

use super::input::{Entry, Line};

/// A file that gets its name when it is complete: until then it is beside it, under another one,
/// and whatever had the name is as it was. So the input is never truncated while it is read, by
/// whatever path or link it was given.
struct Partial {
    file: BufWriter<File>,
    path: PathBuf,
    target: PathBuf,
}

impl Partial {
    fn create(target: &Path) -> Result<Self, BoxError> {
        // A link keeps being one: what it leads to is replaced.
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let error = |path: &Path, error| format!("{} cannot be written: {error}", path.display());
        // A pipe or a device holds nothing that could be lost.
        if fs::metadata(&target).is_ok_and(|target| !target.is_file() && !target.is_dir()) {
            let file = OpenOptions::new().write(true).open(&target).map_err(|e| error(&target, e))?;
            return Ok(Self { file: BufWriter::new(file), path: target.clone(), target });
        }
        let name = target.file_name().ok_or_else(|| format!("{} is no file", target.display()))?;
        let mut partial = name.to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let path = target.with_file_name(partial);
        let file =
            OpenOptions::new().write(true).create_new(true).open(&path).map_err(|e| error(&path, e))?;
        Ok(Self { file: BufWriter::new(file), path, target })
    }

    /// Writes what is left, and lets it have the name that it has.
    fn keep(self) -> io::Result<PathBuf> {
        self.file.into_inner()?;
        Ok(self.path)
    }

    fn finish(self) -> io::Result<()> {
        let file = self.file.into_inner()?;
        if self.path == self.target {
            return Ok(());
        }
        if let Ok(before) = fs::metadata(&self.target) {
            file.set_permissions(before.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&self.path, &self.target)
    }
}

/// An error with its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Counts, and writes the files.
pub(crate) struct Summary {
    bar: ProgressBar,
    report: Option<Partial>,
    failed_path: PathBuf,
    failed: Option<Partial>,
    /// The input could not be read to its end.
    unread: bool,
    confirmed: u64,
    retried: u64,
    unroutable: u64,
    invalid: u64,
    other: u64,
}

impl Summary {
    pub(crate) fn new(report: Option<&Path>, failed: &Path) -> Result<Self, BoxError> {
        if report.is_some_and(|report| same(report, failed)) {
            return Err("--report and --failed name one file".into());
        }
        Ok(Self {
            bar: ProgressBar::new_spinner(),
            report: report.map(Partial::create).transpose()?,
            failed_path: failed.to_owned(),
            failed: None,
            unread: false,
            confirmed: 0,
            retried: 0,
            unroutable: 0,
            invalid: 0,
            other: 0,
        })
    }

    pub(crate) fn result(
        &mut self,
        line: Option<&Line>,
        result: &Result<Receipt, PublishError>,
    ) -> Result<(), BoxError> {
        let (id, outcome, attempts) = match result {
            Ok(receipt) => {
                self.confirmed += 1;
                self.retried += u64::from(receipt.attempts() > 1);
                (Some(receipt.message_id()), "confirmed".to_owned(), receipt.attempts())
            }
            Err(error) => {
                let counter = match error.kind() {
                    PublishErrorKind::Unroutable => &mut self.unroutable,
                    PublishErrorKind::Invalid => &mut self.invalid,
                    _ => &mut self.other,
                };
                *counter += 1;
                (error.message_id(), with_causes(error), error.attempts())
            }
        };
        self.bar.inc(1);
        let number = line.map(|line| line.number);
        self.report(&json!({ "line": number, "message_id": id, "outcome": outcome, "attempts": attempts }))?;
        match (result, line) {
            (Err(_), Some(line)) => self.keep(line, &outcome),
            _ => Ok(()),
        }
    }

    pub(crate) fn not_sent(&mut self, entry: &Entry) -> Result<(), BoxError> {
        let (Entry::Bad(line, reason) | Entry::Unreadable(line, reason)) = entry else { return Ok(()) };
        self.unread |= matches!(entry, Entry::Unreadable(..));
        self.invalid += 1;
        self.report(&json!({ "line": line.number, "message_id": null, "outcome": reason, "attempts": 0 }))?;
        self.keep(line, reason)
    }

    fn report(&mut self, entry: &serde_json::Value) -> Result<(), BoxError> {
        if let Some(report) = &mut self.report {
            writeln!(report.file, "{entry}")?;
        }
        Ok(())
    }

    /// Says what is wrong with a line, and keeps it to be run again.
    fn keep(&mut self, line: &Line, reason: &str) -> Result<(), BoxError> {
        self.bar.suspend(|| eprintln!("line {}: {reason}", line.number));
        if self.failed.is_none() {
            let failed = Partial::create(&self.failed_path)?;
            let (path, target) = (failed.path.display(), failed.target.display());
            self.bar.suspend(|| {
                eprintln!("what fails is written to {path}, which becomes {target} at the end");
                eprintln!("if this is stopped before, run the whole input again");
            });
            self.failed = Some(failed);
        }
        let Some(failed) = &mut self.failed else { return Ok(()) };
        failed.file.write_all(&line.text)?;
        failed.file.write_all(b"\n")?;
        // Whatever ends this process, it is there.
        Ok(failed.file.flush()?)
    }

    pub(crate) fn finish(self) -> Result<ExitCode, BoxError> {
        self.bar.finish_and_clear();
        if let Some(report) = self.report {
            report.finish()?;
        }
        let Self { confirmed, retried, unroutable, invalid, other, .. } = self;
        println!(
            "{confirmed} confirmed ({retried} retried), {unroutable} unroutable, {invalid} invalid, {other} otherwise failed"
        );
        let Some(failed) = self.failed else { return Ok(ExitCode::SUCCESS) };
        if self.unread {
            // Its name may be that of the input, whose rest nobody has seen.
            println!(
                "the input was not read to its end; what failed before is in {}",
                failed.keep()?.display()
            );
        } else {
            failed.finish()?;
            println!("what failed is in {}", self.failed_path.display());
        }
        Ok(ExitCode::FAILURE)
    }
}

fn same(a: &Path, b: &Path) -> bool {
    let full = |path: &Path| fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    match (full(a), full(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}
