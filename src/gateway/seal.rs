//! `Sealer`: bytes that only a gateway with the same keys can have sealed: session ids, cursors, request state.
//!
//! The first key seals, every key opens. A sealed text is `format ‖ key id ‖ salt ‖ ciphertext and tag` in URL-safe
//! base64. The key of each text is derived (HKDF-SHA256) from a master key, the text's own random salt and the purpose:
//! replicas that share a master key for months need not count nonces, and a text of one purpose never opens as another.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::SystemTime;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::GeneralPurpose;
use base64::engine::GeneralPurposeConfig;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead;
use ring::hkdf;
use ring::hmac;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;

/// A shorter key is guessed sooner than the cipher is broken.
pub const KEY_BYTES_MIN: usize = 32;

/// How long a session lasts unless configured otherwise: a leaked id has an end.
pub const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Time enough to read a question, too little to forget what it was about.
const CONFIRM_WITHIN: Duration = Duration::from_secs(2 * 60);

/// Texts that open once and have not expired. One that finds no room is refused: it could be used twice.
const USED_MAX: usize = 100_000;

/// Longer texts are not ours.
const SEALED_BYTES_MAX: usize = 64 * 1024;

/// Of the layout above; another layout gets another number.
const FORMAT: u8 = 1;
const KEY_ID_BYTES: usize = 8;
const SALT_BYTES: usize = 16;
const DERIVED_BYTES: usize = 32 + aead::NONCE_LEN;

/// How sessions are kept, as configured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sessions {
    /// The first seals, all open. None: a random one that ends with the process.
    pub keys: Vec<Key>,
    pub lifetime: Duration,
    /// How long a person has to say yes to a call.
    pub confirm_within: Duration,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions { keys: Vec::new(), lifetime: LIFETIME, confirm_within: CONFIRM_WITHIN }
    }
}

/// What a sealed text is for. Each purpose has keys of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Purpose {
    /// A legacy session id that carries an upstream's.
    Session,
    /// A legacy session id of ours, with modern backends behind it.
    Door,
    /// A page of a list.
    Cursor,
    /// State that a client carries between two requests (`requestState`).
    State,
    /// A task at an upstream.
    Task,
}

impl Purpose {
    /// INVARIANT: no label is the beginning of another one.
    fn label(self) -> &'static [u8] {
        match self {
            Purpose::Session => b"wardgate session",
            Purpose::Door => b"wardgate door",
            Purpose::Cursor => b"wardgate cursor",
            Purpose::State => b"wardgate request-state",
            Purpose::Task => b"wardgate task",
        }
    }
}

/// A master key. Masked in `Debug`.
#[derive(Clone, Eq, PartialEq)]
pub struct Key {
    /// Derived, not secret: opening is one try.
    id: [u8; KEY_ID_BYTES],
    bytes: Box<[u8]>,
}

/// Why a text is no key. Says nothing of the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    #[error("is neither base64 nor hex; make one with `openssl rand -base64 32`")]
    Malformed,
    #[error("has fewer than {KEY_BYTES_MIN} bytes once decoded; make one with `openssl rand -base64 32`")]
    Short,
}

impl Key {
    /// From hex or base64 (of either alphabet, padded or not).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn parse(text: &str) -> Result<Key, KeyError> {
        let bytes = decode(text.trim()).ok_or(KeyError::Malformed)?;
        if bytes.len() < KEY_BYTES_MIN {
            return Err(KeyError::Short);
        }
        Key::of(&bytes).ok_or(KeyError::Malformed)
    }

    fn random(random: &SystemRandom) -> Result<Key, ring::error::Unspecified> {
        let mut bytes = [0u8; KEY_BYTES_MIN];
        random.fill(&mut bytes)?;
        Key::of(&bytes).ok_or(ring::error::Unspecified)
    }

    fn of(bytes: &[u8]) -> Option<Key> {
        let mut id = [0u8; KEY_ID_BYTES];
        derive(bytes, &[], b"wardgate key id", &mut id)?;
        Some(Key { id, bytes: bytes.into() })
    }

    /// A salt that is as good as random, and the same for the same text.
    fn salt_of(&self, purpose: Purpose, plain: &[u8], associated: &[u8]) -> Option<[u8; SALT_BYTES]> {
        let mut derived = [0u8; 32];
        derive(&self.bytes, &[], b"wardgate salt", &mut derived)?;
        let mut digest = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &derived));
        for part in [purpose.label(), associated, plain] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.sign().as_ref().get(..SALT_BYTES)?.try_into().ok()
    }

    /// The cipher and nonce of one text.
    fn cipher(&self, purpose: Purpose, salt: &[u8]) -> Option<(aead::LessSafeKey, aead::Nonce)> {
        let mut derived = [0u8; DERIVED_BYTES];
        derive(&self.bytes, salt, purpose.label(), &mut derived)?;
        let (key, nonce) = derived.split_at_checked(32)?;
        let key = aead::UnboundKey::new(&aead::CHACHA20_POLY1305, key).ok()?;
        Some((aead::LessSafeKey::new(key), aead::Nonce::try_assume_unique_for_key(nonce).ok()?))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(***)")
    }
}

