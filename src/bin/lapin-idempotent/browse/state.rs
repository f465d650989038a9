//! What is shown, what is marked, and what a key does about it.

use std::{collections::HashSet, time::SystemTime};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::{
    parked::reason,
    print::escaped,
    snapshot::{Key, Row, Snapshot},
};

/// As long as a reason may get.
const REASON: usize = 200;

/// A parking queue, as it is looked at.
#[derive(Debug)]
pub(crate) struct Browser {
    pub(crate) queue: String,
    pub(crate) held: Vec<Row>,
    /// How many messages were in the queue.
    pub(crate) there: u64,
    pub(crate) read_at: Option<SystemTime>,
    pub(crate) marked: HashSet<Key>,
    pub(crate) filter: String,
    /// Of the messages that are held, those that the filter lets through.
    pub(crate) shown: Vec<usize>,
    /// Of those that are shown.
    pub(crate) at: usize,
    pub(crate) is_in_detail: bool,
    pub(crate) scroll: usize,
    pub(crate) mode: Mode,
    /// What is being done with the broker.
    pub(crate) busy: Option<&'static str>,
    /// What came of it, or what is wrong.
    pub(crate) said: String,
    /// How far a page goes, in the list and in the detail; as it was drawn.
    pub(crate) pages: (usize, usize),
}

/// What keys are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    Look,
    Help,
    Filter,
    /// Why these are to be discarded.
    Reason(HashSet<Key>, String),
    Sure(Change),
}

/// What is to be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Unpark(HashSet<Key>),
    Discard(HashSet<Key>, String),
}

/// What a key leads to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Todo {
    Nothing,
    Read,
    Change(Change),
    Quit,
}

impl Browser {
    pub(crate) fn new(queue: &str) -> Self {
        Self {
            queue: queue.to_owned(),
            held: Vec::new(),
            there: 0,
            read_at: None,
            marked: HashSet::new(),
            filter: String::new(),
            shown: Vec::new(),
            at: 0,
            is_in_detail: false,
            scroll: 0,
            mode: Mode::Look,
            busy: None,
            said: String::new(),
            pages: (1, 1),
        }
    }

    pub(crate) fn current(&self) -> Option<&Row> {
        self.shown.get(self.at).map(|index| &self.held[*index])
    }

    pub(crate) fn is_marked(&self, row: &Row) -> bool {
        self.marked.contains(&row.key)
    }

    /// How many messages have one of these keys, and how many of them are not shown.
    pub(crate) fn counted(&self, keys: &HashSet<Key>) -> (usize, usize) {
        let has = |row: &Row| keys.contains(&row.key);
        let all = self.held.iter().filter(|row| has(row)).count();
        (all, all - self.shown.iter().filter(|index| has(&self.held[**index])).count())
    }

    /// The same message stays the current one, if it is still there.
    pub(crate) fn take(&mut self, snapshot: Snapshot) {
        let current = self.current().map(|row| row.key.clone());
        self.held = snapshot.rows;
        self.there = snapshot.there;
        self.read_at = Some(snapshot.at);
        let there: HashSet<&Key> = self.held.iter().map(|row| &row.key).collect();
        self.marked.retain(|key| there.contains(key));
        self.filter(current.as_ref());
    }

    fn filter(&mut self, current: Option<&Key>) {
        let wanted = self.filter.to_lowercase();
        let has = |text: Option<&str>| text.is_some_and(|text| text.to_lowercase().contains(&wanted));
        let is_shown =
            |row: &Row| wanted.is_empty() || has(row.message.raw_message_id()) || has(reason(&row.message));
        self.shown = (0..self.held.len()).filter(|index| is_shown(&self.held[*index])).collect();
        let same = self.shown.iter().position(|index| Some(&self.held[*index].key) == current);
        if same.is_none() {
            self.scroll = 0;
        }
        self.at = same.unwrap_or(self.at.min(self.shown.len().saturating_sub(1)));
    }

