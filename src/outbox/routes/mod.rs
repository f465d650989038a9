//! Where messages cannot go now.
//!
//! A queue that is full nacks what is sent to it, and would nack all that waits for it. So a nack
//! holds its (exchange, routing key) back, with growing pauses. After a pause one message tries it;
//! when it is confirmed two may, then four, and so on, until the route is as any other. So does a
//! route on which so many messages in turn failed by their own fault that it is rather the route's.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{contract::Route, keys::Key, verdict::growing};

/// So many messages have to fail on a route, with none confirmed in between, to hold it back.
const FAULTS: u32 = 64;

/// With so many at once a route is tried no more, but open.
const OPEN: u32 = 256;

/// No more routes are watched at a time: reads have to name those that they leave out.
const ROUTES: usize = 512;

/// A route that nothing was sent on for so long, although it may be tried, is forgotten.
const UNUSED: Duration = Duration::from_secs(60);

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a message may be sent, and as what its verdict counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Nothing is known against its route.
    Free,
    /// It is one of those that try the route.
    Trial(u64),
    /// Not now.
    Held,
}

/// How a message went that was sent on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Went {
    Confirmed,
    /// The route took it not.
    Nacked,
    /// By its own fault.
    Fault,
    /// It says nothing of the route.
    Unknown,
}

/// Reads are to leave a route out, or to have it again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) route: Arc<Route>,
    pub(super) is_left_out: bool,
    /// The keys whose oldest row waits for it, which may be tried again.
    pub(super) keys: Vec<Key>,
}

#[derive(Debug)]
enum State {
    /// So many faults in turn.
    Faults(u32),
    Held {
        until: Instant,
    },
    /// Up to `limit` messages try it together.
    Trial {
        number: u64,
        limit: u32,
        sent: u32,
        open: u32,
        confirmed: bool,
        since: Instant,
    },
}

#[derive(Debug)]
struct Trouble {
    state: State,
    pauses: u32,
    /// It was held back over faults, so another one speaks against it. One of a queue that was full
    /// does not.
    by_faults: bool,
    /// Whose oldest row was not let through.
    keys: Vec<Key>,
}

/// The routes that something is known against.
#[derive(Debug, Default)]
pub(super) struct Routes {
    troubles: HashMap<Arc<Route>, Trouble>,
    changes: Vec<Change>,
    trials: u64,
    next: Option<Instant>,
}

impl Routes {
    /// Whether nothing is known against any route: then none needs to be asked for.
    pub(super) fn is_quiet(&self) -> bool {
        self.troubles.is_empty()
    }

    /// Whether a message may be sent on a route. What is not let through because its key waits is
    /// named by [`wait`](Self::wait).
    pub(super) fn admit(&mut self, route: &Route, now: Instant) -> Admission {
        let Some((name, trouble)) = self.find(route) else { return Admission::Free };
        let State::Trial { number, limit, sent, open, since, .. } = &mut trouble.state else {
            let is_held = matches!(trouble.state, State::Held { .. });
            return if is_held { Admission::Held } else { Admission::Free };
        };
        if sent == limit {
            return Admission::Held;
        }
        (*sent, *open, *since) = (*sent + 1, *open + 1, now);
        let (number, is_full) = (*number, sent == limit);
        if is_full {
            self.changes.push(Change { route: name, is_left_out: true, keys: Vec::new() });
        }
        Admission::Trial(number)
    }

    /// The oldest row of a key waits for a route that is held back. Gives whether it is.
    pub(super) fn wait(&mut self, route: &Route, key: Key) -> bool {
        self.find(route).map(|(_, trouble)| trouble.keys.push(key)).is_some()
    }

    /// A message has its verdict. Gives `false` if it was nacked, and the route cannot be held back
    /// because too many are: it must be left alone by itself.
    pub(super) fn went(&mut self, route: &Arc<Route>, as_: Admission, went: Went, now: Instant) -> bool {
        if !self.troubles.contains_key(route) && !self.watch(route, went) {
            return went != Went::Nacked;
        }
        let Some(trouble) = self.troubles.get_mut(route) else { return true };
        match (&mut trouble.state, as_, went) {
            (State::Faults(_), _, Went::Confirmed) => drop(self.troubles.remove(route)),
            (State::Faults(_), _, Went::Nacked) => self.hold(route, now),
            (State::Faults(faults), _, Went::Fault) => {
                *faults += 1;
                if *faults >= FAULTS {
                    trouble.by_faults = true;
                    self.hold(route, now);
                }
            }
            (State::Trial { number, .. }, Admission::Trial(mine), Went::Nacked | Went::Fault)
                if *number == mine && (went == Went::Nacked || trouble.by_faults) =>
            {
                self.hold(route, now);
            }
            (State::Trial { number, open, confirmed, .. }, Admission::Trial(mine), _) if *number == mine => {
                *open -= 1;
                *confirmed |= went == Went::Confirmed;
                if *open == 0 {
                    self.next_trial(route, now);
                }
            }
            // What was sent before says nothing new.
            _ => {}
        }
        true
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        let mut over = Vec::new();
        for (route, trouble) in &self.troubles {
            match trouble.state {
                State::Held { until } if until <= now => over.push((Arc::clone(route), true)),
                State::Trial { open: 0, since, .. } if since + UNUSED <= now => {
                    over.push((Arc::clone(route), false));
                }
                _ => {}
            }
        }
        for (route, is_held) in over {
            if is_held { self.try_with(&route, 1, now) } else { self.open(&route) }
        }
        self.plan_next();
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        self.next
    }

