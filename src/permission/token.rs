//! Tokens: what they claim, who has signed them, and whether they hold.
//!
//! A token is a JSON Web Token (RFC 7519) in the compact form, signed with EdDSA (Ed25519, RFC 8037) or HS256. Which of
//! the two counts is a matter of the key: a token that names EdDSA is checked with public keys alone, one that names
//! HS256 with the secret alone, and one that names anything else with none.
//!
//! Pure: keys, the name of the cluster and the time go in, what the token grants comes out.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};

use super::{Grant, Pattern, Rates};
use crate::address::ClientId;

/// The longest token, in bytes: room for some fifty patterns.
pub(crate) const MAX_TOKEN: usize = 4096;

/// How far the clocks of who made a token and of who judges it may differ. Hosts that keep time at all are closer; and a
/// client is to be gone within 5 seconds of its token's end.
const LEEWAY: Duration = Duration::from_secs(2);

/// The least length of a secret, in bytes: that of the hash (RFC 7518, section 3.2).
pub(super) const LEAST_SECRET: usize = 32;

/// What a token says of its bearer, as an object `trunkline` among its claims. What is left out is not restricted.
///
/// A key that is not understood is an error: it may be a restriction.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Permissions {
    /// Which addresses it may send to; an empty list: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<Vec<Pattern>>,
    /// Whether messages to it are delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<bool>,
    /// How many messages it may send, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_rate: Option<NonZeroU32>,
    /// How many bytes of lines or bodies it may send, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub byte_rate: Option<NonZeroU32>,
}

/// What a token is to say.
#[derive(Debug, Clone, PartialEq)]
pub struct NewToken {
    /// Whose it is: the client's id on every node. Not one that nodes give out by themselves (digits from 1 to 9 alone).
    pub subject: ClientId,
    /// The cluster that it is for.
    pub cluster: String,
    /// How long it holds from now on.
    pub life: Duration,
    /// What its bearer may do.
    pub permissions: Permissions,
}

/// The claims of a token. Others than these mean nothing here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Claims {
    sub: String,
    aud: Audience,
    exp: NumericDate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<NumericDate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<NumericDate>,
    #[serde(default)]
    trunkline: Permissions,
}

/// Seconds since 1970, with or without a fraction (RFC 7519, section 2).
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(untagged)]
enum NumericDate {
    Whole(u64),
    Fraction(f64),
}

impl NumericDate {
    fn of(time: SystemTime) -> Self {
        Self::Whole(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }

    /// The time; `None` if there is no such time.
    fn time(self) -> Option<SystemTime> {
        let since = match self {
            Self::Whole(seconds) => Duration::from_secs(seconds),
            Self::Fraction(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        };
        UNIX_EPOCH.checked_add(since)
    }
}

/// Whom a token is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn includes(&self, cluster: &str) -> bool {
        match self {
            Self::One(one) => one == cluster,
            Self::Several(several) => several.iter().any(|one| one == cluster),
        }
    }
}

/// Why a token is not accepted. What stands behind the signature is told only once that was found good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// It is over the limit.
    #[error("it is longer than {MAX_TOKEN} bytes; ask for one with fewer patterns")]
    TooLong,
    /// It is no JSON Web Token of the kinds known.
    #[error("it is no JSON Web Token with EdDSA or HS256; give it whole, as it was made")]
    Unreadable,
    /// No key has signed it.
    #[error("its signature is unknown here; ask for a token from whoever runs this cluster")]
    UnknownSignature,
    /// It has expired.
    #[error("it has expired; ask for a new one")]
    Expired,
    /// Its time has not come.
    #[error("it is not valid yet; wait, or check the clocks")]
    NotYetValid,
    /// It is for someone else.
    #[error("it is not for this cluster; ask for one whose `aud` is this cluster's name")]
    OtherCluster,
    /// Its claims are not what they have to be.
    #[error("its claims can't be followed: {0}")]
    Claims(String),
}

