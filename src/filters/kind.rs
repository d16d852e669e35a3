//! `Kind`: the secrets that are known by their form, and the form of each.

/// A secret that can be known by how it looks.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// AWS access key ids, secret access keys and session tokens where they are named.
    Aws,
    /// Azure storage and Service Bus keys, signatures of SAS URLs, Entra client secrets.
    Azure,
    /// Numbers of payment cards: known beginnings, right length, right check digit.
    Card,
    /// User and password in a URL: `postgres://user:password@host`.
    ConnectionString,
    /// GitHub tokens.
    Github,
    /// Google API keys, access and refresh tokens, client secrets.
    Google,
    /// JSON Web Tokens, signed or encrypted.
    Jwt,
    /// `password=…` in a text, and members called `password`.
    Password,
    /// PEM blocks of private keys, also in base64 (kubeconfig). Certificates pass.
    PrivateKey,
    /// Slack tokens and webhooks.
    Slack,
    /// HashiCorp Vault tokens.
    Vault,
}

impl Kind {
    pub const ALL: [Kind; 11] = [
        Kind::Aws,
        Kind::Azure,
        Kind::Card,
        Kind::ConnectionString,
        Kind::Github,
        Kind::Google,
        Kind::Jwt,
        Kind::Password,
        Kind::PrivateKey,
        Kind::Slack,
        Kind::Vault,
    ];

