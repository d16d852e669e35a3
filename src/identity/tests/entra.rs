//! Entra's tokens of both versions, of people, guests and applications, against tenants served from loopback.

use ring::rsa::PublicKeyComponents;
use ring::signature::RSA_PKCS1_SHA256;
use ring::signature::RsaKeyPair;

use super::issuer::Idp;
use super::issuer::MINUTE;
use super::issuer::later;
use super::issuer::settled;
use super::*;
use crate::identity::entra::Cloud;
use crate::identity::entra::Entra;
use crate::identity::entra::Tenants;

const CONTOSO: &str = "c0a70500-0000-4000-8000-000000000001";
const FABRIKAM: &str = "fab41ca0-0000-4000-8000-000000000002";
const PERSONAL: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";
const API: &str = "a9100000-0000-4000-8000-00000000000a";
const CLIENT: &str = "c11e0000-0000-4000-8000-00000000000c";
const PERSON: &str = "0bec7000-0000-4000-8000-00000000000d";
const SCOPE: &str = "mcp.read";

/// A key that exists for these tests alone.
struct RsaSigner {
    kid: &'static str,
    pair: RsaKeyPair,
}

impl RsaSigner {
    fn new(kid: &'static str, der: &str) -> RsaSigner {
        let der: String = der.split_whitespace().collect();
        let der = base64::engine::general_purpose::STANDARD.decode(der).expect("base64");
        RsaSigner { kid, pair: RsaKeyPair::from_der(&der).expect("a key") }
    }

    fn first() -> RsaSigner {
        RsaSigner::new("first", include_str!("rsa-key-1.b64"))
    }

    fn second() -> RsaSigner {
        RsaSigner::new("second", include_str!("rsa-key-2.b64"))
    }

    fn jwk(&self, changes: Value) -> Value {
        let PublicKeyComponents::<Vec<u8>> { n, e } = self.pair.public().into();
        let mut jwk = json!({ "kty": "RSA", "use": "sig", "kid": self.kid, "n": b64(n), "e": b64(e), "x5t": self.kid });
        merge(&mut jwk, &changes);
        jwk
    }

    fn sign(&self, claims: &Value) -> String {
        let header = json!({ "typ": "JWT", "alg": "RS256", "kid": self.kid }).to_string();
        let signed = format!("{}.{}", b64(header), b64(claims.to_string()));
        let mut signature = vec![0; self.pair.public().modulus_len()];
        self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("signed");
        format!("{signed}.{}", b64(signature))
    }
}

/// A cloud of our own on loopback.
struct Tower {
    idp: Idp,
    signer: RsaSigner,
}

impl Tower {
    async fn start() -> Tower {
        let tower = Tower { idp: Idp::start().await, signer: RsaSigner::first() };
        for tenant in [CONTOSO, FABRIKAM] {
            tower.metadata(tenant, tenant);
            tower.keys(tenant, &[tower.signer.jwk(json!({ "issuer": tower.issuer(tenant) }))]);
        }
        for all in ["common", "organizations"] {
            tower.metadata(all, "{tenantid}");
            tower.keys(all, &[tower.signer.jwk(json!({ "issuer": tower.issuer("{tenantid}") }))]);
        }
        tower
    }

    fn issuer(&self, tenant: &str) -> String {
        format!("{}/{tenant}/v2.0", self.idp.url)
    }

    /// What is served under `name` says that it is of `tenant`.
    fn metadata(&self, name: &str, tenant: &str) {
        let document = json!({
            "issuer": self.issuer(tenant),
            "jwks_uri": format!("{}/{name}/discovery/v2.0/keys", self.idp.url),
            "cloud_instance_name": "localhost",
        });
        self.idp.serve(&format!("/{name}/v2.0/.well-known/openid-configuration"), 200, document.to_string());
    }

    fn keys(&self, name: &str, keys: &[Value]) {
        self.idp.serve(&format!("/{name}/discovery/v2.0/keys"), 200, jwks(&keys.iter().collect::<Vec<_>>()));
    }

    fn config(&self, tenants: Tenants) -> Entra {
        Entra {
            cloud: Cloud::Public,
            authority: Some(self.idp.url.clone()),
            tenants,
            audiences: vec![format!("api://{API}"), API.into()],
            leeway: Duration::from_secs(30),
            guests: true,
            applications: true,
            certificate_bound: Demand::Optional,
            dpop: Demand::Optional,
            groups: None,
        }
    }