/// Tells one key from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(kind: &[u8], key: &[u8]) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(kind);
        hash.update(key);
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(hash.finish().as_ref());
        Self(fingerprint)
    }
}

/// The keys that tokens are judged by.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    public: Vec<(Fingerprint, DecodingKey)>,
    secret: Option<(Fingerprint, DecodingKey)>,
}

/// Who a token says that its bearer is, and what that one may do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Login {
    /// The client's id.
    pub(crate) subject: ClientId,
    /// What it may do.
    pub(crate) grant: Grant,
    /// The key that has signed it.
    pub(crate) key: Fingerprint,
}

/// Has the library of tokens compute with what TLS does. It chooses by its features, and where another part of a program has
/// turned on its other backend as well it would panic instead.
fn choose_backend() {
    // Fails where it was chosen before.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
}

impl Keys {
    /// Keys of 32 bytes each (Ed25519), and a secret of at least as many.
    pub(crate) fn new(public: &[[u8; 32]], secret: Option<&[u8]>) -> Self {
        choose_backend();
        let public = public
            .iter()
            .map(|key| (Fingerprint::of(b"Ed25519 ", key), DecodingKey::from_ed_der(key)));
        Self {
            public: public.collect(),
            secret: secret.map(|key| (Fingerprint::of(b"HS256 ", key), DecodingKey::from_secret(key))),
        }
    }

    /// Whether this key is among them.
    pub(crate) fn has(&self, key: Fingerprint) -> bool {
        self.public
            .iter()
            .chain(&self.secret)
            .any(|(fingerprint, _)| *fingerprint == key)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.public.len() + usize::from(self.secret.is_some())
    }

    /// Judges a token for a node of this cluster.
    pub(crate) fn judge(&self, token: &str, cluster: &str, now: SystemTime) -> Result<Login, TokenError> {
        let (claims, key) = self.verify(token)?;
        let (subject, grant) = claims.follow(cluster, now)?;
        Ok(Login { subject, grant, key })
    }

    /// What a token that one of the keys has signed claims, and which.
    fn verify(&self, token: &str) -> Result<(Claims, Fingerprint), TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let header = decode_header(token).map_err(|_| TokenError::Unreadable)?;
        // It names extensions without which it must not be understood (RFC 7515, section 4.1.11). None is known here.
        if header.crit.is_some() {
            return Err(TokenError::Unreadable);
        }
        let keys = match header.alg {
            Algorithm::EdDSA => self.public.as_slice(),
            Algorithm::HS256 => self.secret.as_slice(),
            _ => return Err(TokenError::Unreadable),
        };
        let mut signed_only = Validation::new(header.alg);
        // The claims are looked at below, against the time that was given.
        signed_only.required_spec_claims.clear();
        (
            signed_only.validate_exp,
            signed_only.validate_nbf,
            signed_only.validate_aud,
        ) = (false, false, false);
        for (fingerprint, key) in keys {
            match decode::<Claims>(token, key, &signed_only) {
                Ok(decoded) => return Ok((decoded.claims, *fingerprint)),
                Err(error) => match error.kind() {
                    ErrorKind::InvalidSignature => {}
                    // The header was read before, and the signature is looked at before the claims.
                    ErrorKind::Json(error) => return Err(TokenError::Claims(error.to_string())),
                    _ => return Err(TokenError::Unreadable),
                },
            }
        }
        Err(TokenError::UnknownSignature)
    }
}

impl Claims {
    pub(super) fn new(wanted: NewToken, now: SystemTime) -> Self {
        Self {
            sub: wanted.subject.to_string(),
            aud: Audience::One(wanted.cluster),
            exp: NumericDate::of(now + wanted.life),
            nbf: None,
            iat: Some(NumericDate::of(now)),
            trunkline: wanted.permissions,
        }
    }

