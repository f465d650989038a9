//! A run as a picture: what was confirmed and took effect, how far effects were behind, and every
//! fault that was seen.

use std::{fmt::Write, time::Duration};

use super::{
    act::Account,
    plan::{Kind, Lane},
    tally::Sample,
};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 20.0;
const PLOT: f64 = 150.0;
const ROW: f64 = 15.0;
const TOP: f64 = 40.0;
const BETWEEN: f64 = 34.0;

const CONFIRMED: &str = "#8a8a8a";
const EFFECTS: &str = "#1a7f37";
const BEHIND: &str = "#bf6a02";

pub fn draw(account: &Account) -> String {
    let end = account.took.max(Duration::from_secs(1));
    let (progress, behind) = (TOP, TOP + PLOT + BETWEEN);
    let faults = behind + PLOT / 2.0 + BETWEEN;
    let kinds: Vec<Kind> =
        Kind::ALL.into_iter().filter(|kind| account.events.iter().any(|event| event.kind == *kind)).collect();
    let bottom = faults + number(kinds.len()) * ROW;
    let height = bottom + 40.0;
    let mut svg = String::new();
    let out = &mut svg;
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>A chaos run: confirmed, effects, lag and faults over time</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>"
    );
    let most = account.samples.iter().map(|sample| sample.confirmed).max().unwrap_or_default().max(1);
    curve(out, account, end, (progress, PLOT, most), CONFIRMED, |sample| sample.confirmed);
    curve(out, account, end, (progress, PLOT, most), EFFECTS, |sample| sample.effects);
    label(out, progress, &[("confirmed", CONFIRMED), ("took effect", EFFECTS)], most);
    let most = account.samples.iter().map(Sample::lag).max().unwrap_or_default().max(1);
    curve(out, account, end, (behind, PLOT / 2.0, most), BEHIND, Sample::lag);
    label(out, behind, &[("confirmed without effect yet", BEHIND)], most);
    for (row, kind) in kinds.iter().enumerate() {
        let y = faults + number(row) * ROW;
        let name = kind.name();
        let _ =
            writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0, y + 11.0);
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1}\" y2=\"{0:.1}\" stroke=\"#eee\"/>",
            y + ROW,
            WIDTH - RIGHT
        );
        for event in account.events.iter().filter(|event| event.kind == *kind && event.seen.is_some()) {
            let (from, to) = (x(event.at, end), x(event.until, end));
            let _ = writeln!(
                out,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\" fill-opacity=\"0.8\"/>",
                y + 2.0,
                (to - from).max(1.5),
                ROW - 4.0,
                colour(kind.lane())
            );
        }
    }
    axis(out, bottom, end);
    svg.push_str("</svg>\n");
    svg
}

fn colour(lane: Lane) -> &'static str {
    match lane {
        Lane::Publishers => "#0969da",
        Lane::Consumers => "#8250df",
        Lane::Database => BEHIND,
        Lane::Brokers => "#cf222e",
    }
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

fn x(at: Duration, end: Duration) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * (at.as_secs_f64() / end.as_secs_f64()).min(1.0)
}

fn curve(
    out: &mut String,
    account: &Account,
    end: Duration,
    (top, height, most): (f64, f64, usize),
    colour: &str,
    what: impl Fn(&Sample) -> usize,
) {
    let mut points = format!("{LEFT},{:.1}", top + height);
    for sample in &account.samples {
        let y = top + height * (1.0 - number(what(sample)) / number(most));
        let _ = write!(points, " {:.1},{y:.1}", x(sample.at, end));
    }
    let _ = writeln!(
        out,
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
    );
}

fn label(out: &mut String, top: f64, names: &[(&str, &str)], most: usize) {
    let mut left = LEFT;
    for (name, colour) in names {
        let _ = writeln!(out, "<text x=\"{left}\" y=\"{}\" fill=\"{colour}\">{name}</text>", top - 8.0);
        left += 8.0 * number(name.len());
    }
    let _ = writeln!(out, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{most}</text>", LEFT - 8.0, top + 8.0);
}

fn axis(out: &mut String, y: f64, end: Duration) {
    // At most twelve marks, in whole minutes if it is long enough.
    let unit = if end > Duration::from_secs(180) { 60 } else { 15 };
    let step = unit * (end.as_secs() / unit).div_ceil(12).max(1);
    for at in (0..=end.as_secs()).step_by(usize::try_from(step).unwrap_or(1)) {
        let text = if unit == 60 { format!("{} min", at / 60) } else { format!("{at} s") };
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
            x(Duration::from_secs(at), end),
            y + 18.0
        );
    }
}
