//! What differs in a queue that is there already, and what that means.

use std::fmt;

use super::arguments::{Declaration, LIMIT, Role, TIMEOUT, TYPE, Value};
use crate::amqp::{ServerVersion, UNLIMITED};

/// What a queue has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Current {
    Unset,
    Is(Value),
    /// The broker's answer does not say it.
    Unknown,
}

impl fmt::Display for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unset => f.write_str("none"),
            Self::Is(value) => value.fmt(f),
            Self::Unknown => f.write_str("another"),
        }
    }
}

/// A setting in which a queue that is there differs from the recommendation. Prints as a line for
/// humans.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The queue: the one to consume from, or its parking queue.
    pub queue: String,
    /// An argument such as `x-delivery-limit`, or `durable` or `auto_delete`.
    pub setting: String,
    /// What it is, as text: `none` if it is not set, and `another` if the broker's answer is too
    /// long to say it.
    pub current: String,
    /// What it should be, as text: `none` if it should not be set.
    pub recommended: String,
    /// What comes of it.
    pub effect: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, setting, current, recommended, effect } = self;
        let queue = queue.escape_debug();
        write!(f, "{queue}: {setting} is {current}; recommended {recommended}: {effect}")
    }
}

impl Difference {
    pub(super) fn new(
        wanted: &Declaration,
        setting: &str,
        current: &Current,
        version: ServerVersion,
    ) -> Self {
        let recommended = match (setting, wanted.arguments.get(setting)) {
            ("durable", _) => Current::Is(Value::Flag(wanted.durable)),
            ("auto_delete", _) => Current::Is(Value::Flag(wanted.auto_delete)),
            (_, Some(value)) => Current::Is(value.clone()),
            (_, None) => Current::Unset,
        };
        let effect = effect(wanted.role, setting, current, version);
        // A policy has no say where there is an argument, but for limits, of which the lower one
        // counts.
        let unless = match current {
            Current::Unset if by_policy(setting) => ", unless a policy says otherwise",
            _ => "",
        };
        Self {
            queue: wanted.queue.clone(),
            setting: setting.to_owned(),
            current: current.to_string(),
            recommended: recommended.to_string(),
            effect: format!("{effect}{unless}"),
        }
    }
}

fn by_policy(setting: &str) -> bool {
    setting.starts_with("x-dead-letter-")
        || setting.starts_with("x-delayed-retry-")
        || [LIMIT, TIMEOUT, "x-overflow"].contains(&setting)
}

fn effect(role: Role, setting: &str, current: &Current, version: ServerVersion) -> String {
    let text = match (setting, current, role) {
        (TYPE, Current::Is(Value::Text(kind)), _) if kind == "classic" => {
            "a classic queue is away or lost with its node, knows no delivery limit and dead-letters at most once; \
             consume it empty, delete it, and declare it again"
        }
        (TYPE, _, _) => "this is no queue to work through; use another name",
        (LIMIT, current, _) => return limit(role, current, version),
        ("durable", _, _) => "the queue is gone when its node restarts",
        ("auto_delete", _, _) => "the queue goes with its last consumer",
        ("x-expires", _, _) => "the queue is deleted with its messages when nobody uses it for that long",
        ("x-message-ttl", _, Role::Parking) => "parked messages are dropped after that time",
        ("x-message-ttl", _, Role::Work) => "the broker takes out what waits for longer",
        ("x-max-length" | "x-max-length-bytes", _, _) => {
            "a queue that is full refuses messages, or drops some"
        }
        ("x-dead-letter-exchange" | "x-dead-letter-routing-key", _, Role::Parking) => {
            "what the broker takes out goes on elsewhere"
        }
        ("x-dead-letter-exchange", Current::Unset, Role::Work) => {
            "what the broker takes out, such as a message above the delivery limit, is deleted"
        }
        ("x-dead-letter-exchange" | "x-dead-letter-routing-key", _, Role::Work) => {
            "what the broker takes out goes elsewhere than to the parking queue"
        }
        ("x-dead-letter-strategy", _, _) => {
            "what the broker takes out can be lost on its way to the parking queue"
        }
        ("x-overflow", _, _) => {
            "dead-lettering at least once is not in force: what the broker takes out can be lost on its way"
        }
        ("x-delayed-retry-type", Current::Unset, _) => "a message that failed comes back at once",
        ("x-delayed-retry-type" | "x-delayed-retry-min" | "x-delayed-retry-max", _, _) => {
            "messages that failed come back after other delays"
        }
        (TIMEOUT, Current::Unset, _) => "the broker's own consumer timeout applies, of 30 minutes by default",
        (TIMEOUT, _, _) => "the broker takes a message back after another time",
        ("x-single-active-consumer", _, _) => "one consumer at a time is served",
        _ => "this crate recommends nothing there; it is as the queue was declared",
    };
    text.to_owned()
}

