//! The boxed error that sources are kept in, errors with their causes in one line, and panics that
//! became errors.

use std::{
    any::Any,
    error::Error,
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
};

use futures_util::future::FutureExt;

/// Any error, as a source or out of a user's closure.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error with all its causes, for a log or a status; what an error says of its cause itself is
/// not said twice.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let more = error.to_string();
            if !said.ends_with(&more) {
                write!(f, ": {more}")?;
                said = more;
            }
            cause = error.source();
        }
        Ok(())
    }
}

/// How much of an error's text travels with a message, or is shown.
const ERROR_BYTES: usize = 1024;

/// The beginning of a text, without control characters that could disturb where it is printed.
pub(crate) fn bounded(text: &str) -> String {
    let mut short = String::with_capacity(text.len().min(ERROR_BYTES + 8));
    for c in text.chars() {
        if short.len() >= ERROR_BYTES {
            short.push('…');
            break;
        }
        if c.is_control() { short.extend(c.escape_default()) } else { short.push(c) }
    }
    short
}

/// The same, of so many bytes at most: as much as a column takes.
pub(crate) fn bounded_to(text: &str, bytes: usize) -> String {
    let mut text = bounded(text);
    text.truncate(text.floor_char_boundary(bytes));
    text
}

/// A function of the application, or a task of this crate, panicked.
#[derive(Debug, thiserror::Error)]
#[error("{what} panicked: {said}")]
pub(crate) struct Panicked {
    what: &'static str,
    said: String,
}

impl Panicked {
    fn new(what: &'static str, payload: Box<dyn Any + Send>) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let said = text.unwrap_or("no text").to_owned();
        // What was thrown is the application's, and dropping it may panic again.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload))).map_err(std::mem::forget);
        Self { what, said }
    }
}

/// Awaits `future`. A panic in it ends nothing but itself.
pub(crate) fn caught<T, F: Future<Output = T>>(
    what: &'static str,
    future: F,
) -> impl Future<Output = Result<T, Panicked>> + use<T, F> {
    // No `async fn`: it would keep the future twice.
    let caught = AssertUnwindSafe(future).catch_unwind();
    caught.map(move |result| result.map_err(|payload| Panicked::new(what, payload)))
}

/// Calls a function. A panic in it ends nothing but itself.
pub(crate) fn caught_in<T>(what: &'static str, function: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(function)).map_err(|payload| Panicked::new(what, payload))
}

/// An error of the application, which is told in logs and headers; what panicked in its place if it
/// cannot be told.
pub(crate) fn readable(what: &'static str, error: BoxError) -> BoxError {
    match caught_in(what, || Chain(&*error).to_string()) {
        Ok(_) => error,
        Err(panicked) => panicked.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: BoxError,
    }

    #[test]
    fn causes_are_told_once() {
        let error = Outer { text: "no topology", source: "PRECONDITION_FAILED".into() };
        assert_eq!(Chain(&error).to_string(), "no topology: PRECONDITION_FAILED");
        let error = Outer { text: "refused: ACCESS_REFUSED", source: "ACCESS_REFUSED".into() };
        assert_eq!(Chain(&error).to_string(), "refused: ACCESS_REFUSED");
    }

    #[test]
    fn error_text_is_bounded_and_escaped() {
        assert_eq!(bounded("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
        assert!(bounded(&"é".repeat(10_000)).len() <= ERROR_BYTES + 8);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_that_says_so() {
        assert_eq!(caught("it", async { 7 }).await.unwrap(), 7);
        let error = caught("it", async { panic!("at {}", 7) }).await.unwrap_err();
        assert_eq!(error.to_string(), "it panicked: at 7");
        let error = caught_in("it", || panic!("at 8")).unwrap_err();
        assert_eq!(error.to_string(), "it panicked: at 8");
    }

    #[test]
    fn a_panic_in_what_was_thrown_ends_nothing() {
        struct Thrown;
        impl Drop for Thrown {
            fn drop(&mut self) {
                panic!("dropped");
            }
        }
        let error = caught_in("it", || std::panic::panic_any(Thrown)).unwrap_err();
        assert_eq!(error.to_string(), "it panicked: no text");
    }

    #[test]
    fn an_error_that_cannot_be_told_is_told_as_a_panic() {
        #[derive(Debug)]
        struct Untold;
        impl fmt::Display for Untold {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("no words")
            }
        }
        impl Error for Untold {}
        assert_eq!(readable("its error", "plain".into()).to_string(), "plain");
        assert_eq!(readable("its error", Untold.into()).to_string(), "its error panicked: no words");
        let inner = Outer { text: "outer", source: Untold.into() };
        assert_eq!(readable("its error", inner.into()).to_string(), "its error panicked: no words");
    }
}