    fn of(&self, tenant: &str) -> Identity {
        identity_of(self.config(listed(&[tenant])))
    }

    /// A person's token, as Entra makes them; a claim that is changed to null is left out.
    fn new_claims(&self, changes: Value) -> Value {
        let mut claims = json!({
            "aud": API, "iss": self.issuer(CONTOSO), "iat": NOW - 300, "nbf": NOW - 300, "exp": NOW + 3600,
            "azp": CLIENT, "azpacr": "0", "oid": PERSON, "sub": "pairwise-by-application", "tid": CONTOSO,
            "preferred_username": "alice@contoso.example", "scp": SCOPE, "ver": "2.0", "uti": "x", "rh": "1.x",
        });
        merge(&mut claims, &changes);
        claims
    }

    fn old_claims(&self, changes: Value) -> Value {
        let mut claims = self.new_claims(json!({
            "aud": format!("api://{API}"), "iss": format!("{}/{CONTOSO}/", self.idp.url), "ver": "1.0", "azp": null,
            "azpacr": null, "appid": CLIENT, "appidacr": "0", "upn": "alice@contoso.example", "preferred_username": null,
        }));
        merge(&mut claims, &changes);
        claims
    }

    /// An application's own token: no person, no scopes.
    fn application(&self, changes: Value) -> Value {
        let mut claims = self.new_claims(json!({
            "oid": "5e7f1ce0-0000-4000-8000-00000000000e", "sub": "5e7f1ce0-0000-4000-8000-00000000000e", "scp": null,
            "roles": ["Tools.Read.All"], "preferred_username": null, "idtyp": "app",
        }));
        merge(&mut claims, &changes);
        claims
    }

    fn bearing(&self, claims: &Value) -> Request {
        bearing(&self.signer.sign(claims))
    }

    /// The same person's token of another tenant.
    fn in_tenant(&self, tenant: &str) -> Request {
        self.bearing(&self.new_claims(json!({ "iss": self.issuer(tenant), "tid": tenant })))
    }
}

fn listed(names: &[&str]) -> Tenants {
    Tenants::Listed(names.iter().map(|name| (*name).to_owned()).collect())
}

fn identity_of(entra: Entra) -> Identity {
    Identity::new(Config { entra: vec![entra], ..Config::default() }).expect("identity")
}

#[tokio::test]
async fn a_person_is_the_same_by_a_token_of_either_version() {
    let tower = Tower::start().await;
    let identity = tower.of(CONTOSO);
    let new = accepted(&identity, &tower.bearing(&tower.new_claims(json!({})))).await;
    let old = accepted(&identity, &tower.bearing(&tower.old_claims(json!({})))).await;
    assert_eq!((new.kind, new.method, new.guest, new.groups_unknown), (Kind::User, Method::Bearer, false, false));
    assert_eq!((new.subject.as_str(), new.tenant.as_deref()), (PERSON, Some(CONTOSO)));
    assert_eq!((new.issuer.as_str(), new.client.as_deref()), (tower.issuer(CONTOSO).as_str(), Some(CLIENT)));
    assert_eq!((new.scopes.clone(), new.actor.as_deref()), (set(&[SCOPE]), None));
    assert_eq!(new.key(), old.key());
    assert_eq!(new.authority(), old.authority());
    assert_eq!(tower.idp.asked(), 2, "metadata and keys, once for both");
}

#[tokio::test]
async fn roles_and_groups_are_read_and_left_out_groups_are_marked() {
    let tower = Tower::start().await;
    let identity = tower.of(CONTOSO);
    let claims = tower.new_claims(json!({ "roles": ["Operator"], "groups": ["g-1", "g-2"], "scp": "a b" }));
    let principal = accepted(&identity, &tower.bearing(&claims)).await;
    assert_eq!((principal.roles.clone(), principal.groups.clone()), (set(&["Operator"]), set(&["g-1", "g-2"])));
    assert_eq!(principal.scopes, set(&["a", "b"]));
    let over = json!({ "_claim_names": { "groups": "src1" }, "_claim_sources": { "src1": { "endpoint": "https://graph.windows.net/x" } } });
    for changes in [over, json!({ "hasgroups": true })] {
        let principal = accepted(&identity, &tower.bearing(&tower.new_claims(changes.clone()))).await;
        assert!(principal.groups_unknown && principal.groups.is_empty(), "{changes}");
    }
}