fn limit(role: Role, current: &Current, version: ServerVersion) -> String {
    let (limit, own) = match current {
        Current::Is(Value::Number(limit)) => (Some(*limit), ""),
        Current::Unset if version >= (4, 0) => (Some(20), "the broker's own limit of 20 applies: "),
        Current::Unset => (None, ""),
        Current::Is(_) | Current::Unknown => return "another limit applies".to_owned(),
    };
    match (role, limit) {
        // RabbitMQ 3.x takes a negative limit for one.
        (_, Some(limit)) if limit < 0 && version < (4, 0) => {
            "a message that is given back once is taken out".to_owned()
        }
        (_, Some(UNLIMITED..)) => "there is no limit".to_owned(),
        (Role::Work, Some(limit)) if limit >= 0 => {
            format!("{own}the broker takes a message out that came back more than {limit} times")
        }
        (Role::Work, _) => "a message that takes its consumers down comes back for ever".to_owned(),
        (Role::Parking, Some(limit)) if limit >= 0 => {
            format!("{own}a parked message that was taken and given back more than {limit} times is dropped")
        }
        (Role::Parking, _) => "parked messages can be taken and given back as often as it takes".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::arguments::Options, *};

    fn line(role: Role, setting: &str, current: &Current, on: &str) -> String {
        let version = ServerVersion::parse(on).unwrap();
        let wanted = match role {
            Role::Work => Declaration::of_work("q", "q.parked", &Options::default(), version).unwrap(),
            Role::Parking => Declaration::of_parking("q.parked"),
        };
        Difference::new(&wanted, setting, current, version).to_string()
    }

    #[test]
    fn a_line_says_what_comes_of_it_on_this_broker() {
        let work = |setting, current, on| line(Role::Work, setting, &current, on);
        let parking = |setting, current, on| line(Role::Parking, setting, &current, on);
        let text = |text: &str| Current::Is(Value::Text(text.to_owned()));
        assert_eq!(
            work(LIMIT, Current::Unset, "3.10.8"),
            "q: x-delivery-limit is none; recommended 20: a message that takes its consumers down comes back for ever, unless a policy says otherwise"
        );
        assert_eq!(
            work(LIMIT, Current::Is(Value::Number(5)), "3.10.8"),
            "q: x-delivery-limit is 5; recommended 20: the broker takes a message out that came back more than 5 times"
        );
        assert!(work(LIMIT, Current::Is(Value::Number(-1)), "4.0.5").ends_with("for ever"));
        assert!(
            work(LIMIT, Current::Is(Value::Number(-1)), "3.13.7").ends_with("given back once is taken out")
        );
        assert!(work(LIMIT, Current::Is(Value::Number(UNLIMITED)), "4.3.6").ends_with("there is no limit"));
        assert_eq!(
            parking(LIMIT, Current::Unset, "4.3.6"),
            "q.parked: x-delivery-limit is none; recommended 2147483647: the broker's own limit of 20 applies: \
             a parked message that was taken and given back more than 20 times is dropped, unless a policy says otherwise"
        );
        assert!(
            work(TYPE, text("classic"), "4.3.6")
                .contains("x-queue-type is classic; recommended quorum: a classic queue")
        );
        assert!(work(TYPE, text("stream"), "4.3.6").contains("use another name"));
        assert!(
            work("durable", Current::Is(Value::Flag(false)), "3.10.8").contains("is false; recommended true")
        );
        assert!(
            work("x-dead-letter-exchange", Current::Unset, "3.10.8")
                .contains("recommended \"\": what the broker takes out")
        );
        assert!(
            work("x-max-priority", Current::Is(Value::Number(5)), "3.10.8")
                .contains("is 5; recommended none")
        );
    }
}
