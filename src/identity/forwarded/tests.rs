//! What a proxy's headers are read as, and from whom.

use super::*;

const HASH: &str = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688";

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
fn an_element_is_read_as_envoy_writes_it() {
    // From Envoy's documentation, with the subject in the form that Envoy sends.
    let text = format!(
        r#"By=http://frontend.lyft.com;Hash={HASH};Subject="CN=Test Client,OU=Lyft,L=San Francisco,ST=CA,C=US";URI=http://testclient.lyft.com;DNS=lyft.com;DNS=www.Lyft.com"#
    );
    let certificate = envoy(&text).expect("readable");
    assert_eq!(certificate.subject, "CN=Test Client,OU=Lyft,L=San Francisco,ST=CA,C=US");
    assert_eq!(certificate.uris, ["http://testclient.lyft.com"]);
    assert_eq!(certificate.dns_names, ["lyft.com", "www.lyft.com"]);
    assert_eq!((certificate.fingerprint.as_str(), certificate.spiffe_id), (HASH, None));
    let spiffe = envoy("By=spiffe://p/gateway;URI=spiffe://p/agents/one").expect("readable");
    assert_eq!(spiffe.spiffe_id.as_deref(), Some("spiffe://p/agents/one"));
    assert_eq!(spiffe.not_after, mtls::NOT_AFTER_UNKNOWN);
}

#[test]
fn only_the_nearest_proxy_is_believed() {
    let text = "URI=spiffe://p/admin, By=spiffe://p/gateway;URI=spiffe://p/agents/one";
    assert_eq!(envoy(text).expect("readable").spiffe_id.as_deref(), Some("spiffe://p/agents/one"));
    let inside = r#"Subject="CN=a\,URI=spiffe://p/admin,O=b";URI=spiffe://p/agents/one"#;
    assert_eq!(envoy(inside).expect("readable").spiffe_id.as_deref(), Some("spiffe://p/agents/one"));
}

#[test]
fn quotes_and_escapes_cannot_be_broken_out_of() {
    let subject = |text: &str| envoy(text).map(|certificate| certificate.subject);
    assert_eq!(subject(r#"Subject="O=\"x\";URI=a""#).as_deref(), None, "a bare `;` is no part of a name");
    assert_eq!(subject(r#"Subject="O=\"x\"\;URI=a";DNS=b"#).as_deref(), Some(r#"O=\"x\"\;URI=a"#));
    assert_eq!(subject(r#"Subject="O=a\\";DNS=b"#).as_deref(), Some(r"O=a\\"));
    assert_eq!(subject(r#"Subject="""#).as_deref(), Some(""));
    for bad in [
        "",
        "nonsense",
        r#"Subject="CN=a"#,
        r#"Subject="CN=a\""#,
        r#"Subject="CN=a""CN=b""#,
        r#"Subject="CN=a";Subject="CN=b""#,
        r#"Subject=CN=a"#,
        r#"URI="spiffe://p/\"a""#,
        "URI=spiffe://p/a b",
        "DNS=a;",
        "DNS=a,",
        "Hash=abc",
        "Cert=\"nonsense\"",
    ] {
        assert_eq!(envoy(bad), None, "{bad}");
    }
}

#[test]
fn a_whole_certificate_says_it_all_and_must_agree() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["one.example".to_owned()]).expect("names");
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "one");
    params.not_after = rcgen::date_time_ymd(2040, 1, 1);
    let pem = params.self_signed(&key).expect("a certificate").pem();
    let escaped: String = pem.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let certificate = envoy(&format!("Cert=\"{escaped}\"")).expect("readable");
    assert_eq!((certificate.subject.as_str(), certificate.not_after), ("CN=one", 2_208_988_800));
    assert_eq!(certificate.dns_names, ["one.example"]);
    let agreed = format!("Hash={};Cert=\"{escaped}\";Subject=\"CN=one\";DNS=one.example", certificate.fingerprint);
    assert_eq!(envoy(&agreed), Some(certificate));
    for lie in ["Subject=\"CN=two\"", "DNS=two.example", "URI=spiffe://p/a", &format!("Hash={HASH}")] {
        assert_eq!(envoy(&format!("{lie};Cert=\"{escaped}\"")), None, "{lie}");
    }
}

proptest::proptest! {
    #[test]
    fn no_header_breaks_the_reader(text in "([A-Za-z]{2,7}=|[\"\\\\;,= %a-z0-9/:.]){0,40}") {
        let _ = envoy(&text);
        let _ = subject::canonical(&text);
        let _ = from_escaped(&text);
    }

    /// Whatever a client got into its name, the proxy writes it with the escapes of RFC 4514, and it stays inside.
    #[test]
    fn no_subject_breaks_out_of_its_quotes(name in "[ -~äß€]{1,30}") {
        let special = |c: char| matches!(c, '"' | '+' | ',' | ';' | '<' | '>' | '\\' | ' ' | '#' | '=');
        let escaped: String = name.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect();
        let certificate = envoy(&format!("URI=spiffe://p/one;Subject=\"CN={escaped}\"")).expect("readable");
        proptest::prop_assert_eq!(certificate.uris, ["spiffe://p/one"]);
        let dn = subject::canonical(&certificate.subject);
        proptest::prop_assert_eq!(dn.as_deref(), Some(certificate.subject.as_str()), "it is written in one way");
        let rule = super::super::Subject::new(&format!("CN={escaped}")).expect("a subject");
        proptest::prop_assert!(rule.find(&certificate.subject).is_some());
    }
}
