//! What lapin cannot read without harm is made readable, at the same length.
//!
//! Any publisher chooses these bytes, and the broker hands them on as they are. lapin parses
//! tables recursively, so that one nested some thousand deep overflows the stack of its thread and
//! ends the process; and it gives up the connection over a short string that is not UTF-8. Both
//! would come again with the next delivery.

/// How deep tables and lists are left as such. The publisher's limit is 16; others have no use for
/// more than a few.
pub(super) const DEPTH: usize = 64;

/// For each byte of a short string that belongs to no character: SUBSTITUTE. No message ID may hold
/// it, so that what had another ID is not taken for this one.
const SUBSTITUTE: u8 = 0x1a;

const BASIC: u16 = 60;

/// What was changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Tables and lists that became byte arrays of what they are made of.
    pub(super) tables: usize,
    /// Short strings that were not UTF-8.
    pub(super) texts: usize,
}

/// Makes the payload of a content header readable.
pub(super) fn content_header(payload: &mut [u8]) -> Changed {
    let mut walk = Walk::new(payload);
    // What is malformed is left to lapin, which reads no further than this does.
    let _ = walk.properties();
    walk.changed
}

/// Makes the payload of a method readable: of those that carry what a publisher chose, or a text
/// that a broker cut short.
pub(super) fn method(payload: &mut [u8]) -> Changed {
    let mut walk = Walk::new(payload);
    let _ = walk.method();
    walk.changed
}

/// The largest frame that the broker offers, if this is the method by which it does
/// (connection.tune).
pub(super) fn tuned(payload: &[u8]) -> Option<u32> {
    let [0, 10, 0, 30, _, _, frame_max @ ..] = payload else { return None };
    Some(u32::from_be_bytes(frame_max.get(..4)?.try_into().ok()?))
}

struct Walk<'a> {
    bytes: &'a mut [u8],
    at: usize,
    changed: Changed,
}

impl<'a> Walk<'a> {
    fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0, changed: Changed::default() }
    }

    fn method(&mut self) -> Option<()> {
        match (self.u16()?, self.u16()?) {
            // connection.close and channel.close: a code and its text.
            (10, 50) | (20, 40) => self.skip(2)?,
            // return: a code, its text, and the route.
            (BASIC, 50) => {
                self.skip(2)?;
                self.short()?;
                self.short()?;
            }
            // deliver: the subscription, the delivery, and the route.
            (BASIC, 60) => {
                self.short()?;
                self.skip(9)?;
                self.short()?;
            }
            // get-ok: the delivery, and the route.
            (BASIC, 71) => {
                self.skip(9)?;
                self.short()?;
            }
            _ => return None,
        }
        self.short()
    }

    fn properties(&mut self) -> Option<()> {
        // The class, its weight, and the length of the body.
        self.skip(12)?;
        let flags = self.u16()?;
        for flag in (2..16).rev().filter(|flag| flags & 1 << flag != 0) {
            match flag {
                13 => self.table()?,
                // The delivery mode and the priority.
                12 | 11 => self.skip(1)?,
                // The timestamp.
                6 => self.skip(8)?,
                _ => self.short()?,
            }
        }
        Some(())
    }

    fn table(&mut self) -> Option<()> {
        // Where each open table or list ends, and whether it is a table: its members have names.
        let mut open = vec![(self.long()?, true)];
        while let Some(&(end, named)) = open.last() {
            if self.at == end {
                open.pop();
                continue;
            }
            if named {
                self.short()?;
            }
            let kind = self.at;
            match self.byte()? {
                b'F' | b'A' if open.len() == DEPTH => {
                    self.bytes[kind] = b'x';
                    self.changed.tables += 1;
                    self.at = self.long()?;
                }
                nested @ (b'F' | b'A') => {
                    let end = self.long()?;
                    open.push((end, nested == b'F'));
                }
                b'S' | b'x' => self.at = self.long()?,
                fixed => self.skip(length_of(fixed)?)?,
            }
            // What it holds may not end behind itself.
            if self.at > end || open.last().is_some_and(|&(inner, _)| inner > end) {
                return None;
            }
        }
        Some(())
    }

    /// The end of what begins with its length in four bytes.
    fn long(&mut self) -> Option<usize> {
        let length = [self.byte()?, self.byte()?, self.byte()?, self.byte()?];
        let end = self.at.checked_add(usize::try_from(u32::from_be_bytes(length)).ok()?)?;
        (end <= self.bytes.len()).then_some(end)
    }

    fn short(&mut self) -> Option<()> {
        let length = usize::from(self.byte()?);
        let text = self.bytes.get_mut(self.at..self.at + length)?;
        self.at += length;
        let mut rest = text;
        let mut readable = true;
        while let Err(error) = std::str::from_utf8(rest) {
            let bad = error.valid_up_to();
            let end = error.error_len().map_or(rest.len(), |length| bad + length);
            rest[bad..end].fill(SUBSTITUTE);
            rest = &mut rest[end..];
            readable = false;
        }
        self.changed.texts += usize::from(!readable);
        Some(())
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.byte()?, self.byte()?]))
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.at += bytes;
        (self.at <= self.bytes.len()).then_some(())
    }
}

