//! How a command ends, and the question before it changes something.

use std::{
    error::Error,
    io::{self, BufRead, IsTerminal, Write},
};

use crate::{options::Consent, print::escaped};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Well,
    /// A check, or the doctor, found something.
    Found,
}

/// Why a command did not do what it was told to.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was told something that cannot be.
    Usage(String),
    Failed(String),
    /// Nobody reads any more.
    Unread,
}

impl Failure {
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::Usage(text.into())
    }
}

impl<E: Error + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let is_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
        if (&error as &(dyn Error + 'static)).downcast_ref().is_some_and(is_pipe) {
            return Self::Unread;
        }
        Self::Failed(chain(&error))
    }
}

/// An error with its causes, each once.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut said = text.clone();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !said.ends_with(&more) {
            text = format!("{text}: {more}");
            said = more;
        }
        cause = error.source();
    }
    text
}

/// Whether to go on. `what` is what would be done, such as `forget 5 identities`.
pub(crate) fn may(consent: &Consent, what: &str) -> Result<bool, Failure> {
    let what = escaped(what, 1024);
    if consent.dry_run {
        eprintln!("dry run: would {what}");
        return Ok(false);
    }
    if consent.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::usage(format!("no terminal is there to ask whether to {what}: say --yes")));
    }
    eprint!("{what}? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(true);
    }
    eprintln!("nothing was changed");
    Ok(false)
}
