//! The cases, by what they are about.

pub(super) mod batches;
pub(super) mod claims;
pub(super) mod effects;
pub(super) mod identity;
pub(super) mod inspection;
pub(super) mod leases;
pub(super) mod purge;
pub(super) mod rivals;