#[tokio::test]
async fn an_application_is_a_service_with_roles_and_without_scopes() {
    let tower = Tower::start().await;
    let identity = tower.of(CONTOSO);
    // With the optional claim, without it, and of version 1.0.
    let old = json!({ "iss": format!("{}/{CONTOSO}/", tower.idp.url), "azp": null, "appid": CLIENT, "aud": format!("api://{API}"), "idp": format!("{}/{CONTOSO}/", tower.idp.url) });
    for changes in [json!({}), json!({ "idtyp": null }), old] {
        let principal = accepted(&identity, &tower.bearing(&tower.application(changes.clone()))).await;
        assert_eq!((principal.kind, principal.guest), (Kind::Service, false), "{changes}");
        assert_eq!((principal.scopes.clone(), principal.roles.clone()), (set(&[]), set(&["Tools.Read.All"])));
        assert_eq!(principal.client.as_deref(), Some(CLIENT));
    }
    for (changes, expected) in [
        (json!({ "roles": null }), "has no `roles`"),
        (json!({ "roles": [] }), "has no `roles`"),
        (json!({ "scp": SCOPE }), "has scopes"),
        (json!({ "scp": "" }), "has scopes"),
        (json!({ "scope": SCOPE }), "has scopes"),
        (json!({ "oid": null }), "has no `oid`"),
    ] {
        let words = refused(&identity, &tower.bearing(&tower.application(changes.clone()))).await;
        assert!(words.contains(expected), "{changes}: {words}");
    }
    let people = identity_of(Entra { applications: false, ..tower.config(listed(&[CONTOSO])) });
    assert!(refused(&people, &tower.bearing(&tower.application(json!({})))).await.contains("applications"));
    accepted(&people, &tower.bearing(&tower.new_claims(json!({})))).await;
}

#[tokio::test]
async fn an_id_token_is_refused_also_where_client_and_api_are_one_registration() {
    let tower = Tower::start().await;
    let identity = tower.of(CONTOSO);
    let id = json!({ "azp": null, "azpacr": null, "scp": null, "name": "Alice" });
    for changes in [json!({}), json!({ "roles": ["Operator"] }), json!({ "idtyp": "user" }), json!({ "scp": SCOPE })] {
        let mut claims = tower.new_claims(id.clone());
        merge(&mut claims, &changes);
        let words = refused(&identity, &tower.bearing(&claims)).await;
        assert!(words.contains("is an ID token"), "{changes}: {words}");
    }
    for changes in [json!({ "nonce": "n" }), json!({ "at_hash": "h" }), json!({ "c_hash": "h" })] {
        let words = refused(&identity, &tower.bearing(&tower.new_claims(changes))).await;
        assert!(words.contains("is an ID token"), "{words}");
    }
    // A token without `scp` that is no application's, whatever roles it has.
    for changes in [json!({ "scp": null }), json!({ "scp": null, "roles": ["Operator"] })] {
        assert!(refused(&identity, &tower.bearing(&tower.new_claims(changes))).await.contains("has no `scp`"));
    }
}

