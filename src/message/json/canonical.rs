//! Canonical JSON (RFC 8785), and JSON pointers (RFC 6901) into it, strict where two messages could
//! become one.
//!
//! RFC 8785 renders every number as an IEEE double and lets parsers pick one of several members
//! with the same name. As an identity that is dangerous: two IDs above 2^53 would be one message,
//! and one of them would be lost. So a number whose canonical form is another number is refused
//! here, and so is a repeated name.

use std::{borrow::Cow, collections::HashSet};

use serde_json::value::RawValue;

use super::number;

/// How many levels `serde_json` reads by default: it refuses the 128th.
const LEVELS: usize = 127;

/// The values that identify nothing, in their canonical form.
const EMPTY: [&[u8]; 4] = [b"null", b"\"\"", b"{}", b"[]"];

/// How much of an offending text is shown.
const SHOWN: usize = 40;

/// Why a JSON text has no canonical form, or no value at a pointer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CanonicalError {
    #[error("not JSON")]
    Syntax(#[from] serde_json::Error),
    #[error("the number {0} is not exactly representable as a double")]
    InexactNumber(String),
    #[error("the name {0:?} occurs twice in one object")]
    DuplicateName(String),
    #[error("nested more than 127 deep")]
    TooDeep,
}

/// The canonical form of a JSON text. Takes time and memory in proportion to its length.
pub(crate) fn canonical(text: &[u8]) -> Result<Vec<u8>, CanonicalError> {
    canonical_of(checked(text)?)
}

/// The canonical form of the value at a pointer; `None` if there is no value, or one that says
/// nothing: `null`, or an empty string, object or array.
pub(crate) fn canonical_at(text: &[u8], pointer: &str) -> Result<Option<Vec<u8>>, CanonicalError> {
    let mut value = checked(text)?;
    for name in pointer.split('/').skip(1) {
        match child(value, &name.replace("~1", "/").replace("~0", "~"))? {
            Some(found) => value = found,
            None => return Ok(None),
        }
    }
    let canonical = canonical_of(value)?;
    Ok(Some(canonical).filter(|value| !EMPTY.contains(&value.as_slice())))
}

/// The value that a JSON text holds, as it stands there: syntax and UTF-8 are right from here on.
fn checked(text: &[u8]) -> Result<&str, CanonicalError> {
    Ok(serde_json::from_slice::<&RawValue>(text)?.get())
}

fn canonical_of(value: &str) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::with_capacity(value.len());
    let mut tokens = Tokens(value);
    if let Some(first) = tokens.next() {
        write(first, &mut tokens, 0, &mut out)?;
    }
    Ok(out)
}

/// Writes the value that starts with `first`; `level` containers are open around it.
fn write<'a>(
    first: &'a str,
    tokens: &mut Tokens<'a>,
    level: usize,
    out: &mut Vec<u8>,
) -> Result<(), CanonicalError> {
    match first.as_bytes() {
        [b'{' | b'[', ..] if level == LEVELS => return Err(CanonicalError::TooDeep),
        [b'{', ..] => write_object(tokens, level, out)?,
        [b'[', ..] => {
            out.push(b'[');
            let mut empty = true;
            while let Some(first) = tokens.next().filter(|token| *token != "]") {
                if !std::mem::take(&mut empty) {
                    out.push(b',');
                }
                write(first, tokens, level + 1, out)?;
            }
            out.push(b']');
        }
        // Without escapes it is what RFC 8785 asks for. With them serde_json unescapes and escapes
        // as the RFC does: the short forms, and \u00xx for other control characters.
        [b'"', ..] if first.contains('\\') => serde_json::to_writer(out, &unescaped(first)?)?,
        [b'-' | b'0'..=b'9', ..] => match number::canonical(first, &mut ryu_js::Buffer::new()) {
            Some(number) => out.extend_from_slice(number.as_bytes()),
            None => return Err(CanonicalError::InexactNumber(first.chars().take(SHOWN).collect())),
        },
        _ => out.extend_from_slice(first.as_bytes()),
    }
    Ok(())
}

fn write_object(tokens: &mut Tokens<'_>, level: usize, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    let start = out.len();
    let mut members = Vec::new();
    while let Some(token) = tokens.next().filter(|token| *token != "}") {
        let from = out.len() - start;
        let name = unescaped(token)?;
        serde_json::to_writer(&mut *out, &name)?;
        out.push(b':');
        if let Some(first) = tokens.next() {
            write(first, tokens, level + 1, out)?;
        }
        members.push((name, from..out.len() - start));
    }
    // RFC 8785, section 3.2.3: in the order of the UTF-16 code units.
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    if let Some(pair) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(duplicate(&pair[0].0));
    }
    let unsorted = out.split_off(start);
    out.push(b'{');
    for (index, (_, range)) in members.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(&unsorted[range]);
    }
    out.push(b'}');
    Ok(())
}