    pub(crate) fn pressed(&mut self, key: KeyEvent) -> Todo {
        if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) {
            return Todo::Nothing;
        }
        match std::mem::replace(&mut self.mode, Mode::Look) {
            Mode::Look => return self.look(key.code),
            Mode::Help => {}
            Mode::Filter => self.typed_filter(key.code),
            Mode::Reason(keys, because) => self.mode = typed_reason(keys, because, key.code),
            Mode::Sure(change) => {
                if key.code == KeyCode::Char('y') {
                    return Todo::Change(change);
                }
                "nothing was changed".clone_into(&mut self.said);
            }
        }
        Todo::Nothing
    }

    /// A text goes where one is typed, but for its control characters: it neither answers nor asks.
    pub(crate) fn pasted(&mut self, text: &str) {
        if !matches!(self.mode, Mode::Filter | Mode::Reason(..)) {
            "what was pasted was not taken: press / first, to filter by it".clone_into(&mut self.said);
            return;
        }
        for c in text.chars().filter(|c| !c.is_control()) {
            self.pressed(KeyEvent::from(KeyCode::Char(c)));
        }
    }

    fn look(&mut self, key: KeyCode) -> Todo {
        let (list, detail) = self.pages;
        match key {
            KeyCode::Char('q') => return Todo::Quit,
            KeyCode::Char('?') => self.mode = Mode::Help,
            KeyCode::Enter => self.is_in_detail = !self.shown.is_empty(),
            KeyCode::Esc if self.is_in_detail => self.is_in_detail = false,
            KeyCode::Esc => self.filter_by(String::new()),
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(if self.is_in_detail { signed(detail) } else { signed(list) }),
            KeyCode::PageUp => self.step(if self.is_in_detail { -signed(detail) } else { -signed(list) }),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::Char('/') => {
                self.is_in_detail = false;
                self.mode = Mode::Filter;
            }
            KeyCode::Char(' ') => {
                self.mark();
                if !self.is_in_detail {
                    self.step(1);
                }
            }
            KeyCode::Char('a') => self.mark_all(),
            KeyCode::Char('r' | 'u' | 'd') if self.busy.is_some() => {
                "wait until the broker has answered".clone_into(&mut self.said);
            }
            KeyCode::Char('r') => return Todo::Read,
            KeyCode::Char('u') => {
                if let Some(keys) = self.chosen() {
                    self.mode = Mode::Sure(Change::Unpark(keys));
                }
            }
            KeyCode::Char('d') => {
                if let Some(keys) = self.chosen() {
                    self.mode = Mode::Reason(keys, String::new());
                }
            }
            _ => {}
        }
        Todo::Nothing
    }

    fn typed_filter(&mut self, key: KeyCode) {
        self.mode = Mode::Filter;
        let mut filter = self.filter.clone();
        match key {
            KeyCode::Enter => self.mode = Mode::Look,
            KeyCode::Esc => {
                self.mode = Mode::Look;
                filter.clear();
            }
            KeyCode::Backspace => drop(filter.pop()),
            KeyCode::Char(c) => filter.push(c),
            _ => {}
        }
        self.filter_by(filter);
    }

    fn filter_by(&mut self, filter: String) {
        let current = self.current().map(|row| row.key.clone());
        self.filter = filter;
        self.filter(current.as_ref());
    }

    fn step(&mut self, by: isize) {
        if self.is_in_detail {
            // Where it ends is known when it is drawn.
            self.scroll = self.scroll.saturating_add_signed(by);
            return;
        }
        let last = self.shown.len().saturating_sub(1);
        let to = self.at.saturating_add_signed(by).min(last);
        if to != self.at {
            (self.at, self.scroll) = (to, 0);
        }
    }

    fn mark(&mut self) {
        let Some(key) = self.current().map(|row| row.key.clone()) else { return };
        if !self.marked.remove(&key) {
            self.marked.insert(key);
        }
    }

    /// All that are shown; once more, none of them.
    fn mark_all(&mut self) {
        let keys: Vec<Key> = self.shown.iter().map(|index| self.held[*index].key.clone()).collect();
        if keys.iter().all(|key| self.marked.contains(key)) {
            for key in &keys {
                self.marked.remove(key);
            }
        } else {
            self.marked.extend(keys);
        }
    }

    /// What is marked, or else the current one.
    fn chosen(&mut self) -> Option<HashSet<Key>> {
        let current = || self.current().map(|row| HashSet::from([row.key.clone()]));
        let chosen = if self.marked.is_empty() { current() } else { Some(self.marked.clone()) };
        if chosen.is_none() {
            "no message is there".clone_into(&mut self.said);
        }
        chosen
    }

    /// The question of the mode.
    pub(crate) fn question(&self) -> Option<String> {
        let counted = |keys: &HashSet<Key>| {
            let (all, hidden) = self.counted(keys);
            let messages = if all == 1 { "1 message".to_owned() } else { format!("{all} messages") };
            if hidden == 0 { messages } else { format!("{messages}, {hidden} of them not shown,") }
        };
        match &self.mode {
            Mode::Look | Mode::Help => None,
            Mode::Filter => Some(format!("filter by reason or ID: {}_", escaped(&self.filter, REASON))),
            Mode::Reason(keys, because) => {
                Some(format!("why discard {}? {}_", counted(keys), escaped(because, REASON)))
            }
            Mode::Sure(Change::Unpark(keys)) => Some(format!("put back {}? y/n", counted(keys))),
            Mode::Sure(Change::Discard(keys, because)) => {
                let because = escaped(because, REASON);
                Some(format!("DELETE {} for good, because \"{because}\"? y/n", counted(keys)))
            }
        }
    }
}

fn typed_reason(keys: HashSet<Key>, mut because: String, key: KeyCode) -> Mode {
    match key {
        KeyCode::Esc => return Mode::Look,
        KeyCode::Enter if !because.trim().is_empty() => {
            return Mode::Sure(Change::Discard(keys, because.trim().to_owned()));
        }
        KeyCode::Backspace => drop(because.pop()),
        KeyCode::Char(c) if because.len() < REASON => because.push(c),
        _ => {}
    }
    Mode::Reason(keys, because)
}

fn signed(page: usize) -> isize {
    isize::try_from(page).unwrap_or(isize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasted_text_is_typed_or_nothing() {
        let mut browser = Browser::new("q");
        browser.pasted("auy");
        assert_eq!((&browser.mode, browser.filter.as_str()), (&Mode::Look, ""));
        let sure = Mode::Sure(Change::Unpark(HashSet::new()));
        browser.mode = sure.clone();
        browser.pasted("y");
        assert_eq!(browser.mode, sure);
        browser.mode = Mode::Filter;
        browser.pasted("m\u{1b}1\r\nq");
        assert_eq!((&browser.mode, browser.filter.as_str()), (&Mode::Filter, "m1q"));
    }
}