#[tokio::test]
async fn a_tenant_speaks_for_itself_only_and_only_if_it_is_listed() {
    let tower = Tower::start().await;
    let identity = tower.of(CONTOSO);
    let unaccepted = "the token's tenant (`tid`) is not accepted here";
    assert_eq!(refused(&identity, &tower.in_tenant(FABRIKAM)).await, unaccepted);
    let mismatch = tower.new_claims(json!({ "tid": FABRIKAM }));
    let words = "the token's `tid` is not the tenant that its `iss` names";
    for changes in [
        json!({ "tid": FABRIKAM }),
        json!({ "tid": null }),
        json!({ "tid": [CONTOSO] }),
        json!({ "tid": CONTOSO.to_uppercase() }),
    ] {
        assert_eq!(refused(&identity, &tower.bearing(&tower.new_claims(changes.clone()))).await, words, "{changes}");
    }
    let both = identity_of(tower.config(listed(&[CONTOSO, FABRIKAM])));
    for tenant in [CONTOSO, FABRIKAM] {
        let principal = accepted(&both, &tower.in_tenant(tenant)).await;
        assert_eq!(principal.tenant.as_deref(), Some(tenant));
    }
    assert_eq!(refused(&both, &tower.bearing(&mismatch)).await, words);

    // Each with keys of its own.
    let other = RsaSigner::second();
    tower.keys(FABRIKAM, &[other.jwk(json!({}))]);
    let both = identity_of(tower.config(listed(&[CONTOSO, FABRIKAM])));
    accepted(&both, &tower.in_tenant(CONTOSO)).await;
    assert!(refused(&both, &tower.in_tenant(FABRIKAM)).await.contains("names none of the issuer's keys"));
    assert!(refused(&both, &bearing(&other.sign(&tower.new_claims(json!({}))))).await.contains("names none"));
}

#[tokio::test]
async fn an_issuer_is_of_exactly_one_form() {
    let tower = Tower::start().await;
    let identity = tower.of(CONTOSO);
    let url = &tower.idp.url;
    for issuer in [
        format!("{url}/{CONTOSO}"),
        format!("{url}/{CONTOSO}/v2.0/"),
        format!("{url}/{CONTOSO}/v1.0"),
        format!("{url}//{CONTOSO}/v2.0"),
        format!("{url}/{}/v2.0", CONTOSO.to_uppercase()),
        format!("{url}/{{tenantid}}/v2.0"),
        format!("{url}/common/v2.0"),
        format!("{url}.evil.example/{CONTOSO}/v2.0"),
        format!("https://login.microsoftonline.com/{CONTOSO}/v2.0"),
        format!("https://sts.windows.net/{CONTOSO}/"),
    ] {
        let words = refused(&identity, &tower.bearing(&tower.new_claims(json!({ "iss": issuer })))).await;
        let expected = format!(
            "the token's `iss` is not an accepted issuer; expected `{url}/{CONTOSO}/v2.0` or `{url}/{CONTOSO}/`"
        );
        assert_eq!(words, expected, "{issuer}");
    }
}

#[test]
fn every_cloud_has_issuers_of_both_versions() {
    for (cloud, new, old) in [
        (Cloud::Public, "https://login.microsoftonline.com", "https://sts.windows.net"),
        (Cloud::UsGovernment, "https://login.microsoftonline.us", "https://sts.windows.net"),
        (Cloud::China, "https://login.partner.microsoftonline.cn", "https://sts.chinacloudapi.cn"),
    ] {
        assert_eq!(cloud.tenant_of(&format!("{new}/{CONTOSO}/v2.0")), Some(CONTOSO));
        assert_eq!(cloud.tenant_of(&format!("{old}/{CONTOSO}/")), Some(CONTOSO));
        assert_eq!(cloud.tenant_of(&format!("{new}/{CONTOSO}/")), None);
        assert_eq!(cloud.tenant_of(&format!("{old}/{CONTOSO}/v2.0")), None);
        let entra = Entra {
            cloud,
            authority: None,
            tenants: listed(&[CONTOSO]),
            audiences: vec![API.into()],
            leeway: Duration::ZERO,
            guests: true,
            applications: true,
            certificate_bound: Demand::Optional,
            dpop: Demand::Optional,
            groups: None,
        };
        assert_eq!(identity_of(entra).authorization_servers("https://gw"), [format!("{new}/{CONTOSO}/v2.0")]);
    }
}

#[tokio::test]
async fn every_organisation_means_any_tenant_and_no_personal_account() {
    let tower = Tower::start().await;
    let identity = identity_of(tower.config(Tenants::Organizations));
    assert_eq!(identity.authorization_servers("https://gw"), [tower.issuer("organizations")]);
    for tenant in [CONTOSO, FABRIKAM] {
        assert_eq!(accepted(&identity, &tower.in_tenant(tenant)).await.tenant.as_deref(), Some(tenant));
    }
    assert_eq!(tower.idp.asked(), 2, "one set of keys for all tenants");
    let mismatch = tower.new_claims(json!({ "tid": FABRIKAM }));
    assert!(refused(&identity, &tower.bearing(&mismatch)).await.contains("is not the tenant that its `iss` names"));
    assert!(refused(&identity, &tower.in_tenant(PERSONAL)).await.contains("is not accepted here"));
    let any = identity_of(tower.config(Tenants::Any));
    assert_eq!(accepted(&any, &tower.in_tenant(PERSONAL)).await.tenant.as_deref(), Some(PERSONAL));
    assert_eq!(any.authorization_servers("https://gw"), [tower.issuer("common")]);
}

