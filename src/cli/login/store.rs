//! Where logins are kept: a file for each URL in `$XDG_CONFIG_HOME/wardgate`, for its owner alone.

use std::fs::DirBuilder;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use ring::digest;
use url::Url;

use super::token::Login;

const FILE_BYTES_MAX: u64 = 256 * 1024;
const LOCK: &str = "logins.lock";

#[derive(Clone, Debug)]
pub(in crate::cli) struct Store {
    folder: PathBuf,
}

impl Store {
    /// # Errors
    /// When nobody knows where this person's configuration is.
    pub(in crate::cli) fn open() -> Result<Store, String> {
        let set = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        let base = base.ok_or("neither XDG_CONFIG_HOME nor HOME says where logins are kept")?;
        Ok(Store { folder: base.join("wardgate") })
    }

    #[cfg(test)]
    pub(super) fn at(folder: &Path) -> Store {
        Store { folder: folder.to_owned() }
    }

    /// The login for exactly this URL.
    pub(in crate::cli) async fn read(&self, url: &Url) -> Result<Option<Login>, String> {
        let (path, url) = (self.path(url), url.clone());
        aside(move || {
            let wrong = |what: &str| format!("the login in `{}` {what}", path.display());
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(wrong(&format!("cannot be read: {error}"))),
            };
            let facts = file.metadata().map_err(|error| wrong(&error.to_string()))?;
            if facts.permissions().mode() & 0o077 != 0 {
                return Err(wrong("can be read by others: remove it and log in again"));
            }
            let mut text = String::new();
            file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| wrong(&error.to_string()))?;
            // serde_json's own words could quote a token.
            let login: Login = serde_json::from_str(&text).map_err(|_| wrong("is not one: log in again"))?;
            if login.url == url { Ok(Some(login)) } else { Err(wrong("is for another URL")) }
        })
        .await
    }

    pub(super) async fn write(&self, login: &Login) -> Result<(), String> {
        let (store, path) = (self.clone(), self.path(&login.url));
        let text = serde_json::to_string_pretty(login).map_err(|error| error.to_string())?;
        aside(move || {
            store.make_folder()?;
            // Whole or not at all, and never readable by others, not even for a moment.
            let beside = path.with_extension(format!("new-{}", std::process::id()));
            let written = replace(&beside, &path, &text);
            written.map_err(|error| format!("the login cannot be kept in `{}`: {error}", path.display()))
        })
        .await
    }

    pub(super) async fn remove(&self, url: &Url) -> Result<(), String> {
        let path = self.path(url);
        let removed = tokio::fs::remove_file(&path).await;
        removed.map_err(|error| format!("`{}` cannot be removed: {error}", path.display()))
    }

    /// Held by one process at a time.
    pub(super) async fn lock(&self) -> Result<File, String> {
        let store = self.clone();
        aside(move || {
            store.make_folder()?;
            let path = store.folder.join(LOCK);
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
            let locked = file.and_then(|file| file.lock().map(|()| file));
            locked.map_err(|error| format!("`{}` cannot be locked: {error}", path.display()))
        })
        .await
    }

    fn make_folder(&self) -> Result<(), String> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|error| format!("`{}` cannot be made: {error}", self.folder.display()))
    }

    fn path(&self, url: &Url) -> PathBuf {
        let print = digest::digest(&digest::SHA256, url.as_str().as_bytes());
        let name: String = print.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("login-{name}.json"))
    }
}

fn replace(beside: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    match std::fs::remove_file(beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(beside, path)
}

async fn aside<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(url: &str) -> Login {
        serde_json::from_value(serde_json::json!({
            "url": url,
            "issuer": "https://idp.test",
            "resource": url,
            "client_id": "c",
            "token_endpoint": "https://idp.test/token",
            "access_token": "canary-token",
            "scopes": ["mcp.read"],
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn a_login_is_for_its_url_and_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::at(&folder.path().join("deep/wardgate"));
        let url: Url = "https://gw.test/mcp".parse().unwrap();
        assert!(store.read(&url).await.unwrap().is_none());
        store.write(&login(url.as_str())).await.unwrap();
        store.write(&login(url.as_str())).await.unwrap();
        let path = store.path(&url);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(store.read(&url).await.unwrap().unwrap().token().expose(), "canary-token");
        for other in ["https://gw.test/mcp/", "https://gw.test/other", "http://gw.test/mcp"] {
            assert!(store.read(&other.parse().unwrap()).await.unwrap().is_none(), "{other}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(store.read(&url).await.err().unwrap().contains("by others"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "canary-token").unwrap();
        let words = store.read(&url).await.err().unwrap();
        assert!(!words.contains("canary"), "{words}");
        store.remove(&url).await.unwrap();
        assert!(store.read(&url).await.unwrap().is_none());
    }
}
