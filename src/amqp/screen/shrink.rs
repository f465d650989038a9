//! A content header that the broker made larger than a frame may be.
//!
//! It counts deliveries and deaths in headers, and puts them on top of what a publisher has filled
//! a frame with. lapin gives up the connection over such a frame, at each delivery of that message
//! again.

use super::frames::length_of;

/// What the broker adds, the least useful first. The delivery limit of a queue is compared with the
/// last one.
const ADDED: [&[u8]; 5] =
    [b"x-first-death-", b"x-last-death-", b"x-death", b"x-acquired-count", b"x-delivery-count"];

const HEADERS: u16 = 1 << 13;

/// Takes what the broker adds out of the payload of a content header, until it is shorter by `over`
/// bytes or there is nothing more to take. Gives by how many bytes it is.
pub(super) fn shrink(payload: &mut [u8], over: usize) -> usize {
    let mut taken = 0;
    for name in ADDED {
        // Of the first two there are several.
        while taken < over {
            let payload_now = payload.len() - taken;
            let Some(length) = take(&mut payload[..payload_now], name) else { break };
            taken += length;
        }
    }
    taken
}

/// Takes out the first header whose name starts like that; gives how long it was.
fn take(payload: &mut [u8], name: &[u8]) -> Option<usize> {
    let table = table(payload)?;
    let end = long(payload, table)?;
    let mut at = table + 4;
    while at < end {
        let start = at;
        let value = at + 1 + usize::from(*payload.get(at)?);
        let found = payload.get(at + 1..value)?.starts_with(name);
        at = match *payload.get(value)? {
            b'S' | b'x' | b'F' | b'A' => long(payload, value + 1)?,
            fixed => value + 1 + length_of(fixed)?,
        };
        if found && at <= end {
            let length = at - start;
            let rest = u32::try_from(end - table - 4 - length).ok()?;
            payload[table..table + 4].copy_from_slice(&rest.to_be_bytes());
            payload.copy_within(at.., start);
            return Some(length);
        }
    }
    None
}

/// Where the length of the table of headers is.
fn table(payload: &[u8]) -> Option<usize> {
    let flags = u16::from_be_bytes(payload.get(12..14)?.try_into().ok()?);
    if flags & HEADERS == 0 {
        return None;
    }
    // Before it come the type and the encoding of the content.
    let texts = (flags >> 14).count_ones();
    (0..texts).try_fold(14, |at, _| Some(at + 1 + usize::from(*payload.get(at)?)))
}

/// Where that ends which begins with its length in four bytes.
fn long(payload: &[u8], at: usize) -> Option<usize> {
    let length = u32::from_be_bytes(payload.get(at..at.checked_add(4)?)?.try_into().ok()?);
    let end = (at + 4).checked_add(usize::try_from(length).ok()?)?;
    (end <= payload.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use lapin::protocol::basic::parse_properties;

    use super::*;

    fn entry(name: &str, kind: u8, value: &[u8]) -> Vec<u8> {
        [&[u8::try_from(name.len()).unwrap()], name.as_bytes(), &[kind], value].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
    }

    /// With a content type before its headers and an ID behind them.
    fn header(entries: &[Vec<u8>]) -> Vec<u8> {
        let entries = entries.concat();
        let flags = 1_u16 << 15 | HEADERS | 1 << 7;
        [
            &[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &flags.to_be_bytes()[..],
            b"\x04text",
            &u32::try_from(entries.len()).unwrap().to_be_bytes(),
            &entries,
            b"\x02id",
        ]
        .concat()
    }

    fn names(payload: &[u8]) -> Vec<String> {
        let (rest, properties) = parse_properties(&payload[12..]).unwrap();
        assert!(rest.is_empty());
        assert_eq!(properties.message_id().as_ref().map(|id| id.as_str()), Some("id"));
        properties
            .headers()
            .iter()
            .flat_map(|headers| headers.inner().keys())
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn what_the_broker_adds_is_taken_out_in_order_and_nothing_else() {
        let count = |name| entry(name, b'l', &7_u64.to_be_bytes());
        let entries = [
            count("x-delivery-count"),
            entry("mine", b'S', &text("a stack trace")),
            entry("x-first-death-queue", b'S', &text("debits")),
            entry("x-death", b'A', &text("")),
            count("x-acquired-count"),
            entry("x-first-death-reason", b'S', &text("expired")),
            entry("nothing", b'V', b""),
        ];
        let full = header(&entries);
        let left = |over: usize| {
            let mut payload = full.clone();
            let taken = shrink(&mut payload, over);
            payload.truncate(full.len() - taken);
            (taken, names(&payload))
        };
        assert_eq!(left(0), (0, names(&full)));
        let (taken, some) = left(1);
        assert_eq!(taken, entries[2].len());
        assert_eq!(
            some,
            ["mine", "nothing", "x-acquired-count", "x-death", "x-delivery-count", "x-first-death-reason"]
        );
        let deaths: usize = [2, 3, 5].iter().map(|n| entries[*n].len()).sum();
        let (taken, counts) = left(deaths + 1);
        assert_eq!(
            (taken, counts),
            (deaths + entries[4].len(), ["mine", "nothing", "x-delivery-count"].map(str::to_owned).to_vec())
        );
        let (_, none) = left(usize::MAX);
        assert_eq!(none, ["mine", "nothing"]);
    }

    #[test]
    fn what_is_malformed_is_left_alone() {
        let full = header(&[entry("x-death", b'A', &text(""))]);
        for end in 0..full.len() {
            let mut cut = full[..end].to_vec();
            let _ = shrink(&mut cut, 1);
        }
        let mut unknown = header(&[entry("x-death", b'?', b"")]);
        assert_eq!(shrink(&mut unknown, 1), 0);
    }
}
