//! Tokens, as they are made and as they should not be.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use trunkline::certs::DEFAULT_CLUSTER;
use trunkline::permission::{NewToken, Permissions, SigningKey, issue};

use super::Certs;

/// A time that no test lasts.
pub(crate) const LONG: Duration = Duration::from_secs(3600);

/// A token for the nodes with these certificates, and the keys for it if there are none.
pub(crate) fn token(certs: &Certs, subject: &str, life: Duration, permissions: Permissions) -> String {
    let wanted = NewToken {
        subject: subject.parse().unwrap(),
        cluster: DEFAULT_CLUSTER.to_owned(),
        life,
        permissions,
    };
    issue(certs.dir(), wanted, SigningKey::Private).unwrap().token
}

/// One that allows everything, for long.
pub(crate) fn free_token(certs: &Certs, subject: &str) -> String {
    token(certs, subject, LONG, Permissions::default())
}

/// Signs whatever claims with the key that the nodes know.
pub(crate) fn sign(certs: &Certs, claims: &Value) -> String {
    let key = PrivatePkcs8KeyDer::from_pem_file(certs.dir().join("token.key")).unwrap();
    let key = EncodingKey::from_ed_der(key.secret_pkcs8_der());
    encode(&Header::new(Algorithm::EdDSA), claims, &key).unwrap()
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
