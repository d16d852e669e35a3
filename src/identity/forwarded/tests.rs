//! What a proxy's headers are read as, and from whom.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::SanType;

use super::*;

const HASH: &str = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688";

pub(in crate::identity) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("IA5"))
}

pub(in crate::identity) fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().expect("IA5"))
}

/// A certificate with these names in DER, and what Envoy writes of it with `cert`, `subject`, `uri` and `dns`.
pub(in crate::identity) fn shown(names: &[SanType]) -> (Vec<u8>, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "one");
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    params.subject_alt_names = names.to_vec();
    let der = params.self_signed(&key).expect("a certificate").der().to_vec();
    let mut text = format!("By=spiffe://p/gateway;Hash={};Cert=\"{}\";Subject=\"CN=one\"", hash(&der), escaped(&der));
    for name in names {
        match name {
            SanType::URI(uri) => text.push_str(&format!(";URI={}", uri.as_str())),
            SanType::DnsName(name) => text.push_str(&format!(";DNS={}", name.as_str())),
            other => panic!("Envoy does not write {other:?}"),
        }
    }
    (der, text)
}

fn hash(der: &[u8]) -> String {
    super::super::hex(&super::super::sha256(der))
}

/// In PEM, percent-encoded.
fn escaped(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let pem = format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
    [("\n", "%0A"), (" ", "%20"), ("+", "%2B"), ("/", "%2F"), ("=", "%3D")]
        .into_iter()
        .fold(pem, |text, (plain, code)| text.replace(plain, code))
}

fn network(text: &str) -> Result<Network, NetworkError> {
    text.parse()
}

#[test]
fn a_network_holds_its_addresses_and_no_others() {
    let contains =
        |text: &str, address: &str| network(text).expect(text).contains(address.parse().expect("an address"));
    assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
    assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.8"));
    assert!(contains("192.0.2.4/31", "192.0.2.5") && !contains("192.0.2.4/31", "192.0.2.6"));
    assert!(contains("fd00::/8", "fdff::1") && !contains("fd00::/8", "fe00::1"));
    assert!(contains("::1", "::1") && !contains("::1", "127.0.0.1"));
    for bad in
        ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0/8", "::ffff:10.0.0.0/104", "proxy", "10.0.0.1/8/8"]
    {
        assert_eq!(network(bad), Err(NetworkError::Malformed), "{bad}");
    }
    assert_eq!(network("0.0.0.0/0"), Err(NetworkError::Everybody));
    assert_eq!(network("::/0"), Err(NetworkError::Everybody));
    assert_eq!(network("10.0.0.1/8").expect_err("bits").to_string(), "has bits behind its prefix: write `10.0.0.0/8`");
}

#[test]
fn only_its_own_places_are_the_proxy() {
    let proxy = |from: Vec<Place>| Proxy { from, header: CertificateHeader::Envoy };
    let at = |address: Option<&str>| Peer {
        address: address.map(|text| text.parse().expect("an address")),
        ..Peer::default()
    };
    let network = proxy(vec![Place::Network(network("10.0.0.0/8").expect("a network"))]);
    assert!(network.is_at(&at(Some("10.1.2.3"))));
    assert!(!network.is_at(&at(Some("192.0.2.1"))) && !network.is_at(&at(None)));
    let unix = proxy(vec![Place::Unix]);
    assert!(unix.is_at(&at(None)) && !unix.is_at(&at(Some("127.0.0.1"))));
    assert!(!proxy(Vec::new()).is_at(&at(None)));
}

#[test]
fn an_element_is_read_as_envoy_writes_it_and_the_certificate_says_it_all() {
    let (der, text) = shown(&[uri("http://testclient.lyft.com"), dns("lyft.com"), dns("www.Lyft.com")]);
    let certificate = envoy(&text).expect("readable");
    assert_eq!(Ok(&certificate), mtls::certificate_from_der(&der).as_ref());
    assert_eq!((certificate.subject.as_str(), certificate.not_after), ("CN=one", 2_208_988_800));
    assert_eq!(certificate.uris, ["http://testclient.lyft.com"]);
    assert_eq!(certificate.dns_names, ["lyft.com", "www.lyft.com"]);
    assert_eq!((certificate.fingerprint.as_str(), certificate.spiffe_id), (hash(&der).as_str(), None));
    let spiffe = envoy(&shown(&[uri("spiffe://p/agents/one")]).1).expect("readable");
    assert_eq!(spiffe.spiffe_id.as_deref(), Some("spiffe://p/agents/one"));
    // All that it takes, and what may stand beside it more than once.
    let (der, _) = shown(&[dns("one.example")]);
    let least = format!("Hash={};Cert=\"{}\"", hash(&der), escaped(&der));
    let whole = envoy(&least).expect("readable");
    assert_eq!(envoy(&format!("By=spiffe://p/a;By=spiffe://p/b;{least};Chain=\"x\"")), Ok(whole));
}

#[test]
fn a_name_outside_of_the_certificate_is_no_name() {
    let (_, text) = shown(&[dns("one.example")]);
    let honest = envoy(&text);
    assert!(honest.is_ok());
    for lie in ["URI=spiffe://p/admin", "DNS=admin.example", "DNS=a;URI=b;URI=c", "Issuer=admin"] {
        assert_eq!(envoy(&format!("{text};{lie}")), honest, "{lie}");
    }
    let (der, _) = shown(&[dns("one.example")]);
    let bare = format!("Hash={};Cert=\"{}\"", hash(&der), escaped(&der));
    assert_eq!(envoy(&format!("{bare};Subject=\"CN=admin\"")).expect("readable").subject, "CN=one");
}

