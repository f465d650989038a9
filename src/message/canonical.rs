//! Canonical JSON (RFC 8785), and JSON pointers (RFC 6901) into it, strict where two messages could become one.
//!
//! RFC 8785 renders every number as an IEEE double and lets parsers pick one of several members with the same name. As an
//! identity that is dangerous: two IDs above 2^53 would be one message, and one of them would be lost. So a number whose
//! canonical form is another number is refused here, and so is a repeated name.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// As deep as `serde_json` goes by default.
const DEPTH: usize = 128;

/// How much of an offending text is shown.
const SHOWN: usize = 40;

/// Why a JSON text has no canonical form, or no value at a pointer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CanonicalError {
    #[error("not JSON")]
    Syntax(#[from] serde_json::Error),
    #[error("the number {0} is not exactly representable as a double")]
    InexactNumber(String),
    #[error("the name {0:?} occurs twice in one object")]
    DuplicateName(String),
    #[error("nested more than 128 deep")]
    TooDeep,
}

/// The canonical form of a JSON text.
pub(super) fn canonical(text: &[u8]) -> Result<Vec<u8>, CanonicalError> {
    canonical_of(serde_json::from_slice(text)?)
}

/// The canonical form of the value at a pointer; `None` if there is no value, or `null`.
pub(super) fn canonical_at(text: &[u8], pointer: &str) -> Result<Option<Vec<u8>>, CanonicalError> {
    let mut value: &RawValue = serde_json::from_slice(text)?;
    for token in pointer.split('/').skip(1) {
        let token = token.replace("~1", "/").replace("~0", "~");
        let found = match value.get().as_bytes().first() {
            Some(b'{') => members(value)?.into_iter().find(|(name, _)| *name == token).map(|(_, value)| value),
            Some(b'[') => element(value, &token)?,
            _ => None,
        };
        match found {
            Some(found) => value = found,
            None => return Ok(None),
        }
    }
    if value.get() == "null" { Ok(None) } else { canonical_of(value).map(Some) }
}

fn canonical_of(value: &RawValue) -> Result<Vec<u8>, CanonicalError> {
    let mut out = Vec::with_capacity(value.get().len());
    write(value, 0, &mut out)?;
    Ok(out)
}

fn write(value: &RawValue, depth: usize, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    if depth >= DEPTH {
        return Err(CanonicalError::TooDeep);
    }
    let text = value.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let mut separator = b'{';
            for (name, value) in members(value)? {
                out.push(separator);
                serde_json::to_writer(&mut *out, &name)?;
                out.push(b':');
                write(value, depth + 1, out)?;
                separator = b',';
            }
            if separator == b'{' {
                out.push(b'{');
            }
            out.push(b'}');
        }
        Some(b'[') => {
            out.push(b'[');
            for (index, value) in serde_json::from_str::<Vec<&RawValue>>(text)?.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(value, depth + 1, out)?;
            }
            out.push(b']');
        }
        // RFC 8785 escapes strings as serde_json does: the short forms, and \u00xx for other control characters.
        Some(b'"') => serde_json::to_writer(out, &serde_json::from_str::<String>(text)?)?,
        Some(b'-' | b'0'..=b'9') => write_number(text, out)?,
        _ => out.extend_from_slice(text.as_bytes()),
    }
    Ok(())
}

/// The members of an object in the order of RFC 8785: by the UTF-16 code units of their names.
fn members(object: &RawValue) -> Result<Vec<(String, &RawValue)>, CanonicalError> {
    let Members(mut members) = serde_json::from_str(object.get())?;
    members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
    match members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(CanonicalError::DuplicateName(pair[0].0.chars().take(SHOWN).collect())),
        None => Ok(members),
    }
}

/// RFC 6901: an index is `0` or has no leading zero.
fn element<'a>(array: &'a RawValue, token: &str) -> Result<Option<&'a RawValue>, CanonicalError> {
    let plain = token == "0" || (!token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit()));
    let Some(index) = token.parse::<usize>().ok().filter(|_| plain) else { return Ok(None) };
    Ok(serde_json::from_str::<Vec<&RawValue>>(array.get())?.get(index).copied())
}

