//! The keys of tokens, as files of the certificate directory, and what is made with them.
//!
//! | file | what it is | who needs it |
//! |---|---|---|
//! | `token.pem` | one or several Ed25519 public keys (SPKI in PEM) | nodes |
//! | `token.key` | the private key of the first (PKCS#8 in PEM) | who makes tokens |
//! | `token.secret` | a secret for HS256: at least 32 bytes in base64 | nodes, and who makes tokens |

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PKCS_ED25519};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};

use super::token::{Claims, Keys, LEAST_SECRET, NewToken};
use crate::certs::{is_cluster, write_new};
use crate::tls::credentials::{Stamp, stamp};

/// The public keys, one or several: so a key is changed by adding the next one, making all tokens anew, and taking the
/// first one away.
const PUBLIC: &str = "token.pem";

/// The private key that tokens are signed with.
const PRIVATE: &str = "token.key";

/// The secret, where one program makes and judges tokens.
const SECRET: &str = "token.secret";

/// How many public keys there may be: each is tried in turn.
const MOST_KEYS: usize = 8;

/// What comes before the 32 bytes of an Ed25519 key in its SPKI form (RFC 8410, section 4).
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Why the key files of a certificate directory are of no use: which, what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    #[error(
        "{0} has neither token.pem nor token.secret, which tokens are judged by; `trunkline token --certs {0} …` makes the \
         first with the first token, where tokens are to be made"
    )]
    None(String),
    #[error("{0}: it can't be read: {1}; let the user that runs this read it")]
    Unreadable(String, std::io::Error),
    #[error(
        "{0}: there is no public key in PEM in it, or one of another kind than Ed25519; put only those of tokens there"
    )]
    NoKey(String),
    #[error("{0}: there are more than {MOST_KEYS} keys in it; take out those that no token is signed with any more")]
    ManyKeys(String),
    #[error("{0}: it is not at least {LEAST_SECRET} bytes in base64; make one by `openssl rand -base64 48`")]
    NoSecret(String),
}

/// Reads the keys that tokens are judged by.
pub(crate) fn read_keys(dir: &Path) -> Result<Keys, KeyFileError> {
    let public = public_keys(dir)?;
    let secret = read_secret(dir)?;
    if public.is_empty() && secret.is_none() {
        return Err(KeyFileError::None(dir.display().to_string()));
    }
    Ok(Keys::new(&public, secret.as_deref()))
}

fn read(dir: &Path, file: &str) -> Result<Option<Vec<u8>>, KeyFileError> {
    let path = dir.join(file);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KeyFileError::Unreadable(path.display().to_string(), error)),
    }
}

fn public_keys(dir: &Path) -> Result<Vec<[u8; 32]>, KeyFileError> {
    let path = || dir.join(PUBLIC).display().to_string();
    let Some(pem) = read(dir, PUBLIC)? else {
        return Ok(Vec::new());
    };
    let key = |spki: &SubjectPublicKeyInfoDer<'_>| {
        let key = spki.strip_prefix(&ED25519_SPKI)?;
        <[u8; 32]>::try_from(key).ok()
    };
    let keys: Option<Vec<_>> = SubjectPublicKeyInfoDer::pem_slice_iter(&pem)
        .map(|spki| key(&spki.ok()?))
        .collect();
    match keys {
        Some(keys) if keys.len() > MOST_KEYS => Err(KeyFileError::ManyKeys(path())),
        Some(keys) if !keys.is_empty() => Ok(keys),
        _ => Err(KeyFileError::NoKey(path())),
    }
}

fn read_secret(dir: &Path) -> Result<Option<Vec<u8>>, KeyFileError> {
    let Some(text) = read(dir, SECRET)? else {
        return Ok(None);
    };
    match STANDARD.decode(text.trim_ascii()) {
        Ok(secret) if secret.len() >= LEAST_SECRET => Ok(Some(secret)),
        _ => Err(KeyFileError::NoSecret(dir.join(SECRET).display().to_string())),
    }
}

/// By what a change of the files is noticed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamps([Stamp; 2]);

impl Stamps {
    pub(crate) fn of(dir: &Path) -> Self {
        Self([PUBLIC, SECRET].map(|file| stamp(&dir.join(file))))
    }
}

/// What a token is to be signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningKey {
    /// The private key `token.key`, which is made with `token.pem` if neither is there.
    Private,
    /// The secret `token.secret`.
    Secret,
}

/// A token that was made.
#[derive(Debug)]
pub struct Issued {
    /// The token.
    pub token: String,
    /// The files that were made for it.
    pub made: Vec<PathBuf>,
}

