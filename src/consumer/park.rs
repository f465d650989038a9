//! Where messages go that must not be tried again, and what is said of their failure.

use std::error::Error;

/// How much of an error's text travels with a parked message.
const ERROR_BYTES: usize = 1024;

/// The delivery limit of queues that must have none.
///
/// Not -1, which says so from RabbitMQ 4.0 on: 3.x takes it for a limit, and removes a message that is given back for the first time. And not nothing, which is
/// a limit of 20 from 4.0 on.
pub(super) const UNLIMITED: i64 = i32::MAX as i64;

/// Where parked messages go.
#[derive(Debug, Clone)]
pub(crate) struct ParkingTarget {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    declare: bool,
}

impl ParkingTarget {
    pub(crate) fn queue_beside(queue: &str) -> Self {
        Self { exchange: String::new(), routing_key: format!("{queue}.parked"), declare: true }
    }

    pub(crate) fn exchange(exchange: String, routing_key: String) -> Self {
        Self { exchange, routing_key, declare: false }
    }

    /// Whether the broker can have a queue of this name.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.queue_to_declare() {
            Some(name) if name.len() > 255 => Err(format!(
                "the name of the parking queue has {} bytes, and AMQP allows 255: see `parking`",
                name.len()
            )),
            Some(name) if name.starts_with("amq.") => {
                Err("the name of the parking queue begins with `amq.`, which is reserved: see `parking`"
                    .into())
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn queue_to_declare(&self) -> Option<&str> {
        self.declare.then_some(self.routing_key.as_str())
    }
}

/// The beginning of a text, without control characters that could disturb whoever prints it.
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

/// An error with its causes, as text.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_is_bounded_and_escaped() {
        assert_eq!(bounded("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
        assert!(bounded(&"é".repeat(10_000)).len() <= ERROR_BYTES + 8);
    }
}
