//! Distinguished names as text (RFC 4514): written from a certificate, read from a rule or a proxy's header, compared.

use x509_parser::x509::AttributeTypeAndValue;
use x509_parser::x509::X509Name;

use super::pattern::TENANT;
use super::pattern::is_tenant;

/// Longer is no name but an accident.
const TEXT_BYTES_MAX: usize = 4096;

/// RFC 4514 section 3, and two that OpenSSL writes by name.
const TYPES: [(&str, &str); 11] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

/// RFC 4514: the last part first, parted by commas.
pub(super) fn write(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+")).collect();
    parts.reverse();
    parts.join(",")
}

/// The same name as [`write()`] would have it. Others escape more, or call a type by another name.
pub(super) fn canonical(text: &str) -> Option<String> {
    let parts = read(text)?;
    let attribute = |one: &Attribute| match &one.value {
        value if one.raw.starts_with('#') => format!("{}={}", one.kind, value.to_ascii_lowercase()),
        value => format!("{}={}", one.kind, escaped(value)),
    };
    let parts = parts.iter().map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+"));
    Some(parts.collect::<Vec<_>>().join(","))
}

/// A whole subject, in which a value may be `*` (any) or `{tenant}`.
#[derive(Clone, Debug)]
pub struct Subject {
    text: String,
    parts: Vec<Vec<Attribute>>,
}

impl Subject {
    /// `None`: it is not a name as RFC 4514 writes it, or has `{tenant}` twice.
    pub fn new(text: &str) -> Option<Subject> {
        let parts = read(text)?;
        let tenants = parts.iter().flatten().filter(|one| one.raw == TENANT).count();
        (tenants <= 1).then(|| Subject { text: text.to_owned(), parts })
    }

    /// As written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Does it take the tenant from the name?
    pub fn names_tenant(&self) -> bool {
        self.parts.iter().flatten().any(|one| one.raw == TENANT)
    }

    /// Is it this name?
    pub fn matches(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Every part must be there, in this order, and no other: the tenant found, or none.
    pub(super) fn find(&self, subject: &str) -> Option<Option<String>> {
        let parts = read(subject)?;
        let mut tenant = None;
        if parts.len() != self.parts.len() {
            return None;
        }
        for (rule, part) in self.parts.iter().zip(&parts) {
            if rule.len() != part.len() {
                return None;
            }
            for (rule, one) in rule.iter().zip(part) {
                let good = match rule.raw.as_str() {
                    "*" => !one.value.is_empty(),
                    TENANT => {
                        tenant = Some(one.value.clone());
                        is_tenant(&one.value)
                    }
                    _ => rule.value == one.value,
                };
                if !good || rule.kind != one.kind {
                    return None;
                }
            }
        }
        Some(tenant)
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Attribute {
    kind: String,
    /// As written, so that `*` and `\*` differ.
    raw: String,
    value: String,
}

/// RFC 4514 section 3, with blanks allowed behind commas. No quoted strings, no empty parts.
fn read(text: &str) -> Option<Vec<Vec<Attribute>>> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.contains(char::is_control) {
        return None;
    }
    split(text, ',')?.into_iter().map(|part| split(part, '+')?.into_iter().map(read_attribute).collect()).collect()
}

/// Parts between separators that no backslash stands before.
fn split(text: &str, separator: char) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        if character == '\\' {
            characters.next()?;
        } else if character == separator {
            parts.push(text.get(start..at)?);
            start = at + 1;
        }
    }
    parts.push(text.get(start..)?);
    Some(parts)
}

fn read_attribute(text: &str) -> Option<Attribute> {
    let (kind, raw) = text.trim_start_matches(' ').split_once('=')?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    if kind.is_empty() || !kind.bytes().all(legal) {
        return None;
    }
    let known = TYPES.iter().find(|(oid, name)| kind == *oid || kind.eq_ignore_ascii_case(name));
    let kind = known.map_or(kind, |(_, name)| name).to_owned();
    if let Some(hex) = raw.strip_prefix('#') {
        let whole = !hex.is_empty() && hex.len().is_multiple_of(2) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        return whole.then(|| Attribute { kind, raw: raw.to_owned(), value: raw.to_ascii_lowercase() });
    }
    Some(Attribute { kind, raw: raw.to_owned(), value: if raw == TENANT { raw.to_owned() } else { unescaped(raw)? } })
}