/// How many bytes a value of this kind takes, if that does not depend on the value.
pub(super) fn length_of(kind: u8) -> Option<usize> {
    Some(match kind {
        b'V' => 0,
        b't' | b'b' | b'B' => 1,
        b's' | b'U' | b'u' => 2,
        b'I' | b'i' | b'f' => 4,
        b'D' => 5,
        b'L' | b'l' | b'd' | b'T' => 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use lapin::{
        protocol::basic::parse_properties,
        types::{AMQPValue, FieldTable},
    };

    use super::*;

    const HEADERS: u16 = 1 << 13;
    const MESSAGE_ID: u16 = 1 << 7;

    fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        payload.extend(flags.to_be_bytes());
        payload.extend(properties);
        payload
    }

    fn long(content: &[u8]) -> Vec<u8> {
        let mut long = u32::try_from(content.len()).unwrap().to_be_bytes().to_vec();
        long.extend(content);
        long
    }

    /// A table that holds `levels` further ones, or lists, one in the other.
    fn nested(levels: usize, kind: u8) -> Vec<u8> {
        // From the inside out it would take time with the square of the levels.
        let each = if kind == b'F' { 6 } else { 5 };
        let mut table = long(&vec![0; if levels == 0 { 0 } else { 6 + each * (levels - 1) }]);
        let mut at = 4;
        for level in (0..levels).rev() {
            let named = level == levels - 1 || kind == b'F';
            at += usize::from(named);
            table[at] = kind;
            let inner = u32::try_from(each * level).unwrap().to_be_bytes();
            table[at + 1..at + 5].copy_from_slice(&inner);
            at += 5;
        }
        table
    }

    fn depth(table: &FieldTable) -> usize {
        table.inner().values().map(value_depth).max().unwrap_or_default()
    }

    fn value_depth(value: &AMQPValue) -> usize {
        match value {
            AMQPValue::FieldTable(table) => 1 + depth(table),
            AMQPValue::FieldArray(list) => {
                1 + list.as_slice().iter().map(value_depth).max().unwrap_or_default()
            }
            _ => 0,
        }
    }

    fn parsed(payload: &[u8]) -> lapin::BasicProperties {
        let (rest, properties) = parse_properties(&payload[12..]).unwrap();
        assert!(rest.is_empty());
        properties
    }

    #[test]
    fn deepest_that_a_frame_holds_is_cut_and_nothing_of_it_lost() {
        for (kind, levels) in [(b'F', 21_800), (b'A', 26_100)] {
            let table = nested(levels, kind);
            assert!((130_000..131_060).contains(&table.len()), "{}", table.len());
            let mut payload = header(HEADERS, &table);
            let before = payload.clone();
            assert_eq!(content_header(&mut payload), Changed { tables: 1, texts: 0 });
            let changed: Vec<_> = (0..before.len()).filter(|&at| before[at] != payload[at]).collect();
            assert!(matches!(changed[..], [at] if (before[at], payload[at]) == (kind, b'x')));
            assert_eq!(depth(parsed(&payload).headers().as_ref().unwrap()), DEPTH - 1);
        }
    }

    #[test]
    fn what_is_not_too_deep_is_left_as_it_is() {
        for kind in [b'F', b'A'] {
            let mut payload = header(HEADERS, &nested(DEPTH - 1, kind));
            let before = payload.clone();
            assert_eq!(content_header(&mut payload), Changed::default());
            assert_eq!(payload, before);
            let mut payload = header(HEADERS, &nested(DEPTH, kind));
            assert_eq!(content_header(&mut payload).tables, 1);
        }
    }

    #[test]
    fn each_type_is_passed_over_at_its_length() {
        let mut members = Vec::new();
        for (kind, length) in b"tbBsUuIifLldTDV".iter().zip([1, 1, 1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8, 5, 0]) {
            members.extend([1, b'a' + length, *kind]);
            members.extend(vec![0; usize::from(length)]);
        }
        for kind in b"Sx" {
            members.extend([1, *kind, *kind]);
            members.extend(long(b"\xff\xfe"));
        }
        // One too deep at the end is found only after all before it.
        let deep = nested(DEPTH, b'F');
        members.extend([1, b'z', b'F']);
        members.extend(deep);
        let mut payload = header(HEADERS, &long(&members));
        assert_eq!(content_header(&mut payload), Changed { tables: 1, texts: 0 });
        assert!(parsed(&payload).headers().as_ref().unwrap().inner().len() > 8);
    }

    #[test]
    fn texts_that_are_not_utf8_become_readable_and_no_message_id() {
        let all = HEADERS | MESSAGE_ID | 1 << 15 | 1 << 6 | 1 << 12 | 1 << 2;
        let mut properties = vec![2, 0xc3, 0xa9];
        properties.extend(long(&[2, b'h', 0xff, b'V']));
        properties.push(2);
        properties.extend(b"\x06a\xff\xfe\xe2\x82b");
        properties.extend([0; 8]);
        properties.extend([1, 0x80]);
        let mut payload = header(all, &properties);
        assert_eq!(content_header(&mut payload), Changed { tables: 0, texts: 3 });
        let parsed = parsed(&payload);
        assert_eq!(parsed.content_type().as_ref().unwrap().as_str(), "é");
        assert_eq!(parsed.message_id().as_ref().unwrap().as_str(), "a\x1a\x1a\x1a\x1ab");
        assert!(parsed.headers().as_ref().unwrap().inner().contains_key("h\x1a"));
    }

    #[test]
    fn routes_and_texts_of_methods_become_readable() {
        for before in [
            b"\0\x0a\0\x32\x01\x94\x02\xc3\xc3\0\0\0\0".to_vec(),
            b"\0\x14\0\x28\x01\x94\x02\xc3\xc3\0\0\0\0".to_vec(),
            b"\0\x3c\0\x32\x01\x38\x01t\x01e\x02\xff\xff".to_vec(),
            b"\0\x3c\0\x3c\x01t\0\0\0\0\0\0\0\x01\0\x01e\x02\xff\xff".to_vec(),
            b"\0\x3c\0\x47\0\0\0\0\0\0\0\x01\0\x01e\x02\xff\xff\0\0\0\x01".to_vec(),
        ] {
            let mut payload = before.clone();
            assert_eq!(method(&mut payload), Changed { tables: 0, texts: 1 }, "{before:?}");
            assert!(lapin::protocol::parse_class(&before[..]).is_err(), "{before:?}");
            assert!(lapin::protocol::parse_class(&payload[..]).is_ok(), "{payload:?}");
        }
        let mut other = b"\0\x3c\0\x15\x01\xff".to_vec();
        assert_eq!(method(&mut other), Changed::default());
    }

    /// Whatever the bytes: no panic, the same length, and nothing that is left for lapin is too
    /// deep.
    #[test]
    fn no_bytes_overflow_the_parser_or_change_their_length() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut payload = header(HEADERS, &nested(random.usize(0..200), *random.choice(b"FA").unwrap()));
            for _ in 0..random.usize(0..6) {
                let at = random.usize(12..payload.len());
                payload[at] = *random.choice(b"FAxS\0\x01\xff\x40").unwrap();
            }
            payload.truncate(random.usize(14..=payload.len()));
            let length = payload.len();
            content_header(&mut payload);
            assert_eq!(payload.len(), length);
            if let Ok((_, properties)) = parse_properties(&payload[12..]) {
                assert!(properties.headers().as_ref().is_none_or(|headers| depth(headers) < DEPTH));
            }
        }
    }
}