    /// Whose token it is and what it grants, if it does now and in this cluster.
    fn follow(self, cluster: &str, now: SystemTime) -> Result<(ClientId, Grant), TokenError> {
        let no_time = |name: &str| TokenError::Claims(format!("`{name}` is no time"));
        if !self.aud.includes(cluster) {
            return Err(TokenError::OtherCluster);
        }
        let end = self.exp.time().ok_or_else(|| no_time("exp"))?;
        let until = end.checked_add(LEEWAY).ok_or_else(|| no_time("exp"))?;
        if until <= now {
            return Err(TokenError::Expired);
        }
        if let Some(nbf) = self.nbf {
            let start = nbf.time().ok_or_else(|| no_time("nbf"))?;
            if start.checked_sub(LEEWAY).is_some_and(|start| start > now) {
                return Err(TokenError::NotYetValid);
            }
        }
        let subject: ClientId = self
            .sub
            .parse()
            .map_err(|error| TokenError::Claims(format!("`sub` is no client's name: {error}")))?;
        if subject.is_temporary() {
            let text = "`sub` has the form of the ids that nodes give out by themselves";
            return Err(TokenError::Claims(text.to_owned()));
        }
        let Permissions {
            send,
            receive,
            message_rate,
            byte_rate,
        } = self.trunkline;
        let grant = Grant {
            send: send.map(Into::into),
            receive: receive.unwrap_or(true),
            rates: Rates {
                messages: message_rate,
                bytes: byte_rate,
            },
            until: Some(until),
        };
        Ok((subject, grant))
    }

    /// Signs the claims with an Ed25519 key.
    pub(super) fn sign(&self, key: &PrivatePkcs8KeyDer<'_>) -> Result<String, jsonwebtoken::errors::Error> {
        choose_backend();
        let key = EncodingKey::from_ed_der(key.secret_pkcs8_der());
        encode(&Header::new(Algorithm::EdDSA), self, &key)
    }