#[tokio::test]
async fn a_key_of_a_shared_set_signs_for_whom_it_names() {
    let tower = Tower::start().await;
    let serve = |issuer: Value| {
        tower.keys("organizations", &[tower.signer.jwk(json!({ "issuer": issuer }))]);
        identity_of(tower.config(Tenants::Organizations))
    };
    let words = "the issuer has no key that fits the token's `alg` and `kid`";
    for (issuer, contoso, fabrikam) in [
        (json!(tower.issuer("{tenantid}")), true, true),
        (json!(null), true, true),
        (json!(tower.issuer(CONTOSO)), true, false),
        (json!(tower.issuer(PERSONAL)), false, false),
        (json!(format!("{}/{{tenantid}}/", tower.idp.url)), false, false),
        (json!("https://login.microsoftonline.com/{tenantid}/v2.0"), false, false),
        (json!(1), false, false),
        (json!(""), false, false),
    ] {
        let identity = serve(issuer.clone());
        for (tenant, good) in [(CONTOSO, contoso), (FABRIKAM, fabrikam)] {
            match good {
                true => drop(accepted(&identity, &tower.in_tenant(tenant)).await),
                false => assert_eq!(refused(&identity, &tower.in_tenant(tenant)).await, words, "{issuer}"),
            }
        }
    }
}

#[tokio::test]
async fn metadata_of_somebody_else_gives_no_keys() {
    let tower = Tower::start().await;
    let unavailable = |tenant: &str| Error::Unavailable { issuer: tower.issuer(tenant) };
    for wrong in [FABRIKAM, "{tenantid}", "", "contoso.example"] {
        tower.metadata(CONTOSO, wrong);
        assert_eq!(tower.of(CONTOSO).verify(&tower.in_tenant(CONTOSO)).await.unwrap_err(), unavailable(CONTOSO));
    }
    tower.metadata("organizations", CONTOSO);
    let all = identity_of(tower.config(Tenants::Organizations));
    assert_eq!(all.verify(&tower.in_tenant(CONTOSO)).await.unwrap_err(), unavailable("organizations"));
}

#[tokio::test]
async fn a_domain_is_the_tenant_that_it_belongs_to_and_stays_it() {
    const DOMAIN: &str = "contoso.example";
    let tower = Tower::start().await;
    let identity = tower.of(DOMAIN);
    assert_eq!(identity.authorization_servers("https://gw"), [tower.issuer(DOMAIN)]);
    // Not known yet whose it is: nothing can be said about anybody's token.
    let unavailable = Error::Unavailable { issuer: tower.issuer(DOMAIN) };
    for tenant in [CONTOSO, FABRIKAM] {
        assert_eq!(identity.verify(&tower.in_tenant(tenant)).await.unwrap_err(), unavailable);
    }
    tower.metadata(DOMAIN, CONTOSO);
    tower.keys(DOMAIN, &[tower.signer.jwk(json!({}))]);
    let soon = |tenant: &str, after: Duration| later(tower.in_tenant(tenant), after);
    accepted(&identity, &soon(CONTOSO, Duration::from_secs(6))).await;
    assert_eq!(
        identity.authorization_servers("https://gw"),
        [tower.issuer(CONTOSO)],
        "clients find the metadata by the id"
    );
    assert!(refused(&identity, &soon(FABRIKAM, Duration::from_secs(6))).await.contains("is not accepted here"));

    // Somebody else got the domain: their people are not those who were meant.
    tower.metadata(DOMAIN, FABRIKAM);
    accepted(&identity, &soon(CONTOSO, MINUTE * 11)).await;
    settled(&identity).await;
    assert!(refused(&identity, &soon(FABRIKAM, MINUTE * 11)).await.contains("is not accepted here"));
    assert!(identity.verify(&soon(CONTOSO, MINUTE * 60 * 25)).await.is_err(), "keys last a day");
}

