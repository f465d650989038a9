//! The pages that list, and those around them.

use std::time::SystemTime;

use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use lapin_idempotent::outbox::TableStatus;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use url::form_urlencoded::Serializer;

use super::html::{Html, page};
use crate::{
    parked::{reason, record},
    print::{escaped, span, utc},
    snapshot::{Row, Snapshot},
};

/// Messages on a page of a list.
const PAGE: usize = 50;
/// As many reasons as can be chosen from.
const REASONS: usize = 50;
/// As much of an ID, a reason or an error as a list has.
const CELL: usize = 200;

/// Which messages a list has.
#[derive(Debug, Default, Clone)]
pub(crate) struct Wanted {
    pub(crate) reason: String,
    pub(crate) id: String,
    pub(crate) page: usize,
}

impl Wanted {
    pub(crate) fn has(&self, row: &Row) -> bool {
        let id = row.message.raw_message_id().unwrap_or_default();
        // As it is shown, too: nobody types a control character.
        (self.reason.is_empty() || reason_shown(row) == self.reason)
            && (id.contains(&self.id) || escaped(id, usize::MAX).contains(&self.id))
    }

    fn query(&self, page: usize) -> String {
        let mut query = Serializer::new("?".to_owned());
        query.append_pair("reason", &self.reason).append_pair("id", &self.id);
        query.append_pair("page", &(page + 1).to_string()).finish()
    }
}

fn reason_shown(row: &Row) -> String {
    reason(&row.message).map_or_else(|| "-".to_owned(), |reason| escaped(reason, CELL))
}

/// A page as an answer.
pub(crate) fn answer(status: StatusCode, page: Html) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], page.into_string()).into_response()
}

pub(crate) fn refusal(status: StatusCode, text: &str) -> Response {
    let mut main = Html::default();
    main.raw("<p class=\"bad\" role=\"alert\">").text(text).raw("</p><p><a href=\"/\">To the queues</a> ");
    main.raw("<a href=\"/login\">Log in</a></p>");
    answer(status, page(status.canonical_reason().unwrap_or("Refused"), &Html::default(), &main))
}

/// The form that is in the head of every page.
pub(crate) fn session(may_change: bool) -> Html {
    let mut form = Html::default();
    if may_change {
        form.raw("<form method=\"post\" action=\"/logout\"><button class=\"plain\">Log out</button></form>");
    } else {
        form.raw("<a href=\"/login\">Log in to change</a>");
    }
    form
}

pub(crate) fn login(is_wrong: bool) -> Html {
    let mut main = Html::default();
    if is_wrong {
        main.raw("<p class=\"bad\" role=\"alert\">That is not the token.</p>");
    }
    main.raw("<form method=\"post\" action=\"/login\" class=\"card\"><label>Token ")
        .raw("<input type=\"password\" name=\"token\" required autocomplete=\"current-password\" autofocus></label>")
        .raw("<button>Log in</button><p class=\"dim\">The program told it on standard error when it started, ")
        .raw("unless it was given one.</p></form>");
    page("Log in", &Html::default(), &main)
}

/// The path of a queue.
pub(crate) fn path(queue: &str) -> String {
    format!("/queues/{}", utf8_percent_encode(queue, NON_ALPHANUMERIC))
}

/// Something that could not be looked at.
pub(crate) fn failed(error: &str) -> Html {
    let mut part = Html::default();
    part.raw("<p class=\"bad\" role=\"alert\">").text(error).raw("</p>");
    part
}

pub(crate) fn overview(
    queues: &[(&str, Result<u64, String>)],
    outbox: Option<&Result<TableStatus, String>>,
    may_change: bool,
) -> Html {
    let mut main = Html::default();
    if !queues.is_empty() {
        main.raw("<table><thead><tr><th>Queue<th class=\"number\">Messages</tr></thead><tbody>");
    }
    for (queue, count) in queues {
        main.raw("<tr><td data-name=\"Queue\"><a href=\"")
            .value(&path(queue))
            .raw("\">")
            .text(queue)
            .raw("</a>");
        match count {
            Ok(count) => main.raw("<td data-name=\"Messages\" class=\"number\">").number(*count),
            Err(error) => main.raw("<td data-name=\"Messages\">").part(&failed(error)),
        };
        main.raw("</tr>");
    }
    if !queues.is_empty() {
        main.raw("</tbody></table>");
    }
    if let Some(status) = outbox {
        main.raw("<h2>Outbox</h2>");
        match status {
            Ok(status) => {
                let oldest = status.oldest.map_or_else(|| "-".to_owned(), span);
                main.raw("<dl><dt>waiting<dd>").number(status.backlog).raw("<dt>oldest<dd>").text(&oldest);
                main.raw("<dt>parked<dd>").number(status.parked).raw("<dt>relays<dd>").number(status.relays);
                main.raw("</dl>");
            }
            Err(error) => {
                main.part(&failed(error));
            }
        }
    }
    page("Parking queues", &session(may_change), &main)
}

/// When the queue was looked at, and what of it is not here.
pub(crate) fn looked(snapshot: &Snapshot) -> Html {
    let ago = SystemTime::now().duration_since(snapshot.at).unwrap_or_default();
    let mut part = Html::default();
    part.raw("<p class=\"dim\">Looked at ").text(&utc(snapshot.at)).raw(", ").text(&span(ago)).raw(" ago: ");
    part.number(snapshot.rows.len() as u64).raw(" of ").number(snapshot.there).raw(" messages.");
    if snapshot.renewed > 0 {
        part.raw(" ").number(snapshot.renewed);
        part.raw(" went to the end of the queue, lest the broker count them out.");
    }
    part.raw("</p>");
    part
}