/// Makes a token with the keys in a certificate directory.
///
/// # Errors
///
/// The token can't be made as it is wanted (the subject is an id that nodes give out by themselves, the cluster's name is none, the token
/// would be over 4,096 bytes), or a key can't be read, used or made. The text says which and what to do.
pub fn issue(dir: &Path, wanted: NewToken, key: SigningKey) -> anyhow::Result<Issued> {
    ensure!(
        !wanted.subject.is_temporary(),
        "{} has the form of the ids that nodes give out by themselves: use another character than the digits 1 to 9",
        wanted.subject
    );
    ensure!(
        is_cluster(&wanted.cluster),
        "{:?} is no name for a cluster: 1 to 63 letters, digits, '-' or '.'",
        wanted.cluster
    );
    let cluster = wanted.cluster.clone();
    let now = SystemTime::now();
    ensure!(
        now.checked_add(wanted.life).is_some(),
        "no clock goes that far: let the token expire earlier"
    );
    let claims = Claims::new(wanted, now);
    let mut made = Vec::new();
    let token = match key {
        SigningKey::Private => {
            let key = private_key(dir, &mut made)?;
            claims.sign(&key)
        }
        SigningKey::Secret => {
            let secret = read_secret(dir)?;
            let secret = secret.with_context(|| {
                format!(
                    "{} is not there: make it by `openssl rand -base64 48`, readable to its owner alone",
                    dir.join(SECRET).display()
                )
            })?;
            claims.sign_with_secret(&secret)
        }
    };
    let token = token.context("the key can't be used to sign")?;
    // It has to hold where it will be shown: its length, its key among those that nodes have.
    if let Err(error) = read_keys(dir)?.judge(&token, &cluster, now) {
        bail!("the token would not be accepted: {error}");
    }
    Ok(Issued { token, made })
}

