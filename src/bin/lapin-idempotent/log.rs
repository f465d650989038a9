//! Where the log goes: to standard error, and past what a terminal shows at the time.

use std::{
    io::{self, IsTerminal, Write},
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use indicatif::ProgressBar;

static WAY: Mutex<Way> = Mutex::new(Way::Straight);

/// How a line of the log gets to standard error, if that is a terminal.
#[derive(Debug)]
enum Way {
    Straight,
    /// Something else has the terminal; it is written afterwards.
    Later(Vec<u8>),
    /// Between what is drawn of a bar.
    Above(ProgressBar),
}

fn way() -> MutexGuard<'static, Way> {
    WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the log until [`release`].
pub(crate) fn hold() {
    *way() = Way::Later(Vec::new());
}

/// Writes it above this bar until [`release`].
pub(crate) fn above(bar: ProgressBar) {
    *way() = Way::Above(bar);
}

/// Writes what was kept.
pub(crate) fn release() {
    if let Way::Later(kept) = mem::replace(&mut *way(), Way::Straight) {
        let _ = io::stderr().write_all(&kept);
    }
}

/// What the subscriber writes to.
#[derive(Debug)]
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr();
        if !stderr.is_terminal() {
            return stderr.write(line);
        }
        match &mut *way() {
            Way::Straight => stderr.write(line),
            Way::Later(kept) => kept.write(line),
            Way::Above(bar) => bar.suspend(|| stderr.write(line)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
