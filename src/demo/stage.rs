//! `Stage`: everything the demo starts (issuer, workbench, certificate, gateway), and what it tells its user about it.

use std::error::Error;
use std::fs::DirBuilder;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SecureRandom;

use super::Voice;
use super::issuer;
use super::issuer::Issuer;
use super::ports;
use super::ports::Ports;
use super::tour::Scene;
use super::tour::Tokens;
use super::workbench;
use super::workbench::Workbench;
use crate::app::App;
use crate::config;

/// Calls of `count_slowly` that the demo's configuration allows each caller per minute.
pub(super) const COUNTS_PER_MINUTE: u32 = 3;

/// How long the listeners may take to accept their first connection.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);

type Failure = Box<dyn Error + Send + Sync>;

pub(super) struct Stage {
    pub(super) scene: Scene,
    issuer: Issuer,
    workbench: Workbench,
    app: App,
    folder: Folder,
}

impl Stage {
    pub(super) async fn set(voice: &Voice) -> Result<Stage, Failure> {
        let ports = Ports::find(ports::USUAL, |words| voice.say(words))?;
        Stage::set_on(ports).await
    }

    async fn set_on(ports: Ports) -> Result<Stage, Failure> {
        let folder = Folder::make()?;
        let authority = certificate(&folder)?;
        let issuer = Issuer::start(0).await?;
        let workbench = Workbench::start(0).await?;
        let public_url = format!("http://127.0.0.1:{}", ports.plain);
        issuer.serve_tokens_for(&public_url);

        let file = folder.path.join("wardgate.yaml");
        let text = configuration(ports, &issuer.url, &workbench.url, &folder.path)?;
        write_private(&file, &text)?;
        let options = config::Options { allow_demo_issuer: true, ..config::Options::default() };
        let loaded = config::parse(&text, &file, options)
            .map_err(|errors| format!("its own configuration is not valid:\n{errors}"))?;
        let app = App::start(loaded).await?;
        for port in [ports.plain, ports.tls, ports.admin] {
            listening(port).await?;
        }

        let token = |(subject, scopes): (&str, &str)| issuer.token(subject, scopes, &public_url);
        let [viewer, editor, admin] = issuer::CLIENTS.map(token);
        let scene = Scene {
            endpoint: format!("{public_url}/mcp"),
            tls_endpoint: format!("https://127.0.0.1:{}/mcp", ports.tls),
            metrics_url: format!("http://127.0.0.1:{}/metrics", ports.admin),
            issuer_url: issuer.url.clone(),
            authority,
            audit_log: folder.path.join("audit.jsonl"),
            tokens: Tokens { viewer, editor, admin },
        };
        Ok(Stage { scene, issuer, workbench, app, folder })
    }

    /// Ends everything that was started, in the order in which it stops being needed.
    pub(super) async fn strike(self) {
        self.app.shutdown().await;
        self.workbench.stop().await;
        self.issuer.stop().await;
        drop(self.folder);
    }

