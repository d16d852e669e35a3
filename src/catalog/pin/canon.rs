//! JSON in its one canonical form (RFC 8785, JCS) and the SHA-256 over it: equal definitions give equal bytes.

use serde_json::Value;

/// The canonical text. Numbers are IEEE doubles, as the RFC wants it: spellings of one number become one.
pub(super) fn canonical(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

/// The SHA-256 of the canonical text.
pub(super) fn sha256(value: &Value) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, canonical(value).as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(value) => number(value.as_f64().unwrap_or_default(), out),
        Value::String(text) => string(text, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
            // SPEC: RFC 8785 §3.2.3: by UTF-16 code units.
            sorted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (index, (name, value)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                string(name, out);
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
    }
}

/// What `serde_json` escapes, and how, is what the RFC says (§3.2.2.2).
fn string(text: &str, out: &mut String) {
    out.push_str(&Value::from(text).to_string());
}

/// The shortest digits may stand as far from the value as those with the next last digit: then the even one is meant
/// (ECMA-262, `Number::toString`, note 2).
fn even(digits: String, value: f64) -> String {
    // A double has at most 767 significant digits; after `digits` a tie is a 5 and nothing else.
    let exact = format!("{value:.770e}");
    let exact: String = exact.split('e').next().unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    let tie = exact
        .get(digits.len()..)
        .is_some_and(|rest| rest.strip_prefix('5').is_some_and(|zeros| zeros.bytes().all(|digit| digit == b'0')));
    let below = exact.get(..digits.len()).unwrap_or(&digits);
    if tie && below.ends_with(['0', '2', '4', '6', '8']) { below.to_owned() } else { digits }
}

/// SPEC: RFC 8785 §3.2.2.3: as ECMAScript's `Number::toString` writes it. Rust's shortest digits are ECMAScript's.
fn number(value: f64, out: &mut String) {
    if value == 0.0 {
        out.push('0');
        return;
    }
    if value < 0.0 {
        out.push('-');
    }
    let text = format!("{:e}", value.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = even(digits, value.abs());
    // The decimal point stands after so many digits.
    let point = exponent.parse::<i32>().unwrap_or_default() + 1;
    let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or_default());
    let (whole, fraction) =
        digits.split_at_checked(usize::try_from(point).unwrap_or_default()).unwrap_or((&digits, ""));
    match point {
        _ if count <= point && point <= 21 => {
            out.push_str(&digits);
            out.push_str(&zeros(point - count));
        }
        1..=21 => {
            out.push_str(whole);
            out.push('.');
            out.push_str(fraction);
        }
        -5..=0 => {
            out.push_str("0.");
            out.push_str(&zeros(-point));
            out.push_str(&digits);
        }
        _ => {
            let (first, rest) = digits.split_at_checked(1).unwrap_or((&digits, ""));
            out.push_str(first);
            if !rest.is_empty() {
                out.push('.');
                out.push_str(rest);
            }
            out.push('e');
            out.push(if point > 0 { '+' } else { '-' });
            out.push_str(&(point - 1).abs().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8785, appendix B: IEEE bits and the text.
    #[test]
    fn numbers_are_written_as_in_the_vectors_of_the_rfc() {
        let vectors: [(u64, &str); 25] = [
            (0x0000_0000_0000_0000, "0"),
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
            (0x3ff0_0000_0000_0000, "1"),
        ];
        for (bits, want) in vectors {
            let mut out = String::new();
            number(f64::from_bits(bits), &mut out);
            assert_eq!(out, want, "{bits:x}");
        }
    }

    /// RFC 8785 §3.2.2 and §3.2.3.
    #[test]
    fn objects_are_written_as_in_the_examples_of_the_rfc() {
        let text = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        let value: Value = serde_json::from_str(text).expect("json");
        let want = "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}";
        assert_eq!(canonical(&value), want);
        let text = "{\"\\u20ac\":\"Euro Sign\",\"\\r\":\"Carriage Return\",\"\\ufb33\":\"Hebrew Letter Dalet With Dagesh\",\"1\":\"One\",\"\\ud83d\\ude00\":\"Emoji: Grinning Face\",\"\\u0080\":\"Control\",\"\\u00f6\":\"Latin Small Letter O With Diaeresis\"}";
        let value: Value = serde_json::from_str(text).expect("json");
        let order: Vec<String> =
            canonical(&value).split("\":\"").skip(1).map(|part| part.chars().take(4).collect()).collect();
        assert_eq!(order, ["Carr", "One\"", "Cont", "Lati", "Euro", "Emoj", "Hebr"]);
    }
}