    /// Signs the claims with a secret.
    pub(super) fn sign_with_secret(&self, secret: &[u8]) -> Result<String, jsonwebtoken::errors::Error> {
        choose_backend();
        encode(&Header::new(Algorithm::HS256), self, &EncodingKey::from_secret(secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use proptest::prelude::*;
    use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData as _};
    use serde_json::{Value, json};

    const NOW: u64 = 1_800_000_000;
    const SECRET: [u8; 40] = [7; 40];

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    /// A key pair, and what a node has of it.
    fn pair() -> (EncodingKey, [u8; 32]) {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let public = pair.der_bytes().try_into().unwrap();
        (EncodingKey::from_ed_der(&pair.serialize_der()), public)
    }

    fn claims() -> Value {
        json!({"sub": "bob", "aud": "eu-1", "exp": NOW + 60})
    }

    fn with(mut claims: Value, key: &str, value: Value) -> Value {
        claims[key] = value;
        claims
    }

    fn without(mut claims: Value, key: &str) -> Value {
        claims.as_object_mut().unwrap().remove(key);
        claims
    }

    fn sign(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, key).unwrap()
    }

    fn join(header: &Value, claims: &Value, signature: &[u8]) -> String {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (header, claims) = (header.to_string(), claims.to_string());
        format!(
            "{}.{}.{}",
            part(header.as_bytes()),
            part(claims.as_bytes()),
            part(signature)
        )
    }

    #[test]
    fn which_claims_are_accepted() {
        use TokenError::{Claims as Bad, Expired, NotYetValid, OtherCluster};
        let (signing, public) = pair();
        let keys = Keys::new(&[public], None);
        let permissions = |value: Value| with(claims(), "trunkline", value);
        let bad = || Err(Bad(String::new()));
        for (claims, judged) in [
            (claims(), Ok(())),
            (with(claims(), "aud", json!(["other", "eu-1"])), Ok(())),
            (with(claims(), "iss", json!({"anything": 1})), Ok(())),
            (with(claims(), "exp", json!(NOW as f64 + 0.5)), Ok(())),
            (with(claims(), "exp", json!(NOW - 1)), Ok(())),
            (with(claims(), "nbf", json!(NOW + 2)), Ok(())),
            (with(claims(), "nbf", json!(0)), Ok(())),
            (with(claims(), "sub", json!("123450")), Ok(())),
            (permissions(json!({})), Ok(())),
            (
                permissions(json!({"send": [], "receive": false, "message_rate": 1, "byte_rate": 1})),
                Ok(()),
            ),
            (with(claims(), "exp", json!(NOW - 2)), Err(Expired)),
            (with(claims(), "exp", json!(0)), Err(Expired)),
            (with(claims(), "nbf", json!(NOW + 3)), Err(NotYetValid)),
            (with(claims(), "nbf", json!(NOW as f64 + 2.5)), Err(NotYetValid)),
            (with(claims(), "aud", json!("trunkline")), Err(OtherCluster)),
            (with(claims(), "aud", json!("EU-1")), Err(OtherCluster)),
            (with(claims(), "aud", json!([])), Err(OtherCluster)),
            (without(claims(), "aud"), bad()),
            (without(claims(), "exp"), bad()),
            (without(claims(), "sub"), bad()),
            (with(claims(), "exp", json!(null)), bad()),
            (with(claims(), "exp", json!("1900000000")), bad()),
            (with(claims(), "exp", json!(-1)), bad()),
            (with(claims(), "exp", json!(1e300)), bad()),
            (with(claims(), "exp", json!(u64::MAX)), bad()),
            (with(claims(), "nbf", json!("soon")), bad()),
            (with(claims(), "nbf", json!(u64::MAX)), bad()),
            (with(claims(), "aud", json!(7)), bad()),
            (with(claims(), "sub", json!("")), bad()),
            (with(claims(), "sub", json!("a b")), bad()),
            (with(claims(), "sub", json!("x".repeat(65))), bad()),
            (with(claims(), "sub", json!("123456")), bad()),
            (permissions(json!(null)), bad()),
            (permissions(json!({"sends": ["*:*:*"]})), bad()),
            (permissions(json!({"send": "*:*:*"})), bad()),
            (permissions(json!({"send": ["bob"]})), bad()),
            (permissions(json!({"receive": "no"})), bad()),
            (permissions(json!({"message_rate": 0})), bad()),
            (permissions(json!({"message_rate": -1})), bad()),
            (permissions(json!({"byte_rate": 1.5})), bad()),
            (permissions(json!({"byte_rate": 1u64 << 32})), bad()),
            (json!([1]), bad()),
            (json!("bob"), bad()),
        ] {
            let token = sign(Algorithm::EdDSA, &signing, &claims);
            let found = keys.judge(&token, "eu-1", now());
            match (found.map(|_| ()), judged) {
                (Err(Bad(_)), Err(Bad(_))) => {}
                (found, judged) => assert_eq!(found, judged, "{claims}"),
            }
        }
    }

    #[test]
    fn a_key_that_comes_twice_is_an_error() {
        let (_, public) = pair();
        let keys = Keys::new(&[public], Some(&SECRET));
        let twice = r#"{"sub":"bob","aud":"eu-1","exp":1900000000,"exp":1,"trunkline":{}}"#;
        let head = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#),
            URL_SAFE_NO_PAD.encode(twice)
        );
        let signing = EncodingKey::from_secret(&SECRET);
        let signature = jsonwebtoken::crypto::sign(head.as_bytes(), &signing, Algorithm::HS256).unwrap();
        let judged = keys.judge(&format!("{head}.{signature}"), "eu-1", now());
        assert!(
            matches!(&judged, Err(TokenError::Claims(text)) if text.contains("duplicate")),
            "{judged:?}"
        );
    }

