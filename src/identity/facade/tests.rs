//! What the facade says of an issuer, and what it does not believe.

use super::*;

const ISSUER: &str = "https://login.example/tenant/v2.0";

fn facade() -> Facade {
    let login = Login { issuer: ISSUER.into(), client_id: "public-1".into(), loopback: true, ..Login::default() };
    Facade::new(login, &mut oidc::Fetchers::default()).unwrap()
}

fn entra() -> Value {
    json!({
        "issuer": ISSUER,
        "authorization_endpoint": "https://login.example/tenant/oauth2/v2.0/authorize",
        "token_endpoint": "https://login.example/tenant/oauth2/v2.0/token",
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
        "scopes_supported": ["openid", "offline_access"],
        "registration_endpoint": "https://login.example/register",
        "signed_metadata": "e30.e30.",
        "cloud_instance_name": "example",
    })
}

async fn described(facade: Facade, document: &Value) -> Value {
    let members = facade.read(document.to_string().as_bytes()).unwrap();
    facade.current.store(Some(Arc::new(Known { members, fetched: Instant::now() })));
    let identifier = format!("https://gw.example{}", facade.path());
    let document = Arc::new(facade).description(&identifier, "https://gw.example").await.unwrap();
    serde_json::from_slice(&document).unwrap()
}

#[tokio::test]
async fn the_gateway_adds_what_is_missing_and_codes_and_tokens_go_to_the_issuer_itself() {
    let identifier = "https://gw.example/login/login.example/tenant/v2.0";
    assert_eq!(
        described(facade(), &entra()).await,
        json!({
            "issuer": identifier,
            "authorization_endpoint": "https://login.example/tenant/oauth2/v2.0/authorize",
            "token_endpoint": "https://login.example/tenant/oauth2/v2.0/token",
            "registration_endpoint": format!("{identifier}/register"),
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "scopes_supported": ["openid", "offline_access"],
        })
    );
}

#[tokio::test]
async fn what_would_not_be_true_of_the_facade_is_not_said() {
    let mut document = entra();
    document["authorization_response_iss_parameter_supported"] = json!(true);
    document["client_id_metadata_document_supported"] = json!(true);
    let said = described(facade(), &document).await;
    assert_eq!(said.get("authorization_response_iss_parameter_supported"), None);
    // The client brings that id to the issuer itself.
    assert_eq!(said["client_id_metadata_document_supported"], json!(true));
    assert_eq!(described(facade(), &entra()).await.get("client_id_metadata_document_supported"), None);
}

#[test]
fn an_issuer_that_is_not_itself_or_not_safe_is_not_described() {
    let wrong = |name: &str, value: Value| {
        let mut document = entra();
        document[name] = value;
        facade().read(document.to_string().as_bytes()).unwrap_err()
    };
    assert!(wrong("issuer", json!("https://login.example/tenant/v2.0/")).contains("another issuer"));
    assert!(wrong("authorization_endpoint", json!("http://login.example/a")).contains("authorization_endpoint"));
    assert!(wrong("token_endpoint", json!("http://127.0.0.1/t")).contains("token_endpoint"));
    assert!(wrong("token_endpoint", Value::Null).contains("token_endpoint"));
    assert!(wrong("code_challenge_methods_supported", json!(["plain"])).contains("PKCE"));
    assert!(facade().read(b"[]").is_err());
}

#[tokio::test]
async fn addresses_that_are_not_safe_are_left_out_wherever_they_stand() {
    let optional: Vec<&str> =
        TAKEN_OVER.into_iter().filter(|name| is_address(name) && !ENDPOINTS.contains(name)).collect();
    let expected = [
        "device_authorization_endpoint",
        "end_session_endpoint",
        "jwks_uri",
        "op_policy_uri",
        "op_tos_uri",
        "revocation_endpoint",
        "service_documentation",
        "userinfo_endpoint",
    ];
    assert_eq!(optional, expected);
    for name in optional {
        let mut document = entra();
        document[name] = json!("https://login.example/here");
        assert_eq!(described(facade(), &document).await[name], json!("https://login.example/here"), "{name}");
        for bad in [
            json!("http://login.example/here"),
            json!("javascript:alert(1)"),
            json!("https://user:secret@login.example/"),
            json!("https://169.254.169.254/latest"),
            json!("/here"),
            json!(["https://login.example/here"]),
            Value::Null,
        ] {
            document[name] = bad.clone();
            let said = described(facade(), &document).await;
            assert_eq!(said.get(name), None, "{name}: {bad}");
            assert_eq!(said["token_endpoint"], document["token_endpoint"], "the rest is there");
        }
    }
}

