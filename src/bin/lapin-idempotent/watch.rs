//! `outbox status --watch`: an outbox, looked at again and again.

use std::time::{Duration, Instant, SystemTime};

use lapin_idempotent::{
    idempotency::StoreError,
    outbox::{Outbox, Ownership, TableStatus},
};
use ratatui::{
    crossterm::event::KeyCode,
    style::{Modifier, Style},
    text::{Line, Text},
    widgets::{Paragraph, Wrap},
};
use tokio::time::{sleep, timeout};

use crate::{
    ask::{Failure, chain},
    print::{Printer, Record, escaped, span, utc},
    screen::{self, Input, Screen},
    servers::Servers,
    signals::interrupted,
};

/// A relay whose last beat is older is taken for dead.
const LEASE: Duration = Duration::from_secs(15);
/// What does not answer for so long is away.
const ANSWER: Duration = Duration::from_secs(5);
const WRAP: Wrap = Wrap { trim: false };

/// What an outbox held at one time.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    at: Instant,
    table: TableStatus,
    ownership: Ownership,
}

impl Look {
    pub(crate) async fn take(outbox: &impl Outbox) -> Result<Self, StoreError> {
        let table = outbox.status().await?;
        let ownership = outbox.ownership(LEASE).await?;
        Ok(Self { at: Instant::now(), table, ownership })
    }

    pub(crate) fn record(&self) -> Record {
        let Self { table, ownership, .. } = self;
        let owned = ownership.lanes.iter().filter_map(|(_, owner)| *owner);
        let alive = owned.clone().filter(|owner| ownership.relays.contains(owner));
        vec![
            ("waiting", table.backlog.into()),
            ("oldest_seconds", table.oldest.map(|oldest| oldest.as_secs()).into()),
            ("oldest", table.oldest.map(span).into()),
            ("parked", table.parked.into()),
            ("relays", ownership.relays.len().into()),
            ("lanes", ownership.lanes.len().into()),
            ("lanes_owned", owned.count().into()),
            ("lanes_of_live_relays", alive.count().into()),
        ]
    }

    /// With how much it has grown by since another look, per second.
    fn compared(&self, before: Option<&Self>) -> Record {
        let growth = before.map(|before| {
            let grown = i128::from(self.table.backlog) - i128::from(before.table.backlog);
            let per_second = rate(grown, self.at.duration_since(before.at));
            (per_second * 10.0).round() / 10.0
        });
        let mut record: Record = vec![("at", utc(SystemTime::now()).into())];
        record.extend(self.record());
        record.insert(2, ("growth_per_second", growth.into()));
        record
    }
}

#[expect(clippy::cast_precision_loss, reason = "it is rounded to a tenth")]
fn rate(grown: i128, within: Duration) -> f64 {
    grown as f64 / within.as_secs_f64().max(0.001)
}

/// The last two looks, and what is wrong since.
#[derive(Debug, Default)]
struct Seen {
    before: Option<Look>,
    last: Option<Look>,
    error: Option<String>,
}

impl Seen {
    fn take(&mut self, look: Result<Look, String>, servers: &Servers) {
        match look {
            Ok(look) => {
                self.before = self.last.replace(look);
                self.error = None;
            }
            Err(error) => self.error = Some(escaped(&servers.without_secrets(&error), 1000)),
        }
    }

    fn record(&self) -> Record {
        match (&self.error, &self.last) {
            (None, Some(last)) => last.compared(self.before.as_ref()),
            (error, _) => vec![("at", utc(SystemTime::now()).into()), ("error", error.clone().into())],
        }
    }

    fn lines(&self, every: Duration) -> Text<'static> {
        let mut lines = vec![Line::from("outbox").style(Style::new().add_modifier(Modifier::REVERSED))];
        let dim = if self.error.is_some() { Style::new().add_modifier(Modifier::DIM) } else { Style::new() };
        if let Some(last) = &self.last {
            for (name, value) in last.compared(self.before.as_ref()) {
                if name == "at" || name == "oldest_seconds" {
                    continue;
                }
                let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
                let value = if value == "null" { "-".to_owned() } else { value };
                lines.push(Line::from(format!("{:<21} {value}", name.replace('_', " "))).style(dim));
            }
        }
        let end = match (&self.error, &self.last) {
            (Some(error), Some(last)) => format!("away since {}: {error}", span(last.at.elapsed())),
            (Some(error), None) => format!("away: {error}"),
            (None, None) => "looking...".to_owned(),
            (None, Some(_)) => format!("every {}; q quits", span(every)),
        };
        lines.extend([Line::default(), Line::from(end)]);
        Text::from(lines)
    }
}

/// A look after a pause, or why there is none.
async fn next(outbox: &impl Outbox, pause: Duration) -> Result<Look, String> {
    sleep(pause).await;
    match timeout(ANSWER, Look::take(outbox)).await {
        Ok(look) => look.map_err(|error| chain(&error)),
        Err(_) => Err(format!("no answer in {}", span(ANSWER))),
    }
}

/// Until it is told to end.
pub(crate) async fn run(
    outbox: &impl Outbox,
    every: Duration,
    servers: &Servers,
    printer: Printer,
) -> Result<(), Failure> {
    let mut seen = Seen::default();
    let mut look = Box::pin(next(outbox, Duration::ZERO));
    if !printer.json && screen::is_there() {
        let mut screen = Screen::open()?;
        loop {
            screen.draw(|frame| {
                frame.render_widget(Paragraph::new(seen.lines(every)).wrap(WRAP), frame.area());
            })?;
            tokio::select! {
                input = screen.input() => match input {
                    Input::End => return Ok(()),
                    Input::Key(key) if key.code == KeyCode::Char('q') => return Ok(()),
                    _ => {}
                },
                looked = &mut look => {
                    seen.take(looked, servers);
                    look = Box::pin(next(outbox, every));
                }
                () = sleep(Duration::from_secs(1)) => {}
            }
        }
    }
    let mut told = std::pin::pin!(interrupted(false));
    loop {
        tokio::select! {
            () = &mut told => return Ok(()),
            looked = &mut look => seen.take(looked, servers),
        }
        printer.one(&seen.record())?;
        printer.note("")?;
        look = Box::pin(next(outbox, every));
    }
}