/// RFC 4514 section 2.4, backwards: a backslash before a special character or two hex digits.
fn unescaped(raw: &str) -> Option<String> {
    let mut bytes = raw.bytes();
    let mut out = Vec::with_capacity(raw.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next()? {
                special @ (b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' | b' ' | b'#' | b'=' | b'*') => {
                    out.push(special)
                }
                high => out.push(digit(high)? << 4 | digit(bytes.next()?)?),
            },
            b'"' | b'+' | b';' | b'<' | b'>' => return None,
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let known = TYPES.iter().find(|(known, _)| *known == oid);
    match (known, attribute.as_str()) {
        (Some((_, name)), Ok(value)) => format!("{name}={}", escaped(value)),
        (Some((_, name)), Err(_)) => format!("{name}=#{}", super::hex(&encoded(attribute))),
        (None, _) => format!("{oid}=#{}", super::hex(&encoded(attribute))),
    }
}

/// The value in DER again, for types that have no text form.
fn encoded(attribute: &AttributeTypeAndValue<'_>) -> Vec<u8> {
    let value = attribute.attr_value();
    let tag = u8::try_from(value.header.tag().0).unwrap_or(0x1f);
    let first = (value.header.class() as u8) << 6 | u8::from(value.header.constructed()) << 5 | tag;
    let mut out = vec![first];
    let length = value.data.len();
    if let Ok(short @ 0..0x80) = u8::try_from(length) {
        out.push(short);
    } else {
        let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        out.push(0x80 | u8::try_from(bytes.len()).unwrap_or(0));
        out.extend(bytes);
    }
    out.extend_from_slice(value.data);
    out
}

/// RFC 4514 section 2.4; control characters as hex pairs, so that no name breaks a line.
fn escaped(value: &str) -> String {
    use std::fmt::Write;
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (index, character) in value.chars().enumerate() {
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            '#' if index == 0 => out.push_str("\\#"),
            ' ' if index == 0 || index == last => out.push_str("\\ "),
            character if character.is_control() => {
                let mut buffer = [0; 4];
                for byte in character.encode_utf8(&mut buffer).bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\{byte:02x}");
                }
            }
            character => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_is_read_as_what_we_write() {
        for (text, expected) in [
            ("CN=agent,O=Example", Some("CN=agent,O=Example")),
            ("cn=agent, O=Example", Some("CN=agent,O=Example")),
            (r"CN=M\C3\BCller,O=A\, B", Some(r"CN=Müller,O=A\, B")),
            ("2.5.4.3=agent", Some("CN=agent")),
            (r"street=1\+1", Some(r"STREET=1\+1")),
            ("CN=a+OU=b,C=DE", Some("CN=a+OU=b,C=DE")),
            ("1.2.3=#0C01AA", Some("1.2.3=#0c01aa")),
            (r"CN=\ a\ ,O=\#b", Some(r"CN=\ a\ ,O=\#b")),
            (r"CN=a\0ab", Some(r"CN=a\0ab")),
            ("", None),
            ("agent", None),
            ("/CN=agent/O=Example", None),
            ("CN=a,", None),
            (r#"CN="a""#, None),
            (r"CN=a\", None),
            (r"CN=a\zz", None),
            (r"CN=\ff", None),
            ("CN=a\nO=b", None),
            ("1.2.3=#0", None),
        ] {
            assert_eq!(canonical(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_rule_is_over_the_whole_subject() {
        for (rule, subject, expected) in [
            ("CN=agent,O=Example", "CN=agent,O=Example", Some(None)),
            ("CN=agent,O=Example", "CN=agent", None),
            ("CN=agent", "CN=agent,O=Example", None),
            ("CN=agent", "O=agent", None),
            ("CN=*,OU={tenant},O=Example", "CN=x,OU=contoso,O=Example", Some(Some("contoso"))),
            ("CN=*,OU={tenant},O=Example", r"CN=x\,OU=fabrikam,OU=contoso,O=Example", Some(Some("contoso"))),
            ("CN=*,OU={tenant}", "CN=x,OU=a|b", None),
            ("CN=*", "CN=", None),
            (r"CN=\*", "CN=x", None),
            (r"CN=\*", "CN=*", Some(None)),
            ("CN=*", "CN=a+OU=b", None),
        ] {
            let found = Subject::new(rule).expect(rule).find(subject);
            assert_eq!(found, expected.map(|tenant: Option<&str>| tenant.map(str::to_owned)), "{rule} {subject}");
        }
        assert!(Subject::new("CN={tenant},O={tenant}").is_none());
        assert!(Subject::new("agent.example.com").is_none());
    }
}
