//! The page of one message, and those on which some are put back or discarded.

use lapin_idempotent::consumer::{LookedAt, Unparked};
use serde_json::Value;

use super::{
    html::{Html, page},
    pages::{actions, cut, failed, looked, path, session},
};
use crate::{
    parked::{headers, record, sent},
    print::{body, escaped, span},
    snapshot::{Row, Snapshot},
};

/// As much of a body as its page has.
const BODY: usize = 64 << 10;
/// As much of a header.
const HEADER: usize = 4096;
/// As many IDs as a question names.
const NAMED: usize = 20;

/// What is done about messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Unpark,
    Discard,
}

impl Action {
    pub(crate) fn named(text: &str) -> Option<Self> {
        match text {
            "unpark" => Some(Self::Unpark),
            "discard" => Some(Self::Discard),
            _ => None,
        }
    }
}

pub(crate) fn message(queue: &str, row: &Row, snapshot: &Snapshot, may_change: bool) -> Html {
    let mut main = back(queue);
    main.part(&looked(snapshot)).raw("<dl>");
    let fields = [record(&row.message), sent(&row.message)].concat();
    let has_text = |value: &Value| !value.is_null() && value != "";
    for (name, value) in fields.iter().filter(|(_, value)| has_text(value)) {
        field(&mut main, &name.replace('_', " "), value);
    }
    main.raw("<dt>redelivered<dd>").raw(if row.message.redelivered() { "yes" } else { "no" });
    main.raw("</dl><h2>Headers</h2><dl class=\"headers\">");
    if let Value::Object(headers) = headers(&row.message, Some(HEADER)) {
        for (name, value) in &headers {
            field(&mut main, name, value);
        }
    }
    main.raw("</dl><h2>Body</h2>").part(&shown_body(queue, row));
    if may_change {
        main.raw("<form method=\"post\" class=\"act\" action=\"").value(&path(queue)).raw("/confirm\">");
        main.part(&key(row)).part(&actions()).raw("</form>");
    }
    page("Parked message", &session(may_change), &main)
}

fn field(html: &mut Html, name: &str, value: &Value) {
    html.raw("<dt>").text(&cut(name)).raw("<dd>");
    match value {
        Value::String(text) => html.text(text),
        other => html.text(&other.to_string()),
    };
}

fn shown_body(queue: &str, row: &Row) -> Html {
    let bytes = row.message.body();
    let mut html = Html::default();
    html.raw("<p><a download href=\"").value(&path(queue)).raw("/messages/").value(row.key.as_str());
    html.raw("/body\">Download whole</a>, ").number(bytes.len() as u64).raw(" bytes");
    if bytes.len() > BODY {
        html.raw(". <strong>Cut</strong>: only the first ").number(BODY as u64).raw(" are here");
    }
    let shown = body(bytes, BODY);
    let (name, text) =
        shown.first().map_or(("", ""), |(name, text)| (*name, text.as_str().unwrap_or_default()));
    if name == "body_base64" {
        html.raw(". It is not UTF-8; in Base64:</p><pre class=\"base64\">").text(text);
    } else {
        // A first line break would be eaten.
        html.raw(".</p><pre>\n").lines(text);
    }
    html.raw("</pre>");
    html
}

fn key(row: &Row) -> Html {
    let mut html = Html::default();
    html.raw("<input type=\"hidden\" name=\"key\" value=\"").value(row.key.as_str()).raw("\">");
    html
}

fn back(queue: &str) -> Html {
    let mut html = Html::default();
    html.raw("<p><a href=\"").value(&path(queue)).raw("\">← ").text(queue).raw("</a></p>");
    html
}

fn title(action: Action) -> &'static str {
    match action {
        Action::Unpark => "Put back into their queues?",
        Action::Discard => "Delete for good?",
    }
}

/// The question before something is changed. `lacks_reason`: it was answered, without a reason.
pub(crate) fn confirm(queue: &str, action: Action, rows: &[&Row], lacks_reason: bool) -> Html {
    let mut main = back(queue);
    if rows.is_empty() {
        main.part(&failed("No message was chosen, or those that were are not there any more."));
        return page("Nothing is chosen", &session(true), &main);
    }
    if lacks_reason {
        main.part(&failed("A reason is needed. Nothing was discarded."));
    }
    main.raw("<p><strong>").number(rows.len() as u64);
    main.raw(if rows.len() == 1 { " message</strong> of " } else { " messages</strong> of " });
    main.text(queue).raw(match action {
        Action::Unpark => " will be put back into the queues that they were consumed from:</p><ul>",
        Action::Discard => " will be deleted, <strong>for good</strong>:</p><ul>",
    });
    for row in rows.iter().take(NAMED) {
        main.raw("<li>").text(&cut(row.message.raw_message_id().unwrap_or("(no ID)")));
    }
    if rows.len() > NAMED {
        main.raw("<li>and ").number((rows.len() - NAMED) as u64).raw(" more");
    }
    main.raw("</ul><form method=\"post\" class=\"card\" action=\"").value(&path(queue));
    main.raw(match action {
        Action::Unpark => "/unpark\">",
        Action::Discard => {
            "/discard\"><label>Reason, which is logged <input name=\"because\" required maxlength=\"1000\" autofocus></label>"
        }
    });
    let mut keys: Vec<&Row> = rows.to_vec();
    keys.sort_by_key(|row| row.key.as_str());
    keys.dedup_by_key(|row| row.key.as_str());
    for row in keys {
        main.part(&key(row));
    }
    match action {
        Action::Unpark => main.raw("<button>Unpark ").number(rows.len() as u64),
        Action::Discard => main.raw("<button class=\"danger\">Discard ").number(rows.len() as u64),
    };
    main.raw("</button><p class=\"dim\">Copies that are the same in everything go together.</p></form>");
    page(title(action), &session(true), &main)
}

fn counted(main: &mut Html, fields: &[(&str, u64)]) {
    main.raw("<dl>");
    for (name, count) in fields {
        main.raw("<dt>").text(name).raw("<dd>").number(*count);
    }
    main.raw("</dl>");
}

pub(crate) fn unparked(queue: &str, unparked: &Unparked, last_error: Option<&str>) -> Html {
    let mut main = back(queue);
    if unparked.failed > 0 {
        main.part(&failed("Some messages could not be put back; they stay parked."));
    }
    let Unparked { moved, left, failed, .. } = unparked;
    counted(&mut main, &[("put back", *moved), ("not chosen", *left), ("failed", *failed)]);
    if let Some(error) = last_error {
        main.raw("<p>The last error: ").text(&escaped(error, HEADER)).raw("</p>");
    }
    page("Put back", &session(true), &main)
}

pub(crate) fn discarded(queue: &str, looked: &LookedAt) -> Html {
    let mut main = back(queue);
    counted(&mut main, &[("discarded", looked.discarded), ("left", looked.seen - looked.discarded)]);
    page("Discarded", &session(true), &main)
}

/// Something that goes on, although nobody waits for it any more.
pub(crate) fn unfinished(queue: &str, after: std::time::Duration) -> Html {
    let mut main = back(queue);
    main.raw("<p class=\"bad\" role=\"alert\">It still goes on after ").text(&span(after));
    main.raw("; the log will tell how it ends.</p>");
    page("Not finished", &session(true), &main)
}