#[test]
fn a_place_of_entra_calls_itself_by_the_tenant_that_it_is_of() {
    const TENANT: &str = "c0a70500-0000-4000-8000-000000000001";
    let believes = |tenants: entra::Tenants, named: &str| {
        let directory = entra::Entra {
            cloud: entra::Cloud::Public,
            authority: Some("https://login.example".into()),
            tenants,
            audiences: vec!["api".into()],
            leeway: Duration::ZERO,
            guests: true,
            applications: true,
            certificate_bound: super::super::Demand::Optional,
            dpop: super::super::Demand::Optional,
            groups: None,
        };
        let (issuer, entra) = (directory.place(), Some(directory.named_there()));
        let login = Login { issuer, entra, client_id: "public-1".into(), ..Login::default() };
        let facade = Facade::new(login, &mut oidc::Fetchers::default()).unwrap();
        let mut document = self::entra();
        document["issuer"] = json!(format!("https://login.example/{named}/v2.0"));
        (facade.path().to_owned(), facade.read(document.to_string().as_bytes()).is_ok())
    };
    let listed = |names: &[&str]| entra::Tenants::Listed(names.iter().map(|name| (*name).to_owned()).collect());
    let path = |name: &str| format!("/login/login.example/{name}/v2.0");
    assert_eq!(believes(listed(&[TENANT]), TENANT), (path(TENANT), true));
    assert_eq!(believes(listed(&[TENANT]), "{tenantid}"), (path(TENANT), false));
    assert_eq!(believes(listed(&["contoso.example"]), TENANT), (path("contoso.example"), true));
    assert_eq!(believes(listed(&["contoso.example"]), "contoso.example"), (path("contoso.example"), false));
    assert_eq!(believes(listed(&[TENANT, "contoso.example"]), "{tenantid}"), (path("organizations"), true));
    assert_eq!(believes(entra::Tenants::Organizations, "{tenantid}"), (path("organizations"), true));
    assert_eq!(believes(entra::Tenants::Any, "{tenantid}"), (path("common"), true));
    assert_eq!(believes(entra::Tenants::Any, TENANT), (path("common"), false));
}

#[test]
fn the_description_stands_where_clients_look_and_nowhere_else() {
    let facade = facade();
    let path = "/login/login.example/tenant/v2.0";
    assert_eq!(facade.path(), path);
    for good in [format!("{OAUTH}{path}"), format!("{OPENID}{path}"), format!("{path}{OPENID}")] {
        assert!(facade.describes_at(&good), "{good}");
    }
    for bad in [path.to_owned(), OAUTH.to_owned(), format!("{OAUTH}{path}/x"), format!("{path}{OAUTH}")] {
        assert!(!facade.describes_at(&bad), "{bad}");
    }
    let odd = |issuer: &str| Login { issuer: issuer.into(), ..Login::default() }.path();
    assert_eq!(odd("https://idp.example:8443/"), Some("/login/idp.example:8443".into()));
    for bad in ["https://idp.example/a%2fb", "https://idp.example/a//b", "https://idp.example/..", "idp"] {
        assert_eq!(odd(bad), None, "{bad}");
    }
}

#[tokio::test]
async fn an_issuer_that_was_never_heard_is_unavailable_and_one_that_was_is_remembered() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let issuer = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let login = Login { issuer, ..Login::default() };
    let facade = Arc::new(Facade::new(login, &mut oidc::Fetchers::default()).unwrap());
    assert!(matches!(facade.description("i", "b").await, Err(Error::Unavailable { .. })));
    let old = Instant::now().checked_sub(STALE_AFTER + Duration::from_secs(1)).unwrap();
    facade.current.store(Some(Arc::new(Known { members: Map::new(), fetched: old })));
    assert!(facade.description("i", "b").await.is_ok());
}
