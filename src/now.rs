//! What time it is.

use std::{fmt, sync::Arc, time::SystemTime};

type Told = dyn Fn() -> SystemTime + Send + Sync;

/// The system's time, or what a test says.
#[derive(Clone, Default)]
pub(crate) struct Now(Option<Arc<Told>>);

impl Now {
    /// As `told` says.
    #[cfg(feature = "testing")]
    pub(crate) fn told_by(told: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    pub(crate) fn get(&self) -> SystemTime {
        self.0.as_ref().map_or_else(SystemTime::now, |told| told())
    }
}

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Now(told)" } else { "Now" })
    }
}
