//! Certificates that `trunkline certs` would never make.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose as Purpose, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
    date_time_ymd,
};

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    Expired,
    NotYetValid,
    SelfSigned,
    /// Good for so many seconds from now.
    EndsIn(u64),
}

/// Writes a certificate and key with this URI to `STEM.pem` and `.key`: of the authority in `AUTHORITY.pem`, for
/// 127.0.0.1, good for servers and clients alike.
pub(crate) fn issue(dir: &Path, authority: &str, stem: &str, uri: &str, flaw: Flaw) {
    let read = |file: String| std::fs::read_to_string(dir.join(file)).unwrap();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        SanType::URI(uri.try_into().unwrap()),
        SanType::IpAddress([127, 0, 0, 1].into()),
    ];
    params.extended_key_usages = vec![Purpose::ServerAuth, Purpose::ClientAuth];
    match flaw {
        Flaw::Expired => params.not_after = date_time_ymd(2020, 1, 1),
        Flaw::NotYetValid => params.not_before = date_time_ymd(4000, 1, 1),
        Flaw::EndsIn(seconds) => {
            let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            params.not_after = date_time_ymd(1970, 1, 1) + since_epoch + Duration::from_secs(seconds);
        }
        Flaw::None | Flaw::SelfSigned => {}
    }
    let certificate = if flaw == Flaw::SelfSigned {
        params.self_signed(&key).unwrap()
    } else {
        let signer = KeyPair::from_pem(&read(format!("{authority}.key"))).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read(format!("{authority}.pem")), signer).unwrap();
        params.signed_by(&key, &issuer).unwrap()
    };
    std::fs::write(dir.join(format!("{stem}.pem")), certificate.pem()).unwrap();
    std::fs::write(dir.join(format!("{stem}.key")), key.serialize_pem()).unwrap();
}

/// Puts a file in the place of another, whole, as a careful administrator does.
pub(crate) fn put(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    std::fs::copy(from, &beside).unwrap();
    std::fs::rename(&beside, to).unwrap();
}