/// Seals and opens. Part of the configuration in force: a reload brings new keys.
pub struct Sealer {
    /// INVARIANT: never empty.
    keys: Vec<Key>,
    /// Drawn by this process, known to no other.
    own: bool,
    lifetime: Duration,
    confirm_within: Duration,
    random: SystemRandom,
    /// Names that were used up by this process, until they expire. Other replicas have their own.
    used: Arc<Mutex<HashMap<String, SystemTime>>>,
}

impl Sealer {
    /// A fresh random key: what it seals ends with the process.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new() -> Result<Sealer, ring::error::Unspecified> {
        let random = SystemRandom::new();
        Ok(Sealer {
            keys: vec![Key::random(&random)?],
            own: true,
            lifetime: LIFETIME,
            confirm_within: CONFIRM_WITHIN,
            random,
            used: Arc::default(),
        })
    }

    /// With the configured keys; without any, with the random one that the configuration before had, or a fresh one.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn configured(sessions: &Sessions, before: Option<&Sealer>) -> Result<Sealer, ring::error::Unspecified> {
        let (keys, own) = match before.filter(|before| before.own) {
            _ if !sessions.keys.is_empty() => (sessions.keys.clone(), false),
            Some(before) => (before.keys.clone(), true),
            None => (Sealer::new()?.keys, true),
        };
        let used = before.map(|before| before.used.clone()).unwrap_or_default();
        let (lifetime, confirm_within) = (sessions.lifetime, sessions.confirm_within);
        Ok(Sealer { keys, own, lifetime, confirm_within, random: SystemRandom::new(), used })
    }

    /// The one before where nothing changed, so that houses can tell.
    ///
    /// # Errors
    /// As [`Sealer::configured`].
    pub fn kept(sessions: &Sessions, before: Option<&Arc<Sealer>>) -> Result<Arc<Sealer>, ring::error::Unspecified> {
        let new = Sealer::configured(sessions, before.map(AsRef::as_ref))?;
        let same = before.filter(|before| {
            let spans = |sealer: &Sealer| (sealer.lifetime, sealer.confirm_within);
            before.keys == new.keys && spans(before) == spans(&new) && before.own == new.own
        });
        Ok(same.cloned().unwrap_or_else(|| Arc::new(new)))
    }

    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    pub(super) fn confirm_within(&self) -> Duration {
        self.confirm_within
    }

    /// A name that nobody can guess, and that nothing else has.
    pub(super) fn draw(&self) -> Option<String> {
        let mut name = [0u8; SALT_BYTES];
        self.random.fill(&mut name).ok()?;
        Some(URL_SAFE_NO_PAD.encode(name))
    }

    /// True the first time that this process sees the name, before it expires.
    pub(super) fn once(&self, name: &str, expires: SystemTime, now: SystemTime) -> bool {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= USED_MAX {
            used.retain(|_, expires| *expires > now);
        }
        now < expires && used.len() < USED_MAX && used.insert(name.to_owned(), expires).is_none()
    }

    /// Text that opens only for this purpose and with the same `associated` bytes, under one of our keys. `None` when it
    /// would be too long, or the system has no randomness.
    pub fn seal_bytes(&self, purpose: Purpose, plain: &[u8], associated: &[u8]) -> Option<String> {
        let mut salt = [0u8; SALT_BYTES];
        self.random.fill(&mut salt).ok()?;
        self.seal_salted(purpose, plain, associated, salt)
    }

    /// The same, but the same text each time, whichever replica seals it: a name that a client may compare.
    pub fn seal_name(&self, purpose: Purpose, plain: &[u8], associated: &[u8]) -> Option<String> {
        let salt = self.keys.first()?.salt_of(purpose, plain, associated)?;
        self.seal_salted(purpose, plain, associated, salt)
    }

    fn seal_salted(&self, purpose: Purpose, plain: &[u8], associated: &[u8], salt: [u8; SALT_BYTES]) -> Option<String> {
        let key = self.keys.first()?;
        let (cipher, nonce) = key.cipher(purpose, &salt)?;
        let mut text = plain.to_vec();
        cipher.seal_in_place_append_tag(nonce, aead::Aad::from(associated), &mut text).ok()?;
        let mut whole = vec![FORMAT];
        whole.extend_from_slice(&key.id);
        whole.extend_from_slice(&salt);
        whole.extend_from_slice(&text);
        Some(URL_SAFE_NO_PAD.encode(whole)).filter(|sealed| sealed.len() <= SEALED_BYTES_MAX)
    }

    /// What was sealed; `None` for everything else, whatever the reason.
    pub fn open_bytes(&self, purpose: Purpose, text: &str, associated: &[u8]) -> Option<Vec<u8>> {
        if text.len() > SEALED_BYTES_MAX {
            return None;
        }
        let mut whole = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (head, sealed) = whole.split_at_mut_checked(1 + KEY_ID_BYTES + SALT_BYTES)?;
        let (id, salt) = head.strip_prefix(&[FORMAT])?.split_at_checked(KEY_ID_BYTES)?;
        let key = self.keys.iter().find(|key| key.id == id)?;
        let (cipher, nonce) = key.cipher(purpose, salt)?;
        cipher.open_in_place(nonce, aead::Aad::from(associated), sealed).ok().map(|plain| plain.to_vec())
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    const EITHER_PADDING: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    if text.len().is_multiple_of(2) && !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        let pairs = text.as_bytes().chunks_exact(2);
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        return pairs.map(byte).collect();
    }
    [&alphabet::STANDARD, &alphabet::URL_SAFE]
        .into_iter()
        .find_map(|alphabet| GeneralPurpose::new(alphabet, EITHER_PADDING).decode(text).ok())
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive(master: &[u8], salt: &[u8], label: &[u8], out: &mut [u8]) -> Option<()> {
    let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(master);
    derived.expand(&[label], Length(out.len())).ok()?.fill(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    const SECOND: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfefff0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";

    fn sealer(keys: &[&str]) -> Sealer {
        let keys = keys.iter().map(|text| Key::parse(text).expect("a key")).collect();
        Sealer::configured(&Sessions { keys, ..Sessions::default() }, None).expect("randomness")
    }

    #[test]
    fn what_opens_once_is_refused_the_second_time_and_when_it_has_expired() {
        let sealer = Sealer::new().expect("randomness");
        let now = SystemTime::now();
        let later = now + Duration::from_secs(60);
        assert!(sealer.once("a", later, now) && !sealer.once("a", later, now));
        assert!(!sealer.once("b", now, now), "expired");
        let renewed = Sealer::configured(&Sessions::default(), Some(&sealer)).expect("randomness");
        assert!(!renewed.once("a", later, now), "a reload forgets nothing");
        let drawn = [sealer.draw(), sealer.draw()];
        assert!(drawn[0].is_some() && drawn[0] != drawn[1]);
    }

    #[test]
    fn two_sealers_with_the_same_keys_open_what_the_other_sealed() {
        let (one, other) = (sealer(&[FIRST]), sealer(&[FIRST]));
        let sealed = one.seal_bytes(Purpose::Cursor, b"page 2", b"alice").expect("sealed");
        assert_eq!(other.open_bytes(Purpose::Cursor, &sealed, b"alice").as_deref(), Some(&b"page 2"[..]));
        assert_eq!(other.open_bytes(Purpose::Cursor, &sealed, b"bob"), None);
        assert_eq!(sealer(&[SECOND]).open_bytes(Purpose::Cursor, &sealed, b"alice"), None);
        assert_ne!(sealed, one.seal_bytes(Purpose::Cursor, b"page 2", b"alice").expect("sealed"), "a salt each");
    }

    #[test]
    fn a_text_of_one_purpose_opens_for_no_other() {
        let sealer = sealer(&[FIRST]);
        let all = [Purpose::Session, Purpose::Cursor, Purpose::State, Purpose::Task];
        for purpose in all {
            let sealed = sealer.seal_bytes(purpose, b"x", b"").expect("sealed");
            for tried in all {
                assert_eq!(sealer.open_bytes(tried, &sealed, b"").is_some(), tried == purpose, "{purpose:?} {tried:?}");
            }
        }
    }

    #[test]
    fn a_sealed_name_is_the_same_wherever_it_is_sealed_and_differs_in_all_that_it_is_bound_to() {
        let (one, other) = (sealer(&[FIRST]), sealer(&[FIRST, SECOND]));
        let name = |sealer: &Sealer, plain: &[u8], associated: &[u8]| {
            sealer.seal_name(Purpose::Task, plain, associated).expect("sealed")
        };
        let sealed = name(&one, b"task", b"alice");
        assert_eq!(sealed, name(&other, b"task", b"alice"));
        assert_eq!(other.open_bytes(Purpose::Task, &sealed, b"alice").as_deref(), Some(&b"task"[..]));
        assert_eq!(other.open_bytes(Purpose::Task, &sealed, b"bob"), None);
        assert_eq!(other.open_bytes(Purpose::State, &sealed, b"alice"), None);
        let salt = |sealed: &str| URL_SAFE_NO_PAD.decode(sealed).expect("base64")[9..9 + SALT_BYTES].to_vec();
        let others = [name(&one, b"tasl", b"alice"), name(&one, b"task", b"alicf"), name(&one, b"taska", b"lice")];
        assert!(others.iter().all(|other| salt(other) != salt(&sealed)), "a key and nonce each");
    }

    #[test]
    fn a_key_is_rotated_without_a_gap_and_ends_when_it_is_dropped() {
        let before = sealer(&[FIRST]);
        let (announced, switched, after) = (sealer(&[FIRST, SECOND]), sealer(&[SECOND, FIRST]), sealer(&[SECOND]));
        let seal = |sealer: &Sealer| sealer.seal_bytes(Purpose::Session, b"x", b"").expect("sealed");
        let opens = |sealer: &Sealer, text: &str| sealer.open_bytes(Purpose::Session, text, b"").is_some();
        // While some replicas are a step behind, each opens what any other seals.
        for (one, other) in [(&before, &announced), (&announced, &switched), (&switched, &after)] {
            assert!(opens(other, &seal(one)), "forwards");
            assert!(opens(one, &seal(other)), "backwards");
        }
        assert!(opens(&after, &seal(&switched)), "the new key seals by then");
        assert!(!opens(&after, &seal(&announced)), "sealed under the dropped key");
    }

    #[test]
    fn without_keys_a_reload_keeps_the_random_one_and_configured_keys_do_not_outlive_their_configuration() {
        let none = Sessions::default();
        let first = Sealer::configured(&none, None).expect("randomness");
        let sealed = first.seal_bytes(Purpose::State, b"x", b"").expect("sealed");
        let second = Sealer::configured(&none, Some(&first)).expect("randomness");
        assert!(second.open_bytes(Purpose::State, &sealed, b"").is_some());
        let keyed = sealer(&[FIRST]);
        let sealed = keyed.seal_bytes(Purpose::State, b"x", b"").expect("sealed");
        let bare = Sealer::configured(&none, Some(&keyed)).expect("randomness");
        assert!(bare.open_bytes(Purpose::State, &sealed, b"").is_none(), "the key was taken away");
    }

    #[test]
    fn every_flipped_byte_is_found_and_nonsense_opens_nothing() {
        let sealer = sealer(&[FIRST]);
        let sealed = sealer.seal_bytes(Purpose::State, b"state", b"a").expect("sealed");
        let bytes = URL_SAFE_NO_PAD.decode(&sealed).expect("base64");
        for at in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            assert_eq!(sealer.open_bytes(Purpose::State, &URL_SAFE_NO_PAD.encode(forged), b"a"), None, "byte {at}");
        }
        for text in ["", "AQ", "====", &"A".repeat(SEALED_BYTES_MAX + 4), &URL_SAFE_NO_PAD.encode([FORMAT; 60])] {
            assert_eq!(sealer.open_bytes(Purpose::State, text, b"a"), None);
        }
        assert_eq!(sealer.seal_bytes(Purpose::State, &vec![0; SEALED_BYTES_MAX], b""), None, "too long to come back");
    }

    #[test]
    fn keys_are_hex_or_base64_of_enough_bytes_and_are_never_shown() {
        let padded = Key::parse(FIRST).expect("padded");
        assert_eq!(Key::parse(FIRST.trim_end_matches('=')), Ok(padded.clone()));
        assert_eq!(Key::parse(&format!(" {FIRST}\n")), Ok(padded.clone()));
        assert_eq!(Key::parse(&SECOND.to_uppercase()), Key::parse(SECOND));
        assert_eq!(Key::parse(&"_-8_".repeat(11)), Key::parse(&"/+8/".repeat(11)));
        assert_eq!(Key::parse(&"f0".repeat(31)), Err(KeyError::Short));
        assert_eq!(Key::parse("dG9vIHNob3J0"), Err(KeyError::Short));
        for bad in ["", "a passphrase is no key, however long it may be!!", &format!("{FIRST}\n{FIRST}")] {
            assert!(Key::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(format!("{padded:?}"), "Key(***)");
    }
}
