//! Sending: `publisher/`.

use super::{
    mutants::Mutant,
    protocol::{Action, Protocol},
    state::{Answer, Broken, Copy, Id, Late, Message, Place, Publisher, State, Verdict},
};

impl Protocol {
    pub(super) fn publisher_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (message, publisher) in state.publishers.iter().enumerate() {
            if publisher.verdict.is_some() {
                continue;
            }
            if publisher.answer.is_some() {
                actions.push(Action::Judge(message));
                if state.faults > 0 {
                    actions.push(Action::PublisherDies(message));
                    if self.late {
                        actions.push(Action::DeadlineComes(message));
                    }
                }
                continue;
            }
            actions.push(Action::Publish(message));
            if state.faults > 0 {
                for (stored, answer) in [
                    (false, Answer::Nack),
                    // One of several queues is full, the others have it.
                    (true, Answer::Nack),
                    (false, Answer::Return),
                    (false, Answer::Cut),
                    (true, Answer::Cut),
                ] {
                    actions.push(Action::PublishBadly(message, stored, answer));
                }
                if self.late && !publisher.restarted {
                    actions.push(Action::PublisherFreezes(message));
                }
            }
        }
        // One without an answer to come is judged as lost anyway.
        let answered = |publisher: &Publisher| publisher.answer.is_some_and(|answer| answer != Answer::Cut);
        if self.late && state.faults > 0 && state.publishers.iter().any(answered) {
            actions.push(Action::Retire);
        }
        // While nothing is in flight, nobody could take it for his.
        if state.publishers.iter().any(|publisher| publisher.answer.is_some()) {
            actions.extend((0..state.late.len()).map(Action::LateAnswer));
        }
        actions.extend((0..state.zombies.len()).map(Action::ZombieArrives));
    }

    /// `message/strategy.rs`: an ID is stamped once for all attempts; and of a deterministic
    /// strategy, for all processes.
    fn id_of(&self, message: Message, publisher: &Publisher) -> Id {
        let changed = match self.mutant {
            Some(Mutant::NewIdOnRetry) => publisher.attempts > 1,
            Some(Mutant::NewIdAfterRestart) => publisher.restarted,
            _ => false,
        };
        if changed { message + self.messages } else { message }
    }

    pub(super) fn publish(&self, state: &mut State, message: Message, stored: bool, answer: Answer) {
        state.next_tag += 1;
        let publisher = &mut state.publishers[message];
        publisher.attempts = (publisher.attempts + 1).min(2);
        publisher.answer = Some(answer);
        publisher.tag = state.next_tag;
        if stored {
            publisher.stored = true;
            let id = self.id_of(message, publisher);
            state.store(message, id);
        }
    }

    /// A new process has the message once more, and knows nothing of the old one's attempts.
    pub(super) fn restart(state: &mut State, message: Message) {
        state.publishers[message] = Publisher { restarted: true, ..Publisher::default() };
    }

    /// The old process has an attempt under way, which the broker has not seen yet.
    pub(super) fn freeze(&self, state: &mut State, message: Message) {
        state.zombies.push((message, self.id_of(message, &state.publishers[message])));
        Self::restart(state, message);
    }

    pub(super) fn zombie_arrives(state: &mut State, index: usize) {
        let (message, id) = state.zombies.remove(index);
        state.store(message, id);
    }

    /// `Lane::resend`, `Job::outcome_unknown`: what is in flight is sent again, on another channel.
    pub(super) fn retire(state: &mut State) {
        for publisher in &mut state.publishers {
            if let Some(answer) = publisher.answer.take() {
                publisher.uncertain = true;
                if answer != Answer::Cut {
                    state.late.push(Late { generation: state.generation, tag: publisher.tag, answer });
                }
            }
        }
        state.generation += 1;
        state.next_tag = 0;
    }

    /// An attempt that was given up has neither a window nor a channel any more: `Lane::run` drops
    /// both with its generation.
    pub(super) fn late_answer(&self, state: &mut State, index: usize) {
        let late = state.late.remove(index);
        if late.generation != state.generation && !self.mutant(Mutant::LateConfirmTakenByTag) {
            return;
        }
        let waiting = |publisher: &Publisher| publisher.answer.is_some() && publisher.tag == late.tag;
        if let Some(message) = state.publishers.iter().position(waiting) {
            state.publishers[message].answer = Some(late.answer);
            self.judge(state, message);
        }
    }

    /// `Job::give_up_waiting`: the caller has its error; the attempt stays in flight, and its
    /// confirm has no reader.
    pub(super) fn deadline_comes(&self, state: &mut State, message: Message) {
        let publisher = &mut state.publishers[message];
        publisher.answer = None;
        publisher.uncertain = true;
        self.fail_publish(state, message);
    }

    fn fail_publish(&self, state: &mut State, message: Message) {
        let publisher = &mut state.publishers[message];
        let uncertain = publisher.uncertain && !self.mutant(Mutant::UnknownTakenAsUnpublished);
        publisher.verdict = Some(Verdict::Failed(uncertain));
        if publisher.stored && !uncertain {
            state.broken(Broken::DeniedWithCopy);
        }
    }

    pub(super) fn judge(&self, state: &mut State, message: Message) {
        let publisher = &mut state.publishers[message];
        let verdict = match publisher.answer.take() {
            Some(Answer::Ack) => Some(Verdict::Confirmed),
            Some(Answer::Nack) if self.mutant(Mutant::NackTakenAsConfirm) => Some(Verdict::Confirmed),
            Some(Answer::Return) if self.mutant(Mutant::ReturnTakenAsConfirm) => Some(Verdict::Confirmed),
            Some(Answer::Return) => return self.fail_publish(state, message),
            Some(Answer::Cut) if self.mutant(Mutant::CutTakenAsConfirm) => Some(Verdict::Confirmed),
            Some(Answer::Cut) => {
                publisher.uncertain = true;
                None
            }
            // Sent again under the same ID.
            Some(Answer::Nack) => {
                publisher.uncertain |= !self.mutant(Mutant::NackTakenAsUnpublished);
                None
            }
            _ => None,
        };
        publisher.verdict = verdict;
        if verdict == Some(Verdict::Confirmed) && !publisher.stored {
            state.broken(Broken::ConfirmedWithoutCopy);
        }
    }
}

impl State {
    fn store(&mut self, message: Message, id: Id) {
        let place = Place::Ready;
        self.add_copy(Copy {
            number: 0,
            message,
            id,
            place,
            redelivered: false,
            returns: 0,
            losses: 0,
            failures: 0,
            vouched: false,
            epoch: false,
        });
    }
}