    #[test]
    fn what_is_left_out_is_not_restricted() {
        let (signing, public) = pair();
        let keys = Keys::new(&[public], None);
        let grant = |claims: Value| {
            let token = sign(Algorithm::EdDSA, &signing, &claims);
            keys.judge(&token, "eu-1", now()).unwrap().grant
        };
        let until = Some(now() + Duration::from_secs(60) + LEEWAY);
        let everything = Grant {
            until,
            ..Grant::everything()
        };
        assert_eq!(grant(claims()), everything);
        assert_eq!(grant(with(claims(), "trunkline", json!({}))), everything);
        let some = json!({"send": ["*:*:ann", "n:1:*"], "receive": false, "message_rate": 5, "byte_rate": 6});
        let some = grant(with(claims(), "trunkline", some));
        let may_send = ["n:2:ann", "n:1:x", "n:2:x"].map(|to| some.may_send(&to.parse().unwrap()));
        assert_eq!((may_send, some.receive), ([true, true, false], false));
        let rates = (
            some.rates.messages.map(NonZeroU32::get),
            some.rates.bytes.map(NonZeroU32::get),
        );
        assert_eq!(rates, (Some(5), Some(6)));
        let nobody = grant(with(claims(), "trunkline", json!({"send": []})));
        assert!(!nobody.may_send(&"n:1:x".parse().unwrap()) && nobody.receive);
    }

    #[test]
    fn a_signature_counts_only_by_the_kind_of_its_key() {
        use TokenError::{UnknownSignature, Unreadable};
        let (signing, public) = pair();
        let (stranger, strange) = pair();
        let secret = EncodingKey::from_secret(&SECRET);
        let ours = sign(Algorithm::EdDSA, &signing, &claims());
        let by_secret = sign(Algorithm::HS256, &secret, &claims());
        let theirs = sign(Algorithm::EdDSA, &stranger, &claims());
        // The confusion of algorithms: the public key, which is no secret, as the secret of an HMAC.
        let confused = sign(Algorithm::HS256, &EncodingKey::from_secret(&public), &claims());
        let other_hash = sign(Algorithm::HS512, &secret, &claims());
        let unsigned = join(&json!({"alg": "none"}), &claims(), b"");
        let unsigned_ours = join(&json!({"alg": "EdDSA"}), &claims(), b"");
        let renamed = {
            let (_, rest) = ours.split_once('.').unwrap();
            format!("{}.{rest}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#))
        };
        let raised = {
            let (signed, signature) = ours.rsplit_once('.').unwrap();
            let (header, _) = signed.split_once('.').unwrap();
            let more = with(claims(), "sub", json!("ann")).to_string();
            format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(more))
        };
        let critical = {
            let header = Header {
                crit: Some(vec!["b64".to_owned()]),
                ..Header::new(Algorithm::EdDSA)
            };
            encode(&header, &claims(), &signing).unwrap()
        };
        let both = Keys::new(&[strange, public], Some(&SECRET));
        let public_alone = Keys::new(&[public], None);
        let secret_alone = Keys::new(&[], Some(&SECRET));
        for (what, token, by_both, by_public, by_the_secret) in [
            ("ours", &ours, Ok(()), Ok(()), Err(UnknownSignature)),
            ("by secret", &by_secret, Ok(()), Err(UnknownSignature), Ok(())),
            ("theirs", &theirs, Ok(()), Err(UnknownSignature), Err(UnknownSignature)),
            (
                "confused",
                &confused,
                Err(UnknownSignature),
                Err(UnknownSignature),
                Err(UnknownSignature),
            ),
            (
                "other hash",
                &other_hash,
                Err(Unreadable),
                Err(Unreadable),
                Err(Unreadable),
            ),
            ("none", &unsigned, Err(Unreadable), Err(Unreadable), Err(Unreadable)),
            (
                "no signature",
                &unsigned_ours,
                Err(UnknownSignature),
                Err(UnknownSignature),
                Err(UnknownSignature),
            ),
            (
                "renamed",
                &renamed,
                Err(UnknownSignature),
                Err(UnknownSignature),
                Err(UnknownSignature),
            ),
            (
                "raised",
                &raised,
                Err(UnknownSignature),
                Err(UnknownSignature),
                Err(UnknownSignature),
            ),
            ("critical", &critical, Err(Unreadable), Err(Unreadable), Err(Unreadable)),
        ] {
            for (keys, judged) in [
                (&both, by_both),
                (&public_alone, by_public),
                (&secret_alone, by_the_secret),
            ] {
                let found = keys.judge(token, "eu-1", now()).map(|_| ());
                assert_eq!(found, judged, "{what} by {keys:?}");
            }
        }
        for text in [
            "",
            ".",
            "..",
            "a.b.c",
            "....",
            ours.get(..ours.len() / 2).unwrap(),
            &ours.replace('.', ""),
        ] {
            assert_eq!(both.judge(text, "eu-1", now()).map(|_| ()), Err(Unreadable), "{text}");
        }
        let long = with(claims(), "iss", json!("x".repeat(MAX_TOKEN)));
        let long = sign(Algorithm::EdDSA, &signing, &long);
        assert_eq!(both.judge(&long, "eu-1", now()).map(|_| ()), Err(TokenError::TooLong));
    }