pub(crate) fn list(queue: &str, snapshot: &Snapshot, wanted: &Wanted, may_change: bool) -> Html {
    let rows: Vec<&Row> = snapshot.rows.iter().filter(|row| wanted.has(row)).collect();
    let pages = rows.len().div_ceil(PAGE).max(1);
    let at = wanted.page.min(pages - 1);
    let mut main = looked(snapshot);
    main.part(&filter(queue, snapshot, wanted));
    main.raw("<form method=\"post\" action=\"").value(&path(queue)).raw("/confirm\">");
    main.raw("<input type=\"hidden\" name=\"reason\" value=\"").value(&wanted.reason);
    main.raw("\"><input type=\"hidden\" name=\"id\" value=\"").value(&wanted.id).raw("\">");
    if rows.is_empty() {
        main.raw("<p>No message is here.</p>");
    } else {
        main.raw("<table class=\"messages\"><thead><tr>").raw(if may_change { "<th>" } else { "" });
        main.raw("<th>ID<th>Reason<th>Parked<th class=\"number\">Attempts<th class=\"number\">Bytes");
        main.raw("<th>Error</tr></thead><tbody>");
        for row in rows.iter().skip(at * PAGE).take(PAGE) {
            main.part(&line(queue, row, may_change));
        }
        main.raw("</tbody></table>").part(&paging(queue, wanted, at, pages));
    }
    if may_change && !rows.is_empty() {
        main.raw("<div class=\"act\"><label><input type=\"checkbox\" name=\"all\" value=\"1\"> all ");
        main.number(rows.len() as u64).raw(" that the filter shows</label>").part(&actions()).raw("</div>");
    }
    main.raw("</form>");
    page(queue, &session(may_change), &main)
}

/// What can be done about what was chosen, after another question.
pub(crate) fn actions() -> Html {
    let mut part = Html::default();
    part.raw("<button name=\"do\" value=\"unpark\">Unpark…</button>");
    part.raw("<button name=\"do\" value=\"discard\" class=\"danger\">Discard…</button>");
    part
}

fn filter(queue: &str, snapshot: &Snapshot, wanted: &Wanted) -> Html {
    let mut reasons: Vec<(String, u64)> = Vec::new();
    for row in &snapshot.rows {
        let reason = reason_shown(row);
        match reasons.iter().position(|(known, _)| *known == reason) {
            Some(at) => reasons[at].1 += 1,
            None if reasons.len() < REASONS => reasons.push((reason, 1)),
            None => {}
        }
    }
    // One that is not there any more stays chosen.
    if !wanted.reason.is_empty() && reasons.iter().all(|(reason, _)| *reason != wanted.reason) {
        reasons.push((wanted.reason.clone(), 0));
    }
    let mut form = Html::default();
    form.raw("<form method=\"get\" action=\"").value(&path(queue)).raw("\" class=\"filter\"><label>Reason ");
    form.raw("<select name=\"reason\"><option value=\"\">any</option>");
    for (reason, count) in &reasons {
        form.raw("<option value=\"").value(reason).raw("\"");
        form.raw(if *reason == wanted.reason { " selected>" } else { ">" });
        form.value(reason).raw(" (").number(*count).raw(")</option>");
    }
    form.raw("</select></label><label>ID has <input name=\"id\" value=\"").value(&wanted.id);
    form.raw("\"></label><button>Show</button></form>");
    form
}

fn line(queue: &str, row: &Row, may_change: bool) -> Html {
    let fields = record(&row.message);
    let cell = |name: &str| {
        let value = fields.iter().find(|(known, _)| *known == name).map_or(&Value::Null, |(_, value)| value);
        match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => cut(text),
            other => other.to_string(),
        }
    };
    let mut html = Html::default();
    html.raw("<tr>");
    if may_change {
        html.raw("<td class=\"pick\"><input type=\"checkbox\" name=\"key\" aria-label=\"choose\" value=\"");
        html.value(row.key.as_str()).raw("\">");
    }
    html.raw("<td data-name=\"ID\"><a href=\"").value(&path(queue)).raw("/messages/").value(row.key.as_str());
    html.raw("\">").text(&cell("id")).raw("</a>");
    html.raw("<td data-name=\"Reason\">").text(&cell("reason"));
    html.raw("<td data-name=\"Parked\">").text(&cell("parked"));
    html.raw("<td data-name=\"Attempts\" class=\"number\">").text(&cell("attempts"));
    html.raw("<td data-name=\"Bytes\" class=\"number\">").text(&cell("body_bytes"));
    html.raw("<td data-name=\"Error\">").text(&cell("error")).raw("</tr>\n");
    html
}

pub(crate) fn cut(text: &str) -> String {
    if text.chars().count() <= CELL {
        return text.to_owned();
    }
    text.chars().take(CELL).chain(['…']).collect()
}

fn paging(queue: &str, wanted: &Wanted, at: usize, pages: usize) -> Html {
    let mut nav = Html::default();
    if pages == 1 {
        return nav;
    }
    let link = |page: usize| path(queue) + &wanted.query(page);
    nav.raw("<nav>");
    if at > 0 {
        nav.raw("<a rel=\"prev\" href=\"").value(&link(at - 1)).raw("\">← Back</a> ");
    }
    nav.raw("page ").number(at as u64 + 1).raw(" of ").number(pages as u64);
    if at + 1 < pages {
        nav.raw(" <a rel=\"next\" href=\"").value(&link(at + 1)).raw("\">On →</a>");
    }
    nav.raw("</nav>");
    nav
}
