//! Learns from the broker's answers what a queue has that is there already.

use super::{
    arguments::{Declaration, TYPE, Value},
    difference::Current,
};

/// What was found out about a queue that is there.
#[derive(Default)]
pub(super) struct Found {
    pub(super) settings: Vec<(String, Current)>,
    pub(super) complete: bool,
}

/// A declaration on its way to being that of the queue that is there.
pub(super) struct Trial {
    pub(super) declaration: Declaration,
    /// An argument that was left out to see what the queue has.
    left_out: Option<String>,
    pub(super) found: Found,
}

impl Trial {
    pub(super) fn of(wanted: &Declaration) -> Self {
        Self { declaration: wanted.clone(), left_out: None, found: Found::default() }
    }

    /// Takes in that the queue differs in `setting`. False if there is nothing more to ask.
    pub(super) fn learn(&mut self, setting: &str, current: Current) -> bool {
        if self.left_out.as_deref() != Some(setting) {
            self.settle();
        }
        if self.found.settings.iter().any(|(known, _)| known == setting) {
            // It was declared as the queue seemed to have it.
            return false;
        }
        let more = match (setting, &current) {
            ("durable", Current::Is(Value::Flag(durable))) => {
                self.declaration.durable = *durable;
                true
            }
            ("auto_delete", Current::Is(Value::Flag(auto_delete))) => {
                self.declaration.auto_delete = *auto_delete;
                true
            }
            // Without the argument it would be the broker's default that is compared.
            (TYPE, Current::Is(Value::Text(kind))) => {
                self.declaration.arguments.insert(TYPE.to_owned(), Value::Text(kind.clone()));
                kind == "classic"
            }
            (TYPE, Current::Unset) => {
                // Older brokers do not write it down.
                let classic = Value::Text("classic".to_owned());
                self.declaration.arguments.insert(TYPE.to_owned(), classic.clone());
                self.found.settings.push((TYPE.to_owned(), Current::Is(classic)));
                return true;
            }
            // Two values are compared without their types, and an answer is cut after 255 bytes.
            // Left out, it is told with its type, and in a shorter answer.
            (_, _) if self.declaration.arguments.remove(setting).is_some() => {
                self.left_out = Some(setting.to_owned());
                return true;
            }
            (_, Current::Is(value)) => {
                self.declaration.arguments.insert(setting.to_owned(), value.clone());
                true
            }
            (_, Current::Unset | Current::Unknown) => false,
        };
        self.left_out = None;
        self.found.settings.push((setting.to_owned(), current));
        more
    }

    /// What was left out, and is not asked for, is not there.
    fn settle(&mut self) {
        if let Some(setting) = self.left_out.take() {
            self.found.settings.push((setting, Current::Unset));
        }
    }

    pub(super) fn passed(mut self) -> Found {
        self.settle();
        self.found.complete = true;
        self.found
    }
}

/// Which setting differs, and what the queue has, by the broker's text: `PRECONDITION_FAILED -
/// inequivalent arg 'x-overflow' for queue 'q' in vhost '/': received none but current is the value
/// 'drop-head' of type 'longstr'`.
pub(super) fn inequivalent(text: &str) -> Option<(String, Current)> {
    let (_, rest) = text.split_once("inequivalent arg '")?;
    let (setting, rest) = rest.split_once("' for ")?;
    let current = rest.rsplit_once(" but current is ").and_then(|(_, current)| value(current));
    Some((setting.to_owned(), current.unwrap_or(Current::Unknown)))
}