    #[test]
    fn a_login_remembers_the_key_that_has_signed_it() {
        let ((signing, public), (_, strange)) = (pair(), pair());
        let token = sign(Algorithm::EdDSA, &signing, &claims());
        let login = Keys::new(&[strange, public], None)
            .judge(&token, "eu-1", now())
            .unwrap();
        assert!(Keys::new(&[public], None).has(login.key));
        assert!(!Keys::new(&[strange], None).has(login.key));
        // The same bytes as a secret are another key.
        assert!(!Keys::new(&[], Some(&public)).has(login.key));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(
            text in "\\PC{0,80}|[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,90}",
            payload in "\\PC{0,60}|\\{\"(sub|aud|exp|nbf|trunkline)\":\\PC{0,30}\\}",
        ) {
            let keys = Keys::new(&[[9; 32]], Some(&SECRET));
            prop_assert!(keys.judge(&text, "eu-1", now()).is_err());
            let head = format!("{}.{}", URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#), URL_SAFE_NO_PAD.encode(&payload));
            let signature =
                jsonwebtoken::crypto::sign(head.as_bytes(), &EncodingKey::from_secret(&SECRET), Algorithm::HS256).unwrap();
            let judged = keys.judge(&format!("{head}.{signature}"), "eu-1", now());
            prop_assert!(judged.is_err());
        }

        #[test]
        fn what_was_ordered_is_granted(
            subject in "[a-z]{1,20}", life in 1u64..1_000_000, receive in proptest::option::of(any::<bool>()),
            send in proptest::option::of(proptest::collection::vec("[a-z*]{1,5}:[1-9]{1,3}:[a-z*]{1,5}", 0..5)),
            message_rate in proptest::option::of(1u32..), byte_rate in proptest::option::of(1u32..),
        ) {
            let send: Option<Vec<Pattern>> =
                send.map(|send| send.iter().map(|pattern| pattern.parse().unwrap()).collect());
            let wanted = NewToken {
                subject: subject.parse().unwrap(),
                cluster: "eu-1".to_owned(),
                life: Duration::from_secs(life),
                permissions: Permissions {
                    send: send.clone(),
                    receive,
                    message_rate: message_rate.and_then(NonZeroU32::new),
                    byte_rate: byte_rate.and_then(NonZeroU32::new),
                },
            };
            let token = Claims::new(wanted, now()).sign_with_secret(&SECRET).unwrap();
            let login = Keys::new(&[], Some(&SECRET)).judge(&token, "eu-1", now()).unwrap();
            prop_assert_eq!(login.subject.as_str(), subject);
            let grant = Grant {
                send: send.map(Into::into),
                receive: receive.unwrap_or(true),
                rates: Rates {
                    messages: message_rate.and_then(NonZeroU32::new),
                    bytes: byte_rate.and_then(NonZeroU32::new),
                },
                until: Some(now() + Duration::from_secs(life) + LEEWAY),
            };
            prop_assert_eq!(login.grant, grant);
        }
    }
}