/// The private key, made if there is none.
fn private_key(dir: &Path, made: &mut Vec<PathBuf>) -> anyhow::Result<PrivatePkcs8KeyDer<'static>> {
    let (private, public) = (dir.join(PRIVATE), dir.join(PUBLIC));
    match fs::read(&private) {
        Ok(pem) => {
            ensure!(
                public.exists(),
                "{} is there without {}: put that back, or remove the first to begin anew",
                private.display(),
                public.display()
            );
            PrivatePkcs8KeyDer::from_pem_slice(&pem)
                .with_context(|| format!("{} has no private key in PEM (PKCS#8)", private.display()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            ensure!(
                !public.exists(),
                "{} is there and {} is not: make tokens where that is, or remove the first to begin anew",
                public.display(),
                private.display()
            );
            fs::create_dir_all(dir).with_context(|| format!("can't make the directory {}", dir.display()))?;
            let pair = KeyPair::generate_for(&PKCS_ED25519).context("can't make a key")?;
            for (path, pem, mode) in [
                (private, pair.serialize_pem(), 0o600),
                (public, pair.public_key_pem(), 0o644),
            ] {
                write_new(&path, pem.as_bytes(), mode).with_context(|| format!("can't write {}", path.display()))?;
                made.push(path);
            }
            Ok(PrivatePkcs8KeyDer::from(pair.serialize_der()))
        }
        Err(error) => Err(error).with_context(|| format!("can't read {}", private.display())),
    }
}

/// What a token says, and whether it would be accepted.
#[derive(Debug)]
pub struct Shown {
    /// Its claims as it has them, in JSON.
    pub claims: String,
    /// Why the keys in the directory do not accept it, if they do not.
    pub refused: Option<String>,
}

/// Reads a token, and judges it by the keys in a certificate directory as a node of this cluster would.
///
/// # Errors
///
/// It is no JSON Web Token, or the keys can't be read.
pub fn show(dir: &Path, token: &str, cluster: &str) -> anyhow::Result<Shown> {
    let token = token.trim_ascii();
    let payload = token
        .split('.')
        .nth(1)
        .context("this is no JSON Web Token: it has not three parts")?;
    let payload = URL_SAFE_NO_PAD.decode(payload).context("this is no JSON Web Token")?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).context("this is no JSON Web Token")?;
    let judged = read_keys(dir)?.judge(token, cluster, SystemTime::now());
    Ok(Shown {
        claims: serde_json::to_string_pretty(&claims)?,
        refused: judged.err().map(|error| error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn wanted(subject: &str) -> NewToken {
        NewToken {
            subject: subject.parse().unwrap(),
            cluster: "eu-1".to_owned(),
            life: Duration::from_secs(60),
            permissions: Default::default(),
        }
    }

    fn judge(dir: &Path, token: &str) -> Result<(), String> {
        let keys = read_keys(dir).map_err(|error| error.to_string())?;
        let judged = keys.judge(token, "eu-1", SystemTime::now());
        judged.map(|_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_first_token_brings_its_keys_and_the_next_one_uses_them() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let first = issue(dir.path(), wanted("bob"), SigningKey::Private).unwrap();
        let (private, public) = (dir.path().join(PRIVATE), dir.path().join(PUBLIC));
        assert_eq!(first.made, [private.clone(), public.clone()]);
        assert_eq!(fs::metadata(&private).unwrap().permissions().mode() & 0o777, 0o600);
        let second = issue(dir.path(), wanted("ann"), SigningKey::Private).unwrap();
        assert!(second.made.is_empty());
        for issued in [first, second] {
            assert_eq!(judge(dir.path(), &issued.token), Ok(()));
        }
        let shown = show(dir.path(), "x.eyJzdWIiOiJib2IifQ.y", "eu-1").unwrap();
        assert!(shown.refused.is_some() && shown.claims.contains("bob"), "{shown:?}");

        fs::remove_file(&public).unwrap();
        let error = issue(dir.path(), wanted("bob"), SigningKey::Private)
            .unwrap_err()
            .to_string();
        assert!(error.contains("token.pem"), "{error}");
        fs::rename(&private, &public).unwrap();
        let error = issue(dir.path(), wanted("bob"), SigningKey::Private)
            .unwrap_err()
            .to_string();
        assert!(error.contains("token.key is not"), "{error}");
    }

    #[test]
    fn a_key_is_changed_by_having_two_for_a_while() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let old = issue(dir.path(), wanted("bob"), SigningKey::Private).unwrap().token;
        let new = issue(other.path(), wanted("bob"), SigningKey::Private).unwrap().token;
        let pem = |dir: &tempfile::TempDir| fs::read_to_string(dir.path().join(PUBLIC)).unwrap();
        let (old_key, new_key) = (pem(&dir), pem(&other));
        for (keys, of_old, of_new) in [
            (old_key.clone(), true, false),
            (format!("{old_key}{new_key}"), true, true),
            (new_key, false, true),
        ] {
            fs::write(dir.path().join(PUBLIC), keys).unwrap();
            assert_eq!(judge(dir.path(), &old).is_ok(), of_old);
            assert_eq!(judge(dir.path(), &new).is_ok(), of_new);
        }
    }

    #[test]
    fn tokens_can_be_made_with_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let error = issue(dir.path(), wanted("bob"), SigningKey::Secret)
            .unwrap_err()
            .to_string();
        assert!(error.contains("token.secret is not there"), "{error}");
        let secret = |bytes: usize| format!("{}\n", STANDARD.encode(vec![7; bytes]));
        fs::write(dir.path().join(SECRET), secret(LEAST_SECRET)).unwrap();
        let issued = issue(dir.path(), wanted("bob"), SigningKey::Secret).unwrap();
        assert!(issued.made.is_empty());
        assert_eq!(judge(dir.path(), &issued.token), Ok(()));
    }

    #[test]
    fn what_is_wrong_with_key_files_is_said() {
        let rsa_like = "-----BEGIN PUBLIC KEY-----\nMAsGCSqGSIb3DQEBAQ==\n-----END PUBLIC KEY-----\n";
        let dir = tempfile::tempdir().unwrap();
        let issued = issue(dir.path(), wanted("bob"), SigningKey::Private).unwrap();
        let pem = fs::read_to_string(dir.path().join(PUBLIC)).unwrap();
        let short = STANDARD.encode([7; LEAST_SECRET - 1]);
        for (file, text, wrong) in [
            (PUBLIC, String::new(), "no public key"),
            (PUBLIC, "nonsense".to_owned(), "no public key"),
            (PUBLIC, rsa_like.to_owned(), "another kind"),
            (PUBLIC, format!("{pem}{rsa_like}"), "another kind"),
            (PUBLIC, pem.repeat(MOST_KEYS + 1), "more than 8"),
            (SECRET, String::new(), "at least 32"),
            (SECRET, "not base64!".to_owned(), "at least 32"),
            (SECRET, short, "at least 32"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(PUBLIC), &pem).unwrap();
            assert_eq!(judge(dir.path(), &issued.token), Ok(()));
            fs::write(dir.path().join(file), &text).unwrap();
            let error = judge(dir.path(), &issued.token).unwrap_err();
            assert!(error.contains(wrong) && error.contains(file), "{text:?}: {error}");
        }
        let error = judge(tempfile::tempdir().unwrap().path(), &issued.token).unwrap_err();
        assert!(error.contains("neither"), "{error}");
    }

    #[test]
    fn what_no_token_can_say_is_refused_before_a_key_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let endless = NewToken {
            life: Duration::MAX,
            ..wanted("bob")
        };
        let nowhere = NewToken {
            cluster: "a b".to_owned(),
            ..wanted("bob")
        };
        for wanted in [wanted("123456"), endless, nowhere] {
            let text = format!("{wanted:?}");
            assert!(issue(dir.path(), wanted, SigningKey::Private).is_err(), "{text}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