/// An object's members as they stand in the text, repeated names included.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

fn write_number(token: &str, out: &mut Vec<u8>) -> Result<(), CanonicalError> {
    let mut buffer = ryu_js::Buffer::new();
    let rendered = match token.parse::<f64>() {
        Ok(number) if number.is_finite() => buffer.format_finite(number),
        _ => "",
    };
    if rendered.is_empty() || Decimal::of(token) != Decimal::of(rendered) {
        return Err(CanonicalError::InexactNumber(token.chars().take(SHOWN).collect()));
    }
    out.extend_from_slice(rendered.as_bytes());
    Ok(())
}

/// The exact value of a JSON number: 0.`digits` times ten to the `point`, without leading or trailing zeros.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    point: i128,
}

impl Decimal {
    fn of(token: &str) -> Self {
        let (negative, token) = token.strip_prefix('-').map_or((false, token), |rest| (true, rest));
        let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        // An exponent beyond 64 bits belongs to zero, or to a number that is no finite double.
        let exponent = i128::from(exponent.parse::<i64>().unwrap_or(i64::MAX));
        let all = || whole.bytes().chain(fraction.bytes());
        let leading = all().take_while(|digit| *digit == b'0').count();
        let mut digits: Vec<u8> = all().skip(leading).collect();
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        if digits.is_empty() {
            return Self { negative: false, digits, point: 0 };
        }
        Self { negative, digits, point: whole.len() as i128 - leading as i128 + exponent }
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
        assert!(matches!(canonical(input.as_bytes()), Err(CanonicalError::InexactNumber(n)) if n == "333333333.33333329"));
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
        let order = ["Carriage", "One", "Control", "Latin", "Euro", "Emoji", "Hebrew"].map(|name| sorted.find(name));
        assert!(order.is_sorted() && order[0].is_some(), "{sorted}");
    }

    /// RFC 8785, appendix B.
    #[test]
    fn rfc_8785_numbers() {
        for (bits, expected) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5557, "333333333.33333343"),
        ] {
            assert_eq!(ryu_js::Buffer::new().format_finite(f64::from_bits(bits)), expected);
            assert_eq!(text(expected), expected);
        }
    }

    #[test]
    fn a_number_that_would_become_another_is_refused() {
        for exact in ["9007199254740991", "9007199254740992", "1e21", "0.1", "1.0", "1e2", "-0", "0e999", "0.10"] {
            assert!(canonical(exact.as_bytes()).is_ok(), "{exact}");
        }
        for inexact in [
            "9007199254740993",
            "1234567890123456789",
            "18446744073709551617",
            "0.10000000000000000001",
            "1e400",
            "-1e400",
            "1e-400",
            "1e99999999999999999999",
        ] {
            assert!(matches!(canonical(inexact.as_bytes()), Err(CanonicalError::InexactNumber(_))), "{inexact}");
        }
        assert_eq!(text("[1.0,1e0,10e-1]"), "[1,1,1]");
    }

    #[test]
    fn repeated_names_are_refused_at_any_depth() {
        for json in [r#"{"a":1,"a":2}"#, r#"[{"b":{"a":1,"\u0061":1}}]"#] {
            assert!(matches!(canonical(json.as_bytes()), Err(CanonicalError::DuplicateName(n)) if n == "a"), "{json}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(canonical(nested(127).as_bytes()).is_ok());
        assert!(matches!(canonical(nested(200_000).as_bytes()), Err(CanonicalError::TooDeep)));
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in ["", "{", "[1,]", "01", "nul", "\"\\ud800\"", "{} {}", "\u{feff}1"] {
            assert!(canonical(text.as_bytes()).is_err(), "{text}");
        }
        assert!(canonical(b"\"\xff\"").is_err());
    }

    /// RFC 6901, section 5.
    #[test]
    fn rfc_6901_pointers() {
        let document = br#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
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
