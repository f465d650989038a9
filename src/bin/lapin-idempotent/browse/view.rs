//! How it looks, in a wide terminal and in a narrow one.

use std::time::{Duration, SystemTime};

use lapin_idempotent::message::HeaderValue;
use ratatui::{
    Frame,
    layout::Rect,
    style::{Modifier, Style},
    text::{Line, Text},
};

use super::{
    detail::{fit, lines, wrap},
    state::{Browser, Mode},
};
use crate::{
    parked::{ERROR, reason, text},
    print::{escaped, span},
    snapshot::Row,
};

/// From which size on list and detail are there together.
const BOTH: (u16, u16) = (60, 16);
/// As much of a text as a line could show.
const MOST: usize = 400;
/// As many lines as what is said may take.
const SAID: usize = 3;
/// The bottom line, when nothing is asked.
const KEYS: &str = "? help  / filter  space mark  u put back  d discard  r read  q quit";
const FEW_KEYS: &str = "? help  u put back  d discard  q quit";

const HELP: &str = "\
up down j k PgUp PgDn g G   move, or scroll
enter esc   a message, and back to the list
/           filter by reason or ID; esc ends it
space       mark, or not
a           mark all that are shown, or not
u           put back: the marked, or this one
d           discard likewise, FOR GOOD
r           read the queue again
q           quit

The queue is read when this begins, at r, and after a change. Meanwhile the messages are not held: others can read, put back and discard them.";

pub(super) fn draw(frame: &mut Frame<'_>, browser: &mut Browser) {
    let area = frame.area();
    let width = usize::from(area.width);
    let mut bottom = Vec::new();
    match browser.question() {
        Some(question) => wrap(&question, width, &mut bottom),
        None if !browser.said.is_empty() => {
            wrap(&browser.said, width, &mut bottom);
            bottom.truncate(SAID);
        }
        None => {}
    }
    bottom.truncate(usize::from(area.height / 2));
    bottom.push(fit(&read(browser), width));
    bottom.push(fit(if width < KEYS.len() { FEW_KEYS } else { KEYS }, width));
    let bottom_height = u16::try_from(bottom.len()).unwrap_or_default().min(area.height);
    let [top, middle, low] = ratatui::layout::Layout::vertical([
        ratatui::layout::Constraint::Length(1),
        ratatui::layout::Constraint::Min(0),
        ratatui::layout::Constraint::Length(bottom_height),
    ])
    .areas(area);
    show(frame, top, vec![fit(&title(browser), width)], Some(reversed()));
    show(frame, low, bottom, None);
    if browser.mode == Mode::Help {
        let mut help = Vec::new();
        HELP.lines().for_each(|line| wrap_words(line, width, &mut help));
        return show(frame, middle, help, None);
    }
    if area.width >= BOTH.0 && area.height >= BOTH.1 {
        let above = Rect { height: middle.height * 2 / 5, ..middle };
        let line = Rect { y: above.bottom(), height: 1, ..middle };
        let below = Rect { y: line.bottom(), height: middle.height - above.height - 1, ..middle };
        list(frame, above, browser);
        let rule = if browser.is_in_detail { "═" } else { "─" };
        show(frame, line, vec![rule.repeat(width)], None);
        detail(frame, below, browser);
    } else if browser.is_in_detail {
        detail(frame, middle, browser);
    } else {
        list(frame, middle, browser);
    }
}

fn reversed() -> Style {
    Style::new().add_modifier(Modifier::REVERSED)
}

