//! The boxed error that sources are kept in.

/// Any error, as a source or out of a user's closure.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