#[tokio::test]
async fn an_audience_is_the_client_id_or_the_uri_and_the_refusal_says_which() {
    let tower = Tower::start().await;
    let identity = tower.of(CONTOSO);
    for audience in [json!(API), json!(format!("api://{API}"))] {
        accepted(&identity, &tower.bearing(&tower.new_claims(json!({ "aud": audience })))).await;
        accepted(&identity, &tower.bearing(&tower.old_claims(json!({ "aud": audience })))).await;
    }
    let expected =
        format!("the token's `aud` does not contain an accepted audience; expected `api://{API}` or `{API}`");
    for audience in [
        json!("00000003-0000-0000-c000-000000000000"),
        json!("https://graph.microsoft.com"),
        json!(CLIENT),
        json!(format!("api://{API}/")),
        json!(API.to_uppercase()),
        json!(null),
    ] {
        let words = refused(&identity, &tower.bearing(&tower.new_claims(json!({ "aud": audience })))).await;
        assert_eq!(words, expected, "{audience}");
    }
}

#[tokio::test]
async fn guests_are_told_from_members() {
    let tower = Tower::start().await;
    let home = format!("https://sts.windows.net/{FABRIKAM}/");
    let own = format!("{}/{CONTOSO}/", tower.idp.url);
    let members = identity_of(Entra { guests: false, ..tower.config(listed(&[CONTOSO])) });
    let all = tower.of(CONTOSO);
    for (changes, guest) in [
        (json!({}), false),
        (json!({ "acct": 0 }), false),
        (json!({ "idp": own }), false),
        (json!({ "idp": tower.issuer(CONTOSO) }), false),
        (json!({ "acct": 1 }), true),
        (json!({ "acct": "1" }), true),
        (json!({ "idp": home }), true),
        (json!({ "idp": "live.com" }), true),
        (json!({ "idp": "live.com", "acct": 1 }), true),
        // A member who signs in elsewhere.
        (json!({ "idp": "https://idp.contoso.example", "acct": 0 }), false),
    ] {
        let request = tower.bearing(&tower.new_claims(changes.clone()));
        assert_eq!(accepted(&all, &request).await.guest, guest, "{changes}");
        match guest {
            true => assert_eq!(refused(&members, &request).await, "guests of the tenant are not accepted here"),
            false => drop(accepted(&members, &request).await),
        }
    }
    let odd = tower.bearing(&tower.new_claims(json!({ "acct": 2 })));
    assert_eq!(refused(&members, &odd).await, "the token's `acct` is neither 0 nor 1");
}

#[tokio::test]
async fn no_refusal_repeats_what_the_token_says() {
    let tower = Tower::start().await;
    let identity = tower.of(CONTOSO);
    let issuer = tower.issuer("CANARY");
    for claim in ["iss", "aud", "tid", "acct", "exp", "roles", "hasgroups", "cnf", "act"] {
        let words = identity.verify(&tower.bearing(&tower.new_claims(json!({ claim: { "CANARY": 1 } })))).await;
        assert!(!format!("{words:?}").contains("CANARY"), "{claim}: {words:?}");
    }
    let words = refused(&identity, &tower.bearing(&tower.new_claims(json!({ "iss": issuer })))).await;
    assert!(!words.contains("CANARY"), "{words}");
}

#[tokio::test]
async fn only_the_algorithm_of_entra_is_taken() {
    let tower = Tower::start().await;
    let ec = Signer::new("ec");
    tower.keys(CONTOSO, &[ec.jwk.clone(), tower.signer.jwk(json!({}))]);
    let identity = tower.of(CONTOSO);
    let header = json!({ "alg": "ES256", "kid": "ec" }).to_string();
    let forged = ec.sign_text(&header, &tower.new_claims(json!({})).to_string());
    assert!(refused(&identity, &bearing(&forged)).await.contains("`alg` is not accepted"));
    accepted(&identity, &tower.in_tenant(CONTOSO)).await;
}

