//! The settings that a publisher's and a consumer's builder share.

/// Setters of a builder whose field `connect` is a `Result<ConnectOptions, InvalidUri>`.
macro_rules! connection_settings {
    () => {
        /// Sets the user name and password, when they are not in the URI; one of the two places
        /// only. Default: those of the URI.
        pub fn credentials(mut self, credentials: $crate::amqp::Credentials) -> Self {
            if let Ok(connect) = &mut self.connect {
                connect.credentials = $crate::amqp::CredentialSource::Fixed(credentials);
            }
            self
        }

        /// Asks for user name and password at every connect, so that rotated ones are picked up.
        ///
        /// The time it takes counts towards [`connect_timeout`](Self::connect_timeout). What its
        /// error says can end up in logs.
        pub fn credentials_provider<F, Fut>(mut self, provide: F) -> Self
        where
            F: Fn() -> Fut + Send + Sync + 'static,
            Fut: ::std::future::Future<Output = Result<$crate::amqp::Credentials, $crate::BoxError>>
                + Send
                + 'static,
        {
            if let Ok(connect) = &mut self.connect {
                connect.credentials = $crate::amqp::CredentialSource::provider(provide);
            }
            self
        }

        /// Sets the certificates for `amqps://`. Default: the system's authorities, no client
        /// certificate.
        #[cfg(feature = "tls")]
        #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
        pub fn tls(mut self, options: $crate::amqp::TlsOptions) -> Self {
            if let Ok(connect) = &mut self.connect {
                connect.tls = Some(options);
            }
            self
        }

        /// Sets how long connecting to one node, and each step of setting a channel up, may take;
        /// more than zero. Default: 10 seconds.
        pub fn connect_timeout(mut self, limit: ::std::time::Duration) -> Self {
            if let Ok(connect) = &mut self.connect {
                connect.timeout = limit;
            }
            self
        }

        /// Sets the name that the broker's management shows for the connection. Default: the
        /// publisher's `app_id`, the consumer's scope.
        pub fn connection_name(mut self, name: impl Into<String>) -> Self {
            if let Ok(connect) = &mut self.connect {
                connect.name = Some(name.into());
            }
            self
        }
    };
}

pub(crate) use connection_settings;
