//! The Vault policies that the gateway writes or prints: what a token may do that only reads.

/// Mounts may have so many slashes in them: a policy's `+` stands for one segment.
const DEPTH_MAX: usize = 3;

/// Reading secrets and certificates anywhere, and nothing else. Reading alone is not harmless in Vault: engines for
/// databases and clouds make credentials when they are read. So only paths are named at which a read is one.
pub fn read_only(kv1: &[String]) -> String {
    let mut text =
        String::from("# Written by Wardgate: reading secrets and certificates, and nothing that changes anything.\n");
    let mut rule = |path: &str, capabilities: &str| {
        text.push_str(&format!("path \"{path}\" {{ capabilities = [{capabilities}] }}\n"));
    };
    rule("auth/token/lookup-self", "\"read\"");
    rule("auth/token/revoke-self", "\"update\"");
    rule("sys/mounts", "\"read\"");
    rule("sys/internal/ui/mounts/*", "\"read\"");
    for depth in 1..=DEPTH_MAX {
        let mount = vec!["+"; depth].join("/");
        rule(&format!("{mount}/data/*"), "\"read\"");
        for path in ["metadata", "metadata/*"] {
            rule(&format!("{mount}/{path}"), "\"read\", \"list\"");
        }
        for path in ["issuers", "roles"] {
            rule(&format!("{mount}/{path}"), "\"list\"");
        }
        rule(&format!("{mount}/issuer/*"), "\"read\"");
        // A list asks for the path with a slash at its end, which this one matches better than the one above.
        rule(&format!("{mount}/roles/*"), "\"read\", \"list\"");
    }
    for mount in kv1 {
        rule(&format!("{mount}/*"), "\"read\", \"list\"");
    }
    text
}

/// The mounts of version 1 that such a text names.
pub fn kv1(text: &str) -> impl Iterator<Item = &str> {
    let paths = text.lines().filter_map(|line| line.strip_prefix("path \"")?.split('"').next());
    let own = |path: &&str| !path.starts_with('+') && !path.starts_with("sys/") && !path.starts_with("auth/");
    paths.filter(own).filter_map(|path| path.strip_suffix("/*"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_it_writes_but_giving_the_token_back() {
        let text = read_only(&["legacy".to_owned()]);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let harmless = !["create", "delete", "sudo", "patch", "update"].iter().any(|word| line.contains(word));
            assert!(harmless || line.starts_with("path \"auth/token/revoke-self\""), "{line}");
        }
        assert!(text.contains("path \"legacy/*\" { capabilities = [\"read\", \"list\"] }"));
        assert!(text.contains("path \"+/+/data/*\""));
        assert!(!text.contains("creds"));
        assert_eq!(kv1(&text).collect::<Vec<_>>(), ["legacy"]);
    }
}
