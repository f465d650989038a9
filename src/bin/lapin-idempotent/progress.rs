//! How far long work is, on a terminal.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{log, print::Printer};

/// A bar on standard error, if that is a terminal and people read it. It is gone afterwards.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Whether there would be a bar.
    pub(crate) fn is_seen(printer: Printer) -> bool {
        !printer.json && io::stderr().is_terminal()
    }

    /// `all` is how much there is to do, where that is known.
    pub(crate) fn new(printer: Printer, what: &'static str, all: Option<u64>) -> Self {
        if !Self::is_seen(printer) {
            return Self(ProgressBar::hidden());
        }
        let (bar, template) = match all {
            Some(all) => (ProgressBar::new(all), "{msg} {wide_bar} {human_pos}/{human_len} {eta}"),
            None => (ProgressBar::no_length(), "{spinner} {msg} {elapsed}"),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        // Servers take their time; the clock goes on.
        bar.enable_steady_tick(Duration::from_millis(200));
        log::above(bar.clone());
        Self(bar)
    }

    pub(crate) fn add(&self, done: u64) {
        self.0.inc(done);
    }

    /// For those that count on their own.
    pub(crate) fn bar(&self) -> ProgressBar {
        self.0.clone()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        if !self.0.is_hidden() {
            log::release();
        }
    }
}