/// `None` if it makes no sense, as if it was cut.
fn value(text: &str) -> Option<Current> {
    if text == "none" {
        return Some(Current::Unset);
    }
    let value = match text.strip_prefix("the value '") {
        Some(typed) => {
            let (value, kind) = typed.strip_suffix('\'')?.rsplit_once("' of type '")?;
            match kind {
                "longstr" => Value::Text(value.to_owned()),
                "bool" => Value::Flag(value.parse().ok()?),
                _ => Value::Number(value.parse().ok()?),
            }
        }
        None => match text.strip_prefix('\'')?.strip_suffix('\'')? {
            "true" => Value::Flag(true),
            "false" => Value::Flag(false),
            value => Value::Text(value.to_owned()),
        },
    };
    Some(Current::Is(value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{super::arguments::Options, *};
    use crate::amqp::ServerVersion;

    const MOST_QUESTIONS: usize = 20;

    fn text(text: &str) -> Current {
        Current::Is(Value::Text(text.to_owned()))
    }

    /// What a broker says of `queue`, which is there, to a declaration; or that it is fine.
    fn answer(there: &Declaration, declared: &Declaration, cut: usize) -> Option<String> {
        let differs = |name: &str, received: String, current: String| {
            let (queue, prefix) = (&there.queue, "PRECONDITION_FAILED - inequivalent arg");
            let mut text = format!(
                "{prefix} '{name}' for queue '{queue}' in vhost '/': received {received} but current is {current}"
            );
            if text.len() > cut {
                text.truncate(cut - 3);
                text.push_str("...");
            }
            text
        };
        if there.durable != declared.durable {
            return Some(differs(
                "durable",
                format!("'{}'", declared.durable),
                format!("'{}'", there.durable),
            ));
        }
        let typed = |value: &Value| match value {
            Value::Text(text) => format!("the value '{text}' of type 'longstr'"),
            Value::Number(number) => format!("the value '{number}' of type 'long'"),
            Value::Flag(flag) => format!("the value '{flag}' of type 'bool'"),
        };
        let untyped = |value: &Value| match value {
            Value::Text(text) => format!("'{text}'"),
            Value::Number(number) => format!("'{number}'"),
            Value::Flag(flag) => format!("'{flag}'"),
        };
        let names = there.arguments.keys().chain(declared.arguments.keys());
        names.collect::<std::collections::BTreeSet<_>>().into_iter().find_map(|name| {
            let none = || "none".to_owned();
            match (declared.arguments.get(name), there.arguments.get(name)) {
                (received, current) if received == current => None,
                // A classic queue needs no type.
                (Some(Value::Text(kind)), None) if name == TYPE && kind == "classic" => None,
                (Some(received), Some(current)) => Some(differs(name, untyped(received), untyped(current))),
                (received, current) => {
                    Some(differs(name, received.map_or_else(none, typed), current.map_or_else(none, typed)))
                }
            }
        })
    }

    /// As `compare` asks, of a broker that answers at once.
    fn compared(there: &Declaration, cut: usize) -> Found {
        let mut trial = Trial::of(&wanted(&there.queue));
        let mut next = answer(there, &trial.declaration, cut);
        let mut questions = 0;
        while let Some(text) = next {
            let (setting, current) = inequivalent(&text).expect("understood");
            if !trial.learn(&setting, current) {
                return trial.found;
            }
            next = answer(there, &trial.declaration, cut);
            questions += 1;
            assert!(questions < MOST_QUESTIONS);
        }
        trial.passed()
    }

    fn wanted(queue: &str) -> Declaration {
        let version = ServerVersion::parse("4.0.5").expect("version");
        Declaration::of_work(queue, &format!("{queue}.parked"), &Options::default(), version)
            .expect("declaration")
    }

    fn found(there: &Declaration) -> BTreeMap<String, Current> {
        let found = compared(there, 255);
        assert!(found.complete, "{:?}", found.settings);
        found.settings.into_iter().collect()
    }

    #[test]
    fn all_differences_are_found_one_after_the_other() {
        let mut there = wanted("orders");
        assert!(found(&there).is_empty());
        there.durable = false;
        there.arguments.remove("x-dead-letter-exchange");
        there.arguments.insert("x-delivery-limit".into(), Value::Number(-1));
        there.arguments.insert("x-overflow".into(), Value::Text("drop-head".into()));
        there.arguments.insert("x-single-active-consumer".into(), Value::Flag(true));
        let expected: [(&str, Current); 5] = [
            ("durable", Current::Is(Value::Flag(false))),
            ("x-dead-letter-exchange", Current::Unset),
            ("x-delivery-limit", Current::Is(Value::Number(-1))),
            ("x-overflow", text("drop-head")),
            ("x-single-active-consumer", Current::Is(Value::Flag(true))),
        ];
        assert_eq!(found(&there), expected.map(|(name, current)| (name.to_owned(), current)).into());
        there.arguments.clear();
        let found = found(&there);
        assert_eq!(found[TYPE], text("classic"), "a queue without a type is a classic one");
        assert_eq!(found.len(), 7, "{found:?}");
    }

    #[test]
    fn an_answer_that_is_cut_is_asked_again_in_fewer_words() {
        let queue = "q".repeat(100);
        let mut there = wanted(&queue);
        there.arguments.remove("x-dead-letter-routing-key");
        assert!(answer(&there, &wanted(&queue), 255).is_some_and(|text| text.ends_with("...")), "cut");
        assert_eq!(found(&there), [("x-dead-letter-routing-key".to_owned(), Current::Unset)].into());
        let elsewhere = format!("{queue}.elsewhere");
        there.arguments.insert("x-dead-letter-routing-key".into(), Value::Text(elsewhere));
        let found = compared(&there, 255);
        assert!(!found.complete);
        assert_eq!(found.settings, [("x-dead-letter-routing-key".to_owned(), Current::Unknown)]);
    }

    #[test]
    fn values_are_told_from_what_is_cut() {
        for (text, expected) in [
            ("none", Some(Current::Unset)),
            ("'classic'", Some(self::text("classic"))),
            ("the value '' of type 'longstr'", Some(self::text(""))),
            ("the value '7' of type 'signedint'", Some(Current::Is(Value::Number(7)))),
            ("the value 'true' of type 'bool'", Some(Current::Is(Value::Flag(true)))),
            ("the value '[1,2]' of type 'array'", None),
            ("the value 'x' of type 'long...", None),
            ("'qu...", None),
            ("", None),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
        assert_eq!(inequivalent("PRECONDITION_FAILED - invalid arg 'x-max-age' for queue 'q'"), None);
    }
}