fn show(frame: &mut Frame<'_>, area: Rect, lines: Vec<String>, style: Option<Style>) {
    let lines = lines.into_iter().map(Line::from);
    frame.render_widget(lines.collect::<Text<'_>>().style(style.unwrap_or_default()), area);
}

fn title(browser: &Browser) -> String {
    let (shown, held) = (browser.shown.len(), browser.held.len());
    let mut title = escaped(&browser.queue, MOST);
    if browser.read_at.is_some() {
        title = format!("{shown} of {} in {title}", browser.there);
        if (held as u64) < browser.there {
            title = format!("{title}, of which {held} were read");
        }
    }
    let mut front = String::new();
    if !browser.marked.is_empty() {
        front = format!("{} marked, ", browser.counted(&browser.marked).0);
    }
    if !browser.filter.is_empty() {
        front = format!("{front}filter {}, ", escaped(&browser.filter, 20));
    }
    front + &title
}

fn read(browser: &Browser) -> String {
    let ago = browser.read_at.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    // Not a clock: nobody needs it to a millisecond.
    let ago = ago.map(|ago| span(Duration::from_secs(ago.as_secs().max(1))));
    match (browser.busy, ago) {
        (Some(busy), _) => format!("{busy}..."),
        (None, Some(ago)) => format!("read {ago} ago; messages are not held"),
        (None, None) => "not read: r tries again".to_owned(),
    }
}

fn list(frame: &mut Frame<'_>, area: Rect, browser: &mut Browser) {
    let (width, height) = (usize::from(area.width), usize::from(area.height.saturating_sub(1)));
    browser.pages.0 = height.max(1);
    let mut lines = vec![Line::from(heading(width)).style(Style::new().add_modifier(Modifier::BOLD))];
    if browser.shown.is_empty() && browser.busy.is_none() && browser.read_at.is_some() {
        let none =
            if browser.held.is_empty() { "nothing is parked here" } else { "nothing is left by the filter" };
        lines.push(Line::from(fit(none, width)));
    }
    // A page at a time: the current one moves, and the list seldom.
    let first = browser.at / height.max(1) * height.max(1);
    for (index, held) in browser.shown.iter().enumerate().skip(first).take(height) {
        let row = &browser.held[*held];
        let line = Line::from(listed(row, browser.is_marked(row), width));
        lines.push(if index == browser.at { line.style(reversed()) } else { line });
    }
    frame.render_widget(Text::from(lines), area);
}

/// The widths of reason, ID and error.
fn widths(width: usize) -> (usize, usize, usize) {
    // Mark, age and attempts take these.
    let rest = width.saturating_sub(2 + 5 + 4);
    if width < usize::from(BOTH.0) {
        return (12.min(rest), rest.saturating_sub(12), 0);
    }
    let id = (rest - 20) / 2;
    (20, id, rest - 20 - id)
}

fn heading(width: usize) -> String {
    cells("", "AGE", "TRY", ["REASON", "ID", "ERROR"], width)
}

fn cells(mark: &str, age: &str, attempts: &str, texts: [&str; 3], width: usize) -> String {
    let (reason, id, error) = widths(width);
    let cell = |text: &str, width: usize| match width {
        0 => String::new(),
        width => fit(text, width - 1) + " ",
    };
    let [reason, id, error] =
        [(texts[0], reason), (texts[1], id), (texts[2], error)].map(|(text, width)| cell(text, width));
    format!("{}{}{}{reason}{id}{error}", cell(mark, 2), cell(age, 5), cell(attempts, 4))
}

fn listed(row: &Row, is_marked: bool, width: usize) -> String {
    let message = &row.message;
    let age = message.parked_at().map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    let attempts = message.header("x-idempotency-parked-attempts").and_then(HeaderValue::as_i64);
    let shown = |text: Option<&str>| escaped(text.unwrap_or("-"), MOST);
    cells(
        if is_marked { "*" } else { "" },
        &age.map_or("-".to_owned(), short),
        &attempts.map_or("-".to_owned(), |attempts| attempts.to_string()),
        [&shown(reason(message)), &shown(message.raw_message_id()), &shown(text(message, ERROR))],
        width,
    )
}

/// How long, in one unit.
fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", (seconds / 86_400).min(999)),
    }
}

fn detail(frame: &mut Frame<'_>, area: Rect, browser: &mut Browser) {
    let height = usize::from(area.height);
    browser.pages.1 = height.max(1);
    let Some(row) = browser.current() else { return };
    let lines = lines(&row.message, usize::from(area.width));
    browser.scroll = browser.scroll.min(lines.len().saturating_sub(height));
    let shown = lines.into_iter().skip(browser.scroll).take(height).collect();
    show(frame, area, shown, None);
}

/// Prose, broken between words.
fn wrap_words(text: &str, width: usize, lines: &mut Vec<String>) {
    if text.len() <= width {
        return lines.push(text.to_owned());
    }
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
}