/// The member or element that one step of a pointer leads to.
fn child<'a>(value: &'a str, name: &str) -> Result<Option<&'a str>, CanonicalError> {
    let mut tokens = Tokens(value);
    match tokens.next() {
        Some("{") => {
            let (mut names, mut found) = (HashSet::new(), None);
            while let Some(token) = tokens.next().filter(|token| *token != "}") {
                let (member, value) = (unescaped(token)?, tokens.value());
                if member == name {
                    found = value;
                }
                if let Some(again) = names.replace(member) {
                    return Err(duplicate(&again));
                }
            }
            Ok(found)
        }
        Some("[") => {
            // RFC 6901, section 4: digits only, without leading zeros.
            let plain =
                name == "0" || !name.starts_with('0') && name.bytes().all(|byte| byte.is_ascii_digit());
            let index = name.parse::<usize>().ok().filter(|_| plain);
            Ok(index.and_then(|index| std::iter::from_fn(|| tokens.value()).nth(index)))
        }
        _ => Ok(None),
    }
}

fn duplicate(name: &str) -> CanonicalError {
    CanonicalError::DuplicateName(name.chars().take(SHOWN).collect())
}

/// The text that a string token stands for; an error if it escapes half a surrogate pair.
fn unescaped(token: &str) -> Result<Cow<'_, str>, CanonicalError> {
    match token.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(plain) if !plain.contains('\\') => Ok(Cow::Borrowed(plain)),
        _ => Ok(Cow::Owned(serde_json::from_str(token)?)),
    }
}

/// The brackets and scalars of a JSON text whose syntax is right, so that commas and colons say
/// nothing more.
///
/// Not a walk over `serde_json::Value`: what that makes of numbers depends on features that any
/// crate in the build can set.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let gap = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b',' | b':');
        let start = self.0.bytes().position(|byte| !gap(&byte))?;
        let text = &self.0[start..];
        let end = match text.as_bytes() {
            [b'{' | b'}' | b'[' | b']', ..] => Some(1),
            [b'"', rest @ ..] => {
                let mut escaped = false;
                let quote = rest.iter().position(|byte| {
                    let ends = *byte == b'"' && !escaped;
                    escaped = *byte == b'\\' && !escaped;
                    ends
                });
                quote.map(|quote| quote + 2)
            }
            scalar => scalar.iter().position(|byte| gap(byte) || matches!(byte, b']' | b'}')),
        };
        let (token, rest) = text.split_at(end.unwrap_or(text.len()));
        self.0 = rest;
        Some(token)
    }
}