    /// What has changed for reads since the last call.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Whether [`changes`](Self::changes) has something.
    pub(super) fn has_changed(&self) -> bool {
        !self.changes.is_empty()
    }

    /// What reads leave out.
    pub(super) fn left_out(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.troubles.iter().filter(|(_, trouble)| trouble.is_left_out()).map(|(route, _)| route)
    }

    /// Whether reads leave it out.
    pub(super) fn leaves_out(&self, route: &Route) -> bool {
        self.troubles.get(route).is_some_and(Trouble::is_left_out)
    }

    /// How many routes are held back or tried.
    pub(super) fn held(&self) -> usize {
        self.troubles.values().filter(|trouble| !matches!(trouble.state, State::Faults(_))).count()
    }

    fn find(&mut self, route: &Route) -> Option<(Arc<Route>, &mut Trouble)> {
        let name = Arc::clone(self.troubles.get_key_value(route)?.0);
        self.troubles.get_mut(route).map(|trouble| (name, trouble))
    }

    /// Begins to watch a route if there is a reason to. Gives whether it is watched.
    fn watch(&mut self, route: &Arc<Route>, went: Went) -> bool {
        if !matches!(went, Went::Nacked | Went::Fault) {
            return false;
        }
        if self.troubles.len() >= ROUTES {
            self.troubles.retain(|_, trouble| !matches!(trouble.state, State::Faults(_)));
        }
        if self.troubles.len() >= ROUTES {
            return false;
        }
        let trouble = Trouble { state: State::Faults(0), pauses: 0, by_faults: false, keys: Vec::new() };
        self.troubles.insert(Arc::clone(route), trouble);
        true
    }

    fn hold(&mut self, route: &Arc<Route>, now: Instant) {
        let Some(trouble) = self.troubles.get_mut(route) else { return };
        // By up to a half, so that relays do not all come together.
        let pause = growing(FIRST_PAUSE, LONGEST_PAUSE, trouble.pauses).mul_f64(0.5 + fastrand::f64() / 2.0);
        let was_left_out = trouble.is_left_out();
        (trouble.state, trouble.pauses) = (State::Held { until: now + pause }, trouble.pauses + 1);
        if !was_left_out {
            self.changes.push(Change { route: Arc::clone(route), is_left_out: true, keys: Vec::new() });
        }
        self.plan_next();
    }

    /// All of a trial are answered for, and none of them was against it.
    fn next_trial(&mut self, route: &Arc<Route>, now: Instant) {
        let Some(trouble) = self.troubles.get_mut(route) else { return };
        let State::Trial { limit, confirmed, .. } = &trouble.state else { return };
        let limit = if *confirmed { limit * 2 } else { *limit };
        if *confirmed {
            // It takes some: should it be full again, it is asked again soon.
            trouble.pauses = 0;
        }
        if limit >= OPEN {
            self.open(route);
        } else {
            self.try_with(route, limit, now);
        }
        self.plan_next();
    }

    fn try_with(&mut self, route: &Arc<Route>, limit: u32, now: Instant) {
        self.trials += 1;
        let number = self.trials;
        let Some(trouble) = self.troubles.get_mut(route) else { return };
        let was_left_out = trouble.is_left_out();
        trouble.state = State::Trial { number, limit, sent: 0, open: 0, confirmed: false, since: now };
        let keys = std::mem::take(&mut trouble.keys);
        if was_left_out || !keys.is_empty() {
            self.changes.push(Change { route: Arc::clone(route), is_left_out: false, keys });
        }
    }

    fn open(&mut self, route: &Arc<Route>) {
        let Some(trouble) = self.troubles.remove(route) else { return };
        self.changes.push(Change { route: Arc::clone(route), is_left_out: false, keys: trouble.keys });
    }

    fn plan_next(&mut self) {
        self.next = self.troubles.values().filter_map(Trouble::next).min();
    }
}

impl Trouble {
    fn is_left_out(&self) -> bool {
        match self.state {
            State::Faults(_) => false,
            State::Held { .. } => true,
            State::Trial { limit, sent, .. } => sent == limit,
        }
    }

    fn next(&self) -> Option<Instant> {
        match self.state {
            State::Faults(_) => None,
            State::Held { until } => Some(until),
            // One that is answered for late is looked at late.
            State::Trial { since, .. } => Some(since + UNUSED),
        }
    }
}

#[cfg(test)]
mod tests;
