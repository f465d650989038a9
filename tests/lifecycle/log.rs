//! What is logged, by all tests of this process; and a subscriber that panics on demand.
//!
//! One for the whole process: what `tracing` remembers of its call sites goes wrong when threads
//! have subscribers of their own.

use std::{
    io,
    sync::{Mutex, OnceLock, PoisonError},
    thread::{self, ThreadId},
};

static TEXT: Mutex<String> = Mutex::new(String::new());
static PANICS: Mutex<Vec<(ThreadId, &str)>> = Mutex::new(Vec::new());

/// Begins to log.
pub fn start() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        let subscriber = tracing_subscriber::fmt().with_writer(|| Log).with_ansi(false).finish();
        tracing::subscriber::set_global_default(subscriber).expect("the only one");
    });
}

/// The lines so far that hold this text.
pub fn lines_with(text: &str) -> Vec<String> {
    let log = TEXT.lock().unwrap_or_else(PoisonError::into_inner);
    log.lines().filter(|line| line.contains(text)).map(ToOwned::to_owned).collect()
}

/// The next line of this thread that holds this text panics where it is logged.
pub fn panic_at(text: &'static str) {
    let panic = (thread::current().id(), text);
    let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    if !panics.contains(&panic) {
        panics.push(panic);
    }
}

struct Log;

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        TEXT.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
        let here = thread::current().id();
        let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = panics.iter().position(|(thread, at)| *thread == here && text.contains(at)) {
            panics.remove(place);
            drop(panics);
            panic!("the subscriber panics");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
