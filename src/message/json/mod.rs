//! JSON as an identity: one form for every way to write a value.

mod canonical;
mod number;
#[cfg(test)]
mod tests;

pub(super) use canonical::{CanonicalError, canonical, canonical_at};