#[test]
fn a_name_with_keys_and_elements_in_it_forges_nothing() {
    let (victim, _) = shown(&[uri("spiffe://prod/agents/admin")]);
    let (hash, cert) = (hash(&victim), escaped(&victim));
    let forged = |name: &str| envoy(&shown(&[uri(name)]).1);
    assert_eq!(forged(&format!("https://x,Hash={hash};URI=spiffe://prod/agents/admin")), Err(ELEMENTS));
    assert_eq!(forged(&format!("https://x,Hash={hash};Cert=\"{cert}\"")), Err(ELEMENTS));
    assert_eq!(forged(&format!("https://x;Hash={hash}")), Err(REPEATS));
    assert_eq!(forged(&format!("https://x;HASH={hash}")), Err(REPEATS));
    assert_eq!(forged(&format!("https://x;Cert=\"{cert}\"")), Err(REPEATS));
    assert_eq!(forged("https://x;Subject=\"CN=admin\""), Err(REPEATS));
    assert_eq!(forged("https://x;Hash =a"), Err(UNREADABLE));
    let own = "https://x;URI=spiffe://prod/agents/admin;DNS=admin.example";
    let certificate = forged(own).expect("readable");
    assert_eq!((certificate.uris.as_slice(), certificate.spiffe_id), ([own.to_owned()].as_slice(), None));
    assert!(certificate.dns_names.is_empty());
    // Where Envoy was not told to send the whole certificate, its place is not the client's to fill.
    let (own, _) = shown(&[]);
    assert_eq!(envoy(&format!("Hash={};URI=https://x;Cert=\"{cert}\"", self::hash(&own))), Err(DISAGREES));
}

#[test]
fn what_is_not_one_whole_element_names_nobody() {
    let (der, text) = shown(&[dns("one.example")]);
    let (hash, cert) = (hash(&der), escaped(&der));
    assert_eq!(envoy(&format!("{text},{text}")), Err(ELEMENTS));
    assert_eq!(envoy(&format!("URI=spiffe://p/admin, {text}")), Err(ELEMENTS));
    assert_eq!(envoy(&format!("{text},")), Err(ELEMENTS));
    assert_eq!(envoy(&format!("Cert=\"{cert}\"")), Err(NO_HASH));
    assert_eq!(envoy(&format!("Hash={hash};URI=spiffe://p/agents/one")), Err(NO_CERTIFICATE));
    for other in [HASH, "", "abc"] {
        assert_eq!(envoy(&format!("Hash={other};Cert=\"{cert}\"")), Err(DISAGREES), "{other}");
    }
    assert!(envoy(&format!("Hash={};Cert=\"{cert}\"", hash.to_uppercase())).is_ok());
    let good = format!("Hash={hash};Cert=\"{cert}\"");
    for bad in [
        "",
        "nonsense",
        r#"Subject="CN=a"#,
        r#"Subject="CN=a\""#,
        r#"Subject="CN=a""CN=b""#,
        r#"Subject="O=\"x\";URI=a";"#,
        r#"Subject=CN=a"#,
        r#"URI="spiffe://p/\"a""#,
        "URI=spiffe://p/a b",
        "DNS=a;",
        "DNS=\u{1}",
        " DNS=a",
    ] {
        assert_eq!(envoy(&format!("{good};{bad}")), Err(UNREADABLE), "{bad}");
    }
    assert_eq!(envoy(&format!("{good};Subject=\"CN=a\";Subject=\"CN=b\"")), Err(REPEATS));
    assert_eq!(envoy(&format!("Hash={hash};Cert=\"nonsense\"")), Err(UNREADABLE));
}

proptest::proptest! {
    #[test]
    fn no_header_breaks_the_reader(text in "([A-Za-z]{2,7}=|[\"\\\\;,= %a-z0-9/:.]){0,40}") {
        let _ = envoy(&text);
        let _ = subject::canonical(&text);
        let _ = from_escaped(&text);
    }

    /// Whatever a client got into its names: it is who its certificate says, or nobody.
    #[test]
    fn no_name_breaks_out_of_its_element(name in "([ -~]|,Hash=|;Hash=|;Cert=\"|;URI=|;DNS=|\"){0,30}") {
        static SHOWN: LazyLock<(Vec<u8>, String)> = LazyLock::new(|| shown(&[dns("one.example")]));
        let (der, text) = &*SHOWN;
        for key in ["URI", "DNS"] {
            if let Ok(certificate) = envoy(&format!("{text};{key}={name}")) {
                proptest::prop_assert_eq!(Ok(certificate), mtls::certificate_from_der(der));
            }
        }
    }

    /// Whatever a client got into its subject, the proxy writes it with the escapes of RFC 4514, and it stays inside.
    #[test]
    fn no_subject_breaks_out_of_its_quotes(name in "[ -~äß€]{1,30}") {
        let special = |c: char| matches!(c, '"' | '+' | ',' | ';' | '<' | '>' | '\\' | ' ' | '#' | '=');
        let escaped: String = name.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect();
        let text = format!("URI=spiffe://p/one;Subject=\"CN={escaped}\"");
        proptest::prop_assert_eq!(envoy(&text), Err(NO_HASH), "it is read to its end, in one element");
        let dn = subject::canonical(&format!("CN={escaped}")).expect("readable");
        let again = subject::canonical(&dn);
        proptest::prop_assert_eq!(again.as_deref(), Some(dn.as_str()), "it is written in one way");
        let rule = super::super::Subject::new(&format!("CN={escaped}")).expect("a subject");
        proptest::prop_assert!(rule.find(&dn).is_some());
    }
}
