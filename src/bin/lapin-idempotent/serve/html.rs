//! HTML in which nothing but what is written in this program is markup.

use std::fmt::Write as _;

use crate::print::is_plain;

/// A page, or a part of one, as it grows.
#[derive(Debug, Default, Clone)]
pub(crate) struct Html(String);

impl Html {
    /// Markup. A text that came from anywhere has no such lifetime.
    pub(crate) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Any text, on one line; what does not draw itself is shown as its escape.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            self.shown(c);
        }
        self
    }

    /// The same, with its lines and tabs.
    pub(crate) fn lines(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            if c == '\n' || c == '\t' { self.0.push(c) } else { self.shown(c) }
        }
        self
    }

    /// Any text between the double quotes of an attribute; what does not draw itself is left out.
    pub(crate) fn value(&mut self, text: &str) -> &mut Self {
        for c in text.chars().filter(|c| is_seen(*c)) {
            self.escaped(c);
        }
        self
    }

    pub(crate) fn number(&mut self, number: impl Into<u64>) -> &mut Self {
        let _ = write!(self.0, "{}", number.into());
        self
    }

    pub(crate) fn part(&mut self, part: &Html) -> &mut Self {
        self.0.push_str(&part.0);
        self
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }

    fn shown(&mut self, c: char) {
        if is_seen(c) {
            self.escaped(c);
        } else {
            self.0.push_str("<i>");
            c.escape_debug().for_each(|c| self.escaped(c));
            self.0.push_str("</i>");
        }
    }

    fn escaped(&mut self, c: char) {
        match c {
            '&' => self.0.push_str("&amp;"),
            '<' => self.0.push_str("&lt;"),
            '>' => self.0.push_str("&gt;"),
            '"' => self.0.push_str("&quot;"),
            '\'' => self.0.push_str("&#39;"),
            c => self.0.push(c),
        }
    }
}

/// A backslash of an escape is told from one of a text by how it is drawn.
pub(super) fn is_seen(c: char) -> bool {
    c == '\\' || is_plain(c)
}

/// A whole page. `session` is the form of the login or of its end.
pub(crate) fn page(title: &str, session: &Html, main: &Html) -> Html {
    let mut page = Html::default();
    page.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">")
        .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>")
        .text(title)
        .raw("</title><link rel=\"stylesheet\" href=\"/style.css\"></head>\n<body><header><a href=\"/\">lapin-idempotent</a>")
        .part(session)
        .raw("</header>\n<main><h1>")
        .text(title)
        .raw("</h1>\n")
        .part(main)
        .raw("</main></body></html>\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "<script>alert(1)</script>\"'&\u{1b}[2J\u{202e}\u{0}\r\n";

    #[test]
    fn no_text_is_markup() {
        let mut html = Html::default();
        html.text(HOSTILE).lines(HOSTILE).value(HOSTILE);
        let html = html.into_string().replace("<i>", "").replace("</i>", "");
        assert!(!html.contains(['<', '>', '"', '\'', '\u{1b}', '\u{202e}', '\0', '\r']), "{html}");
        assert_eq!(html.matches("&lt;script&gt;").count(), 3);
        assert_eq!(html.matches("\\u{1b}[2J\\u{202e}\\0\\r").count(), 2, "it is shown: {html}");
        assert_eq!(html.matches('\n').count(), 1, "lines are kept where they are wanted");
    }
}
