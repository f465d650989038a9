//! The canonical form of a JSON number, where it has one that is the same number.

use ryu_js::Buffer;

/// How RFC 8785 (section 3.2.2.3) writes a number, as ECMAScript does; `None` if the double it is
/// read as is another number.
///
/// The test is of exact decimal values, so no two numbers that differ are ever written alike. It
/// takes time in proportion to the token's length, whatever its exponent says.
pub(super) fn canonical<'a>(token: &str, buffer: &'a mut Buffer) -> Option<&'a str> {
    let double = token.parse::<f64>().ok().filter(|double| double.is_finite())?;
    let written: &str = buffer.format_finite(double);
    (written == token || Decimal::of(written) == Decimal::of(token)).then_some(written)
}

/// The exact value of a JSON number: 0.`digits` times ten to the `point`, without leading or
/// trailing zeros.
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
    use proptest::prelude::*;

    use super::*;

    fn text(token: &str) -> Option<String> {
        canonical(token, &mut Buffer::new()).map(str::to_owned)
    }

    /// RFC 8785, appendix B.
    #[test]
    fn rfc_8785_numbers() {
        for (bits, expected) in [
            (0x0000_0000_0000_0000_u64, "0"),
            (0x8000_0000_0000_0000, "0"),
            (0x0000_0000_0000_0001, "5e-324"),
            (0x8000_0000_0000_0001, "-5e-324"),
            (0x7fef_ffff_ffff_ffff, "1.7976931348623157e+308"),
            (0xffef_ffff_ffff_ffff, "-1.7976931348623157e+308"),
            (0x4340_0000_0000_0000, "9007199254740992"),
            (0xc340_0000_0000_0000, "-9007199254740992"),
            (0x4430_0000_0000_0000, "295147905179352830000"),
            (0x44b5_2d02_c7e1_4af5, "9.999999999999997e+22"),
            (0x44b5_2d02_c7e1_4af6, "1e+23"),
            (0x44b5_2d02_c7e1_4af7, "1.0000000000000001e+23"),
            (0x444b_1ae4_d6e2_ef4e, "999999999999999700000"),
            (0x444b_1ae4_d6e2_ef4f, "999999999999999900000"),
            (0x444b_1ae4_d6e2_ef50, "1e+21"),
            (0x3eb0_c6f7_a0b5_ed8c, "9.999999999999997e-7"),
            (0x3eb0_c6f7_a0b5_ed8d, "0.000001"),
            (0x41b3_de43_5555_5553, "333333333.3333332"),
            (0x41b3_de43_5555_5554, "333333333.33333325"),
            (0x41b3_de43_5555_5555, "333333333.3333333"),
            (0x41b3_de43_5555_5556, "333333333.3333334"),
            (0x41b3_de43_5555_5557, "333333333.33333343"),
            (0xbecb_f647_612f_3696, "-0.0000033333333333333333"),
            (0x4314_3ff3_c1cb_0959, "1424953923781206.2"),
        ] {
            assert_eq!(Buffer::new().format_finite(f64::from_bits(bits)), expected);
            assert_eq!(text(expected).as_deref(), Some(expected));
        }
    }

    #[test]
    fn spellings_of_one_number_are_written_alike() {
        let zeros = "0".repeat(400);
        for (token, written) in [
            ("9007199254740991", "9007199254740991"),
            ("9007199254740992", "9007199254740992"),
            ("1e21", "1e+21"),
            ("0.10", "0.1"),
            ("-1169360338846935.20", "-1169360338846935.2"),
            ("1.0", "1"),
            ("100E-2", "1"),
            ("1e0000000000000000000000000002", "100"),
            ("-0", "0"),
            ("-0.0e-7", "0"),
            ("0e99999999999999999999", "0"),
            (&format!("1{zeros}e-400"), "1"),
            (&format!("-0.{zeros}5E+401"), "-5"),
        ] {
            assert_eq!(text(token).as_deref(), Some(written), "{token}");
        }
    }

    #[test]
    fn a_number_that_would_become_another_is_refused() {
        for inexact in [
            "9007199254740993",
            "-9007199254740993",
            "1234567890123456789",
            "18446744073709551617",
            "0.10000000000000000001",
            "1e400",
            "-1e400",
            "1e-400",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            // A tie: the double is ...935.25, for which ECMAScript writes the even one of the two
            // digits.
            "-1169360338846935.3",
            // A double to the last bit, but so are its neighbours, and RFC 8785 writes
            // 18446744073709552000 for all of them.
            "18446744073709551616",
        ] {
            assert_eq!(text(inexact), None, "{inexact}");
        }
    }

    proptest! {
        #[test]
        #[allow(clippy::cast_precision_loss, reason = "the loss is what is tested")]
        fn integers_are_taken_as_they_are_or_not_at_all(n in any::<i64>(), shift in 0_u32..63) {
            let n = n >> shift;
            let written = text(&n.to_string());
            // Below 10^21, RFC 8785 writes integers in full.
            let exact = Buffer::new().format_finite(n as f64).parse() == Ok(n);
            prop_assert_eq!(written, exact.then(|| n.to_string()));
        }

        #[test]
        fn doubles_survive_any_spelling(
            double in any::<f64>().prop_filter("finite, not zero", |d| d.is_finite() && *d != 0.0),
            zeros in 0_usize..30,
        ) {
            let mut buffer = Buffer::new();
            let written = buffer.format_finite(double);
            let Decimal { negative, digits, point } = Decimal::of(written);
            let (sign, digits) = (if negative { "-" } else { "" }, String::from_utf8(digits).unwrap());
            let zeros = "0".repeat(zeros);
            let fraction = format!("{sign}0.{digits}{zeros}E{point}");
            let shifted = format!("{sign}{digits}{zeros}.0e{}", point - (digits.len() + zeros.len()) as i128);
            for spelling in [&fraction, &shifted] {
                let found = text(spelling);
                prop_assert_eq!(found.as_deref(), Some(written), "{}", spelling);
            }
            // One more digit is another number.
            let other = format!("{sign}0.{digits}{}1e{point}", "0".repeat(20 + zeros.len()));
            prop_assert_eq!(text(&other), None);
        }
    }
}
