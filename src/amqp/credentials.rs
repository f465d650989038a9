//! The user name and password, and where they come from.

use std::{env, fmt, future::Future, sync::Arc};

use futures_util::future::{BoxFuture, FutureExt};

use super::error::{ConnectError, ConnectErrorKind};
use crate::error::{BoxError, caught, readable};

/// A user name and a password. `Debug` shows the name only.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub(super) username: String,
    pub(super) password: String,
}

impl Credentials {
    /// These two, as they are: nothing is percent-decoded.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: password.into() }
    }

    /// The values of two environment variables, such as `RABBITMQ_USERNAME` and
    /// `RABBITMQ_PASSWORD`.
    ///
    /// # Errors
    ///
    /// [`ConnectErrorKind::Credentials`] if one of them is not set, empty or not UTF-8; the message
    /// names the variable.
    pub fn from_env(username: &str, password: &str) -> Result<Self, ConnectError> {
        Ok(Self { username: variable(username)?, password: variable(password)? })
    }
}

fn variable(name: &str) -> Result<String, ConnectError> {
    // `VarError` would show what it could not read.
    let problem = match env::var(name) {
        Ok(value) if !value.is_empty() => return Ok(value),
        Ok(_) => "is empty",
        Err(env::VarError::NotPresent) => "is not set",
        Err(env::VarError::NotUnicode(_)) => "is not UTF-8",
    };
    let source: BoxError = format!("the environment variable {} {problem}", name.escape_debug()).into();
    Err(ConnectError::setup(ConnectErrorKind::Credentials, source))
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

type Provide = dyn Fn() -> BoxFuture<'static, Result<Credentials, BoxError>> + Send + Sync;

/// Where the credentials of a connection come from.
#[derive(Clone, Default)]
pub(crate) enum CredentialSource {
    /// From the URI, or RabbitMQ's default user.
    #[default]
    Uri,
    Fixed(Credentials),
    /// Asked at every connect, so that rotated secrets are picked up.
    Provider(Arc<Provide>),
}

impl CredentialSource {
    pub(crate) fn provider<F, Fut>(provide: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Credentials, BoxError>> + Send + 'static,
    {
        Self::Provider(Arc::new(move || provide().boxed()))
    }

    /// `None`: those of the URI.
    pub(super) async fn get(&self) -> Result<Option<Credentials>, ConnectError> {
        match self {
            Self::Uri => Ok(None),
            Self::Fixed(credentials) => Ok(Some(credentials.clone())),
            Self::Provider(provide) => {
                // Called in there, too: a panic must not end the task that connects.
                let provided = caught("the credentials provider", async { provide().await }).await;
                let provided = provided.unwrap_or_else(|panicked| Err(panicked.into()));
                let readable = |error| readable("the error of the credentials provider", error);
                provided
                    .map(Some)
                    .map_err(|error| ConnectError::setup(ConnectErrorKind::Credentials, readable(error)))
            }
        }
    }
}

impl fmt::Debug for CredentialSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri => f.write_str("Uri"),
            Self::Fixed(credentials) => credentials.fmt(f),
            Self::Provider(_) => f.write_str("Provider"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rendering_shows_the_password() {
        let source = CredentialSource::Fixed(Credentials::new("orders", "canary"));
        assert!(!format!("{source:?} {source:#?}").contains("canary"));
        assert!(format!("{source:?}").contains("orders"));
    }

    #[test]
    fn a_missing_variable_is_named() {
        let error = Credentials::from_env("PATH", "IDEMPOTENT_TEST_NO_SUCH_VARIABLE").unwrap_err();
        assert_eq!(error.kind(), ConnectErrorKind::Credentials);
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("IDEMPOTENT_TEST_NO_SUCH_VARIABLE is not set"), "{source}");
    }
}
