//! Sending: `publisher/`.

use super::{
    mutants::Mutant,
    protocol::{Action, Protocol},
    state::{Answer, Broken, Copy, Id, Message, Place, State, Verdict},
};

impl Protocol {
    pub(super) fn publisher_actions(state: &State, actions: &mut Vec<Action>) {
        for (message, publisher) in state.publishers.iter().enumerate() {
            if publisher.verdict.is_some() {
                continue;
            }
            if publisher.answer.is_some() {
                actions.push(Action::Judge(message));
                if state.faults > 0 {
                    actions.push(Action::PublisherDies(message));
                }
                continue;
            }
            actions.push(Action::Publish(message));
            if state.faults > 0 {
                for (stored, answer) in [
                    (false, Answer::Nack),
                    (false, Answer::Return),
                    (false, Answer::Cut),
                    (true, Answer::Cut),
                ] {
                    actions.push(Action::PublishBadly(message, stored, answer));
                }
            }
        }
    }

    pub(super) fn id_of(&self, message: Message, attempt: u8) -> Id {
        if self.mutant(Mutant::NewIdOnRetry) && attempt > 1 { message + self.messages } else { message }
    }

    pub(super) fn publish(&self, state: &mut State, message: Message, stored: bool, answer: Answer) {
        let publisher = &mut state.publishers[message];
        publisher.attempts = publisher.attempts.saturating_add(1);
        publisher.answer = Some(answer);
        publisher.stored |= stored;
        let id = self.id_of(message, publisher.attempts);
        if stored {
            state.add_copy(Copy {
                number: 0,
                message,
                id,
                place: Place::Ready,
                redelivered: false,
                failures: 0,
                vouched: false,
            });
        }
    }

    pub(super) fn judge(&self, state: &mut State, message: Message) {
        let publisher = &mut state.publishers[message];
        let verdict = match publisher.answer.take() {
            Some(Answer::Ack) => Some(Verdict::Confirmed),
            Some(Answer::Nack) if self.mutant(Mutant::NackTakenAsConfirm) => Some(Verdict::Confirmed),
            Some(Answer::Return) if self.mutant(Mutant::ReturnTakenAsConfirm) => Some(Verdict::Confirmed),
            Some(Answer::Return) => Some(Verdict::Failed),
            Some(Answer::Cut) if self.mutant(Mutant::CutTakenAsConfirm) => Some(Verdict::Confirmed),
            // Sent again under the same ID.
            _ => None,
        };
        publisher.verdict = verdict;
        if verdict == Some(Verdict::Confirmed) && !publisher.stored {
            state.broken(Broken::ConfirmedWithoutCopy);
        }
    }
}