    /// As in the configuration, in marks, metrics and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Aws => "aws",
            Kind::Azure => "azure",
            Kind::Card => "card",
            Kind::ConnectionString => "connection_string",
            Kind::Github => "github",
            Kind::Google => "google",
            Kind::Jwt => "jwt",
            Kind::Password => "password",
            Kind::PrivateKey => "private_key",
            Kind::Slack => "slack",
            Kind::Vault => "vault",
        }
    }

    /// Where none of these is in a text, whatever their case, there is none of its kind.
    pub(super) fn literals(self) -> &'static [&'static str] {
        match self {
            Kind::Aws => &[
                "AKIA",
                "ASIA",
                "ABIA",
                "ACCA",
                "secretaccesskey",
                "secret_accesskey",
                "secretaccess_key",
                "secret_access_key",
                "sessiontoken",
                "session_token",
            ],
            Kind::Azure => &["AccountKey", "SharedAccess", "sig=", "8Q~", "7Q~"],
            // Has no form but digits, which are looked for by `card`.
            Kind::Card => &[],
            Kind::ConnectionString => &["://"],
            Kind::Github => &["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"],
            Kind::Google => &["AIza", "ya29.", "GOCSPX-", "1//0"],
            Kind::Jwt => &["eyJ", "eyA", "ewo", "ew0"],
            Kind::Password => &["password", "passwd", "pwd"],
            Kind::PrivateKey => &["PRIVATE KEY", "LS0tLS1CRUdJTi"],
            Kind::Slack => &["xox", "xapp-", "hooks.slack.com"],
            Kind::Vault => &["hvs.", "hvb.", "hvr.", "s."],
        }
    }

    /// What it looks like. A group called `secret` is what is taken out; without one, all of it.
    pub(super) fn pattern(self) -> &'static str {
        match self {
            Kind::Aws => {
                r#"(?-u:\b)(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?-u:\b)|(?i:(?:secret_?access_?key|session_?token)["']?\s*[:=]\s*["']?)(?P<secret>[A-Za-z0-9/+=]{40,})"#
            }
            Kind::Azure => {
                r#"(?i:(?:AccountKey|SharedAccessKey|SharedAccessSignature)\s*=\s*)(?P<secret>[A-Za-z0-9+/%]{40,}={0,2})|(?-u:\b)sig=(?P<secret2>[A-Za-z0-9%+/=_-]{20,})|[A-Za-z0-9_~.-]{3}[78]Q~[A-Za-z0-9_~.-]{31,34}"#
            }
            Kind::Card => r"[0-9](?:[ -]?[0-9]){12,}",
            Kind::ConnectionString => {
                r#"(?i:[a-z][a-z0-9+.-]{1,20}):(?:\\?/){2}[^\s:/?\#@"']*:(?P<secret>[^\s/@"'<>]+)@"#
            }
            Kind::Github => r"(?:gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255})",
            Kind::Google => {
                r"AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_.-]{20,}|GOCSPX-[0-9A-Za-z_-]{20,}|1//0[0-9A-Za-z_-]{20,}"
            }
            Kind::Jwt => r"(?:eyJ|eyA|ewo|ew0)[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){2,4}",
            Kind::Password => {
                r#"(?i:(?:password|passwd|pwd)["']?[ \t]*[=:][ \t]*)(?:"(?P<secret>[^"\\]+)"|'(?P<secret2>[^']+)'|(?P<secret3>[^\s;,&"'\\]+))"#
            }
            Kind::PrivateKey => {
                r"(?s)-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|\z)|LS0tLS1CRUdJTi(?:BQUklWQVRF|BSU0EgUFJJVkFUR|BFQyBQUklWQVRF|BPUEVOU1NIIFBSSVZBVE|BFTkNSWVBURUQgUFJJVkFUR|BEU0EgUFJJVkFUR)[A-Za-z0-9+/=]*"
            }
            Kind::Slack => {
                r"xox[a-z](?:\.xox[a-z])?-[A-Za-z0-9-]{10,}|xapp-[0-9]-[A-Za-z0-9-]{10,}|hooks\.slack\.com\\?/(?:services|workflows)\\?/[A-Za-z0-9/+\\]{20,}"
            }
            Kind::Vault => r"hv[sbr]\.[A-Za-z0-9_-]{20,}|(?-u:\b)s\.[A-Za-z0-9]{24}(?-u:\b)(?:\.[A-Za-z0-9]+)?",
        }
    }

    /// The end of a text that may be the beginning of one.
    pub(super) fn beginning(self) -> &'static str {
        match self {
            Kind::Aws => {
                r#"(?:(?-u:\b)(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{0,15}|(?i:(?:secret_?access_?key|session_?token)["']?\s*[:=]\s*["']?)[A-Za-z0-9/+=]*)$"#
            }
            Kind::Azure => {
                r"(?:(?i:(?:AccountKey|SharedAccessKey|SharedAccessSignature)\s*=\s*)[A-Za-z0-9+/%]*=*|(?-u:\b)sig=[A-Za-z0-9%+/=_-]*|[78]Q~[A-Za-z0-9_~.-]*)$"
            }
            Kind::Card => r"[0-9](?:[ -]?[0-9]){3,18}[ -]?$",
            Kind::ConnectionString => r#":(?:\\?/){2}[^\s/?\#@"'<>]*$"#,
            Kind::Github => r"(?:gh[pousr]_[A-Za-z0-9]*|github_pat_[A-Za-z0-9_]*)$",
            Kind::Google => r"(?:AIza[0-9A-Za-z_-]*|ya29\.[0-9A-Za-z_.-]*|GOCSPX-[0-9A-Za-z_-]*|1//0[0-9A-Za-z_-]*)$",
            Kind::Jwt => r"(?:eyJ|eyA|ewo|ew0)[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*){0,4}$",
            Kind::Password => r#"(?i:(?:password|passwd|pwd)["']?[ \t]*[=:][ \t]*)["']?[^\s;,&"'\\]*$"#,
            Kind::PrivateKey => r"(?:-----B[A-Z0-9 ]*-{0,4}|LS0tLS1CRUdJTi[A-Za-z0-9+/]*)$",
            Kind::Slack => r"(?:xox[a-z][A-Za-z0-9.-]*|xapp-[A-Za-z0-9-]*|hooks\.slack\.com[A-Za-z0-9/+\\]*)$",
            Kind::Vault => r"(?:hv[sbr]\.[A-Za-z0-9_-]*|(?-u:\b)s\.[A-Za-z0-9]{1,24})$",
        }
    }

    /// Members whose whole value is one, however it looks. In lower case, without `_` and `-`.
    pub(super) fn members(self) -> &'static [&'static str] {
        match self {
            Kind::Aws => &["secretaccesskey", "awssecretaccesskey", "sessiontoken", "awssessiontoken"],
            Kind::Azure => &["accountkey", "sharedaccesskey"],
            Kind::Password => &["password", "passwd", "pwd"],
            _ => &[],
        }
    }
}