impl<'a> Tokens<'a> {
    /// The whole value that comes next; `None` where the container around it ends.
    fn value(&mut self) -> Option<&'a str> {
        let all = self.0;
        let mut token = self.next()?;
        let from = all.len() - self.0.len() - token.len();
        let mut level = 0_usize;
        loop {
            match token {
                "{" | "[" => level += 1,
                "}" | "]" => level = level.checked_sub(1)?,
                _ => {}
            }
            if level == 0 {
                return all.get(from..all.len() - self.0.len());
            }
            token = self.next()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(json: &str) -> String {
        String::from_utf8(canonical(json.as_bytes()).unwrap()).unwrap()
    }

    /// RFC 8785, section 3.2.2 and 3.2.3.
    #[test]
    fn rfc_8785_example() {
        let input = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        // The RFC's first number has 17 digits of which the double keeps 16; here that is refused.
        assert!(
            matches!(canonical(input.as_bytes()), Err(CanonicalError::InexactNumber(n)) if n == "333333333.33333329")
        );
        let exact = input.replace("333333333.33333329", "333333333.3333333");
        assert_eq!(
            text(&exact),
            "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
             \"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}"
        );
    }

    /// RFC 8785, section 3.2.3: names are sorted as UTF-16, where an emoji comes before U+FB33.
    #[test]
    fn rfc_8785_sorting() {
        let input = "{\"\\u20ac\":\"Euro Sign\",\"\\r\":\"Carriage Return\",\"\\ufb33\":\"Hebrew Letter Dalet With Dagesh\",\
                     \"1\":\"One\",\"\\ud83d\\ude00\":\"Emoji: Grinning Face\",\"\\u0080\":\"Control\",\
                     \"\\u00f6\":\"Latin Small Letter O With Diaeresis\"}";
        let sorted = text(input);
        let order =
            ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"].map(|name| sorted.find(name));
        assert!(order.is_sorted() && order[0].is_some(), "{sorted}");
    }

    #[test]
    fn an_inexact_number_is_refused_wherever_it_is() {
        for json in ["9007199254740993", "[0,{\"a\":[9007199254740993 ]}]", "{\"a\":9007199254740993}"] {
            let refused = canonical(json.as_bytes());
            assert!(
                matches!(refused, Err(CanonicalError::InexactNumber(n)) if n == "9007199254740993"),
                "{json}"
            );
        }
        let long = "7".repeat(100_000);
        assert!(
            matches!(canonical(long.as_bytes()), Err(CanonicalError::InexactNumber(n)) if n.len() == SHOWN)
        );
        assert_eq!(text("[1.0,1e0,10e-1]"), "[1,1,1]");
    }

    #[test]
    fn repeated_names_are_refused_at_any_depth() {
        for json in [r#"{"a":1,"a":2}"#, r#"[{"b":{"a":1,"\u0061":1}}]"#] {
            assert!(
                matches!(canonical(json.as_bytes()), Err(CanonicalError::DuplicateName(n)) if n == "a"),
                "{json}"
            );
        }
        // On the way of a pointer, before and after what it names.
        for json in [r#"{"a":1,"b":2,"a":3}"#, r#"{"b":2,"a":1,"a":1}"#] {
            assert!(
                matches!(canonical_at(json.as_bytes(), "/b"), Err(CanonicalError::DuplicateName(_))),
                "{json}"
            );
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(serde_json::from_str::<serde_json::Value>(&nested(127)).is_ok());
        assert!(serde_json::from_str::<serde_json::Value>(&nested(128)).is_err());
        assert_eq!(text(&nested(127)), nested(127));
        for depth in [128, 200_000] {
            assert!(matches!(canonical(nested(depth).as_bytes()), Err(CanonicalError::TooDeep)), "{depth}");
        }
        let objects = format!("{}1{}", "{\"a\":".repeat(128), "}".repeat(128));
        assert!(matches!(canonical(objects.as_bytes()), Err(CanonicalError::TooDeep)));
        assert_eq!(
            canonical_at(objects.as_bytes(), &"/a".repeat(128)).unwrap().as_deref(),
            Some(b"1".as_slice())
        );
    }

    #[test]
    fn white_space_and_brackets_in_strings_do_not_confuse() {
        let input = " {\t\"b\" :[ ] , \"]\\\\\" : \"}{\\\"[,:\" ,\r\n\"a\":{ }, \"é,\":[ true,{\"y\":0,\"x\":[null ]} ]} ";
        assert_eq!(
            text(input),
            "{\"]\\\\\":\"}{\\\"[,:\",\"a\":{},\"b\":[],\"é,\":[true,{\"x\":[null],\"y\":0}]}"
        );
        for (pointer, expected) in
            [("/b", ""), ("/a", ""), ("/]\\", "\"}{\\\"[,:\""), ("/é,/1/x/0", ""), ("/é,/0", "true")]
        {
            let found = canonical_at(input.as_bytes(), pointer).unwrap().unwrap_or_default();
            assert_eq!(String::from_utf8(found).unwrap(), expected, "{pointer}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["", "{", "[1,]", "01", "nul", "\"\\ud800\"", "{} {}", "\u{feff}1"] {
            assert!(canonical(text.as_bytes()).is_err(), "{text}");
        }
        assert!(canonical(b"\"\xff\"").is_err());
        assert!(canonical_at(b"{\"a\":1", "/a").is_err());
    }

    /// RFC 6901, section 5.
    #[test]
    fn rfc_6901_pointers() {
        let document =
            br#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8,"~1":9}"#;
        for (pointer, expected) in [
            ("/foo", Some("[\"bar\",\"baz\"]")),
            ("/foo/0", Some("\"bar\"")),
            ("/foo/00", None),
            ("/foo/2", None),
            ("/foo/-", None),
            ("/foo/bar", None),
            ("/", Some("0")),
            ("/a~1b", Some("1")),
            ("/c%d", Some("2")),
            ("/e^f", Some("3")),
            ("/g|h", Some("4")),
            ("/i\\j", Some("5")),
            ("/k\"l", Some("6")),
            ("/ ", Some("7")),
            ("/m~0n", Some("8")),
            ("/~01", Some("9")),
            ("/missing", None),
        ] {
            let found = canonical_at(document, pointer).unwrap();
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{pointer}");
        }
        assert!(canonical_at(document, "").unwrap().is_some());
    }

    #[test]
    fn numbers_elsewhere_do_not_matter_to_a_pointer() {
        let body = br#"{"order":{"id":"42"},"trace":1234567890123456789}"#;
        assert_eq!(canonical_at(body, "/order/id").unwrap().as_deref(), Some(b"\"42\"".as_slice()));
        assert!(canonical_at(body, "/trace").is_err());
        assert_eq!(canonical_at(br#"{"id":null}"#, "/id").unwrap(), None);
    }
}