#[tokio::test]
async fn a_flood_of_tenants_and_kids_asks_nobody() {
    let tower = Tower::start().await;
    let identity = identity_of(tower.config(listed(&[CONTOSO, FABRIKAM])));
    identity.warm().await;
    assert_eq!(tower.idp.asked(), 4);
    for number in 0..500 {
        let tenant = format!("{number:08x}-0000-4000-8000-000000000000");
        let header = json!({ "alg": "RS256", "kid": number.to_string() }).to_string();
        let token = |tenant: &str| {
            let claims = tower.new_claims(json!({ "iss": tower.issuer(tenant), "tid": tenant }));
            format!("{}.{}.AAAA", b64(&header), b64(claims.to_string()))
        };
        refused(&identity, &bearing(&token(&tenant))).await;
        refused(&identity, &bearing(&token(CONTOSO))).await;
    }
    assert_eq!(tower.idp.asked(), 6, "one fetch, of metadata and keys, of the tenant that was named");
}

#[tokio::test]
async fn a_reload_keeps_the_keys_of_tenants_that_stay() {
    let tower = Tower::start().await;
    let first = tower.of(CONTOSO);
    accepted(&first, &tower.in_tenant(CONTOSO)).await;
    let config = Config { entra: vec![tower.config(listed(&[CONTOSO, FABRIKAM]))], ..Config::default() };
    let second = first.renewed(config).expect("identity");
    accepted(&second, &tower.in_tenant(CONTOSO)).await;
    assert_eq!(tower.idp.asked(), 2);
    accepted(&second, &tower.in_tenant(FABRIKAM)).await;
    assert_eq!(tower.idp.asked(), 4);
}

#[tokio::test]
async fn what_cannot_work_is_said_at_start_and_entries_side_by_side_are_asked_in_turn() {
    let tower = Tower::start().await;
    let fail =
        |entra: Vec<Entra>| Identity::new(Config { entra, ..Config::default() }).err().expect("refused").to_string();
    let of = |names: &[&str]| tower.config(listed(names));
    assert!(fail(vec![Entra { audiences: Vec::new(), ..of(&[CONTOSO]) }]).contains("has no audience"));
    assert!(fail(vec![of(&[])]).contains("has no tenant"));
    assert!(fail(vec![of(&[CONTOSO]), of(&[FABRIKAM, CONTOSO])]).contains("configured twice"));
    assert!(fail(vec![of(&[CONTOSO]), tower.config(Tenants::Any)]).contains("configured twice"));
    for authority in ["http://idp.example", "ftp://idp.example", "https://u:p@idp.example"] {
        assert!(fail(vec![Entra { authority: Some(authority.into()), ..of(&[CONTOSO]) }]).contains("https"));
    }
    let other = Entra { audiences: vec!["api://other".into()], ..of(&[FABRIKAM]) };
    let two = Identity::new(Config { entra: vec![of(&[CONTOSO]), other], ..Config::default() }).expect("identity");
    accepted(&two, &tower.in_tenant(CONTOSO)).await;
    let words = refused(&two, &tower.in_tenant(FABRIKAM)).await;
    assert!(words.contains("expected `api://other`"), "each with an audience of its own: {words}");
}

#[tokio::test]
async fn where_people_are_at_entra_clients_go_there_first_and_ask_for_scopes_as_it_wants_them() {
    let tower = Tower::start().await;
    let entra = tower.config(listed(&[CONTOSO]));
    let login = |issuer: &str, named, scope_prefix: &str| facade::Login {
        issuer: issuer.into(),
        entra: named,
        client_id: "c".into(),
        scope_prefix: scope_prefix.into(),
        ..facade::Login::default()
    };
    let logins = vec![login(ISSUER, None, "x:"), login(&entra.place(), Some(entra.named_there()), "https://gw/")];
    let issuers = vec![issuer(ISSUER, Keys::Url(format!("{}/jwks", tower.idp.url)))];
    let config = Config { entra: vec![entra], issuers, logins, ..Config::default() };
    let identity = Identity::new(config).expect("identity");
    assert_eq!(identity.asked_as(&["mcp.read".to_owned()]), ["https://gw/mcp.read"]);
    let servers = identity.authorization_servers("https://gw");
    assert!(servers.len() == 2 && servers[0].contains(CONTOSO), "{servers:?}");
}
