//! What the queues are declared with.

use std::{collections::BTreeMap, fmt, time::Duration};

use lapin::types::{AMQPValue, LongString};

use super::error::DeclareError;
use crate::amqp::{ServerVersion, UNLIMITED};

pub(super) const TYPE: &str = "x-queue-type";
pub(super) const LIMIT: &str = "x-delivery-limit";
pub(super) const TIMEOUT: &str = "x-consumer-timeout";

/// What can be set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) delivery_limit: Option<u32>,
    pub(super) delayed_retry: Option<(Duration, Duration)>,
    pub(super) consumer_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self { delivery_limit: Some(20), delayed_retry: None, consumer_timeout: None }
    }
}

/// The value of an argument of a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(i64),
    Flag(bool),
}

impl Value {
    pub(super) fn amqp(&self) -> AMQPValue {
        match self {
            Self::Text(text) => AMQPValue::LongString(LongString::from(text.as_str())),
            Self::Number(number) => AMQPValue::LongLongInt(*number),
            Self::Flag(flag) => AMQPValue::Boolean(*flag),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) if text.is_empty() => f.write_str("\"\""),
            Self::Text(text) => write!(f, "{}", text.escape_debug()),
            Self::Number(number) => number.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
        }
    }
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Work,
    Parking,
}

/// A queue, and what it is declared with.
#[derive(Debug, Clone)]
pub(super) struct Declaration {
    pub(super) queue: String,
    pub(super) role: Role,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) arguments: BTreeMap<String, Value>,
}

impl Declaration {
    fn quorum(queue: &str, role: Role) -> Self {
        let mut declaration = Self {
            queue: queue.to_owned(),
            role,
            durable: true,
            auto_delete: false,
            arguments: BTreeMap::new(),
        };
        declaration.text(TYPE, "quorum");
        declaration
    }

    pub(super) fn of_work(
        queue: &str,
        parking: &str,
        options: &Options,
        version: ServerVersion,
    ) -> Result<Self, DeclareError> {
        // An older broker takes arguments that it does not know, and ignores them.
        let needs = |option, needs: (u16, u16)| {
            if version >= needs { Ok(()) } else { Err(DeclareError::TooOld { option, needs, version }) }
        };
        needs("x-dead-letter-strategy", (3, 10))?;
        let mut work = Self::quorum(queue, Role::Work);
        work.text("x-dead-letter-exchange", "");
        work.text("x-dead-letter-routing-key", parking);
        work.text("x-dead-letter-strategy", "at-least-once");
        work.text("x-overflow", "reject-publish");
        work.limit(options.delivery_limit);
        if let Some((min, max)) = options.delayed_retry {
            needs("delayed_retry", (4, 3))?;
            work.text("x-delayed-retry-type", "failed");
            work.millis("x-delayed-retry-min", min);
            work.millis("x-delayed-retry-max", max);
        }
        if let Some(limit) = options.consumer_timeout {
            needs("consumer_timeout", (3, 12))?;
            work.millis(TIMEOUT, limit);
        }
        Ok(work)
    }

    pub(super) fn of_parking(queue: &str) -> Self {
        let mut parking = Self::quorum(queue, Role::Parking);
        parking.limit(None);
        parking
    }

    fn text(&mut self, name: &str, value: &str) {
        self.arguments.insert(name.to_owned(), Value::Text(value.to_owned()));
    }

    /// From 1 ms to 49 days.
    fn millis(&mut self, name: &str, value: Duration) {
        let millis = u32::try_from(value.as_millis()).unwrap_or(u32::MAX).max(1);
        self.arguments.insert(name.to_owned(), Value::Number(millis.into()));
    }

    fn limit(&mut self, limit: Option<u32>) {
        let limit = limit.map_or(UNLIMITED, Into::into);
        self.arguments.insert(LIMIT.to_owned(), Value::Number(limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> ServerVersion {
        ServerVersion::parse(text).unwrap()
    }

    fn shown(declaration: &Declaration) -> Vec<String> {
        declaration.arguments.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    fn work(options: &Options, on: &str) -> Result<Declaration, DeclareError> {
        Declaration::of_work("orders", "orders.parked", options, version(on))
    }

    #[test]
    fn what_the_broker_takes_out_is_parked() {
        let declared = work(&Options::default(), "3.10.8").unwrap();
        assert_eq!(
            shown(&declared),
            [
                "x-dead-letter-exchange=\"\"",
                "x-dead-letter-routing-key=orders.parked",
                "x-dead-letter-strategy=at-least-once",
                "x-delivery-limit=20",
                "x-overflow=reject-publish",
                "x-queue-type=quorum",
            ]
        );
        assert!(declared.durable && !declared.auto_delete);
    }

    /// Every version takes it, and none reaches it.
    #[test]
    fn no_limit_is_a_very_large_one() {
        let unlimited = Options { delivery_limit: None, ..Options::default() };
        for declared in [Declaration::of_parking("orders.parked"), work(&unlimited, "4.3.6").unwrap()] {
            assert_eq!(declared.arguments[LIMIT], Value::Number(2_147_483_647), "{declared:?}");
        }
    }

    #[test]
    fn what_a_broker_would_ignore_is_refused_by_name_and_version() {
        let plain = Options::default();
        let retry = (Duration::ZERO, Duration::MAX);
        let delayed = Options { delayed_retry: Some(retry), ..plain };
        let timed = Options { consumer_timeout: Some(Duration::from_secs(60)), ..plain };
        for (options, too_old, new_enough) in
            [(plain, "3.9.29", "3.10.0"), (delayed, "4.2.9", "4.3.0"), (timed, "3.11.28", "3.12.0")]
        {
            let error = work(&options, too_old).unwrap_err();
            assert!(
                matches!(error, DeclareError::TooOld { .. }) && error.to_string().contains(too_old),
                "{error}"
            );
            assert!(work(&options, new_enough).is_ok(), "{new_enough}");
        }
        let declared = work(&delayed, "4.3.0").unwrap();
        assert_eq!(declared.arguments["x-delayed-retry-min"], Value::Number(1));
        assert_eq!(declared.arguments["x-delayed-retry-max"], Value::Number(u32::MAX.into()));
        assert_eq!(work(&timed, "4.0.5").unwrap().arguments[TIMEOUT], Value::Number(60_000));
    }
}