    /// What runs where, the tokens, and commands to paste.
    pub(super) fn introduction(&self) -> String {
        let scene = &self.scene;
        let Tokens { viewer, editor, admin } = &scene.tokens;
        let (endpoint, folder) = (&scene.endpoint, self.folder.path.display());
        let list = serde_json::json!({
            "jsonrpc": "2.0", "id": 1, "method": "tools/list",
            "params": super::tour::modern_params(serde_json::json!({})),
        });
        let clients = serde_json::json!({ "mcpServers": { "wardgate-demo": {
            "type": "http", "url": endpoint, "headers": { "Authorization": format!("Bearer {viewer}") },
        } } });
        format!(
            "\
Wardgate is up, with an identity provider and an MCP server of its own. All of it listens on 127.0.0.1 only.

  gateway        {endpoint}
  over TLS       {tls}   (curl --cacert {folder}/ca.pem)
  metrics        {metrics}
  issuer         {issuer}
  MCP server     {workbench}   (open to this machine: what the gateway protects)
  configuration  {folder}/wardgate.yaml
  audit log      {audit}

Three tokens, good for eight hours. A viewer reads, an editor writes, an admin may also destroy:

export VIEWER={viewer}
export EDITOR={editor}
export ADMIN={admin}

Paste, with any of the three:

curl -sS {endpoint} -H \"Authorization: Bearer $VIEWER\" -H 'Content-Type: application/json' \\
  -H 'Accept: application/json, text/event-stream' -H 'MCP-Protocol-Version: 2026-07-28' -H 'Mcp-Method: tools/list' \\
  -d '{list}'

npx @modelcontextprotocol/inspector --cli {endpoint} --transport http --method tools/list \\
  --header \"Authorization: Bearer $EDITOR\"

For MCP clients with a configuration file:

{clients:#}

Now a short tour.",
            tls = scene.tls_endpoint,
            metrics = scene.metrics_url,
            issuer = scene.issuer_url,
            workbench = self.workbench.url,
            audit = scene.audit_log.display(),
        )
    }
}

/// The configuration of the demo's gateway, as a person would write it.
fn configuration(ports: Ports, issuer: &str, workbench: &str, folder: &Path) -> Result<String, serde_json::Error> {
    let Ports { plain, tls, admin } = ports;
    // A JSON string is a YAML string, whatever is in the path.
    let file = |name: &str| serde_json::to_string(&folder.join(name));
    let (certificate, key, audit) = (file("tls.crt")?, file("tls.key")?, file("audit.jsonl")?);
    let backend = workbench::NAME;
    Ok(format!(
        "\
# What `wardgate demo` runs with. The issuer ends with the demo, and `wardgate run` refuses to trust it.
listeners:
  - address: 127.0.0.1:{plain}
  - address: 127.0.0.1:{tls}
    tls: {{ certificate: {certificate}, key: {key} }}
public_url: http://127.0.0.1:{plain}

identity:
  - oidc: {{ issuer: \"{issuer}\", audience: \"http://127.0.0.1:{plain}\" }}

# The ceiling for everybody. Try read-only: then not even an admin can write.
mode: full
grants:
  - {{ scope: mcp.read, allow: [read] }}
  - {{ scope: mcp.write, allow: [read, write] }}
  - {{ scope: mcp.admin, allow: [read, write, destroy] }}

limits:
  tools:
    - {{ tools: \"{backend}/count_slowly\", calls: {COUNTS_PER_MINUTE} per 1m }}

backends:
  {backend}:
    http: {{ url: \"{workbench}\" }}
    # The operator says what each tool does. What nobody classified counts as destroy.
    effects:
      - {{ tools: \"list_*\", effect: read }}
      - {{ tools: \"read_*\", effect: read }}
      - {{ tools: \"count_*\", effect: read }}
      - {{ tools: \"write_*\", effect: write }}
      - {{ tools: \"append_*\", effect: write }}
      - {{ tools: \"delete_*\", effect: destroy }}
      - {{ tools: \"wipe_*\", effect: destroy }}

routes:
  - {{ path: /mcp, backends: [{backend}] }}

admin: {{ address: 127.0.0.1:{admin} }}
audit: {{ file: {audit} }}
"
    ))
}

/// Writes a certificate for this machine and its key, and the authority that signed it; gives the authority's PEM.
fn certificate(folder: &Folder) -> Result<String, Failure> {
    let mut authority = rcgen::CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(rcgen::DnType::CommonName, "Wardgate demo authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    authority.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::DigitalSignature];
    let authority = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate()?)?;

    let mut server = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    server.distinguished_name.push(rcgen::DnType::CommonName, "Wardgate demo");
    server.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate()?;
    let certificate = server.signed_by(&key, &authority)?;

    write_private(&folder.path.join("ca.pem"), &authority.pem())?;
    write_private(&folder.path.join("tls.crt"), &certificate.pem())?;
    write_private(&folder.path.join("tls.key"), &key.serialize_pem())?;
    Ok(authority.pem())
}

/// Creates a file that only this user can read.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

async fn listening(port: u16) -> Result<(), Failure> {
    let connect = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LISTEN_TIMEOUT, connect).await.map_err(|_| format!("nothing listens on port {port}").into())
}

/// A new directory that only this user can enter, removed with everything in it at the end.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> io::Result<Folder> {
        let mut random = [0_u8; 9];
        ring::rand::SystemRandom::new()
            .fill(&mut random)
            .map_err(|_| io::Error::other("the system has no randomness"))?;
        let path = std::env::temp_dir().join(format!("wardgate-demo-{}", URL_SAFE_NO_PAD.encode(random)));
        // Fails if it exists: nobody else's directory is ever used, or removed.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Folder { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the demo's directory stays behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tour;
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_whole_tour_has_the_expected_outcomes() {
        crate::server::install_crypto();
        let ports = Ports::find(Ports { plain: 0, tls: 0, admin: 0 }, |_| {}).unwrap();
        let stage = Stage::set_on(ports).await.unwrap();
        let introduction = stage.introduction();
        assert!(introduction.contains(&stage.scene.tokens.admin) && introduction.contains("mcpServers"));
        let failed = tour::play(&stage.scene, &Voice { decorated: false }).await;
        let words: Vec<String> =
            failed.iter().map(|failure| format!("{}: {}", failure.title, failure.surprise)).collect();
        assert_eq!(words, Vec::<String>::new());
        stage.strike().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_tour_without_a_gateway_fails_in_every_step() {
        crate::server::install_crypto();
        let folder = Folder::make().unwrap();
        let nobody = Ports::find(Ports { plain: 0, tls: 0, admin: 0 }, |_| {}).unwrap();
        let scene = Scene {
            endpoint: format!("http://127.0.0.1:{}/mcp", nobody.plain),
            tls_endpoint: format!("https://127.0.0.1:{}/mcp", nobody.tls),
            metrics_url: format!("http://127.0.0.1:{}/metrics", nobody.admin),
            issuer_url: "http://127.0.0.1:1".to_owned(),
            authority: certificate(&folder).unwrap(),
            audit_log: folder.path.join("audit.jsonl"),
            tokens: Tokens { viewer: "v".to_owned(), editor: "e".to_owned(), admin: "a".to_owned() },
        };
        let failed = tour::play(&scene, &Voice { decorated: false }).await;
        assert_eq!(failed.iter().map(|failure| failure.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn the_certificate_is_good_for_this_machine_and_only_for_those_who_trust_its_authority() {
        use rustls::client::WebPkiServerVerifier;
        use rustls::client::danger::ServerCertVerifier;
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::ServerName;
        use rustls::pki_types::UnixTime;
        use rustls::pki_types::pem::PemObject;
        crate::server::install_crypto();
        let (ours, other) = (Folder::make().unwrap(), Folder::make().unwrap());
        let authorities = [certificate(&ours).unwrap(), certificate(&other).unwrap()];
        let leaf = CertificateDer::from_pem_file(ours.path.join("tls.crt")).unwrap();
        let verify = |authority: &str, name: &'static str| {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiServerVerifier::builder(roots.into()).build().unwrap();
            verifier.verify_server_cert(&leaf, &[], &ServerName::try_from(name).unwrap(), &[], UnixTime::now()).is_ok()
        };
        assert!(verify(&authorities[0], "127.0.0.1"));
        assert!(verify(&authorities[0], "localhost"));
        assert!(!verify(&authorities[0], "wardgate.example"));
        assert!(!verify(&authorities[1], "127.0.0.1"));
    }

    #[test]
    fn the_folder_of_the_demo_is_private_and_goes_away() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::make().unwrap();
        let path = folder.path.clone();
        certificate(&folder).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::metadata(path.join("tls.key")).unwrap().permissions().mode() & 0o777, 0o600);
        drop(folder);
        assert!(!path.exists());
    }
}
