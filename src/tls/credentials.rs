//! What a node knows itself and others by, kept up to date while it runs.
//!
//! The certificate directory is looked at every second, by the times and sizes of the files: this works for files that are
//! replaced, for directories that are links (as in mounted secrets) and over network file systems, where notices of change
//! do not come. What is read whole and without fault takes the place of what was there; a fault is reported, and what was
//! there stays in force.
//!
//! Those who were let in by a certificate are on a [roll](Credentials::admit). When trust has changed each of them is
//! judged anew, and whoever would not be let in any more is closed, as is whoever's certificate is over.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use dashmap::DashMap;
use parking_lot::Mutex;
use rustls::CertificateError;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::sync::Notify;
use tokio::task::JoinError;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{error, info, warn};

use super::files::valid_until;
use super::{ClientCertificates, NodeTls, TlsError, peer_chain};
use crate::address::NodeName;
use crate::carrier::close;
use crate::certs::{CLIENT_CA, NODE_CA, node_stem};
use crate::phase::{Follow, Phase};
use crate::transport::Connection;

/// How often the files, and who is on the roll, are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Each so manyth look the files are read though they have not changed, while something is wrong with them.
const LOOKS_WITH_FAULTS: u32 = 10;

/// What was read, and what is wrong with the parts that it leaves as they were.
type Read = (Result<NodeTls, TlsError>, Vec<TlsError>);

/// From when on the end of a certificate or a revocation list is warned of: what is left of it.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Whose authority a connection was let in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The node authority's.
    Node,
    /// The client authority's.
    Client,
}

/// What a node knows itself and others by.
#[derive(Debug)]
pub(crate) struct Credentials {
    dir: PathBuf,
    name: NodeName,
    certificates: ClientCertificates,
    current: Mutex<Arc<NodeTls>>,
    /// How often the node's own certificate has changed.
    shown: AtomicU64,
    roll: DashMap<u64, Listed>,
    next: AtomicU64,
    wanted: Notify,
    /// Of the files, before they were read.
    stamps: Mutex<Stamps>,
}

#[derive(Debug)]
struct Listed {
    role: Role,
    guest: Arc<dyn Guest>,
    chain: Arc<[CertificateDer<'static>]>,
    until: SystemTime,
}

/// Who was let in by a certificate.
pub(crate) trait Guest: fmt::Debug + Send + Sync {
    /// Ends it, as its certificate is no good any more. May come more than once.
    fn turn_out(&self, why: &str);
}

/// What the other side of whatever is closed for its certificate is told.
pub(crate) const TURNED_OUT: &str = "the certificate is no good any more";

impl Guest for Connection {
    fn turn_out(&self, why: &str) {
        if self.close_reason().is_none() {
            warn!(remote = %self.remote_address(), "closed a connection, as its certificate is no good any more: {why}");
            self.close(close::IDENTITY, TURNED_OUT.as_bytes());
        }
    }
}

/// Someone's place on the roll, until it is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    key: u64,
    credentials: Arc<Credentials>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.credentials.roll.remove(&self.key);
    }
}

/// Why a connection is not let in by its certificate, though the handshake let it.
#[derive(Debug, thiserror::Error)]
#[error("its certificate is no good any more: {0}")]
pub(crate) struct NoGood(String);

impl Credentials {
    /// Reads and checks the files of a node.
    pub(crate) fn load(dir: &Path, name: &NodeName, certificates: ClientCertificates) -> Result<Arc<Self>, TlsError> {
        let stamps = Stamps::of(dir, name);
        let tls = NodeTls::load(dir, name, certificates)?;
        Ok(Arc::new(Self {
            dir: dir.to_owned(),
            name: name.clone(),
            certificates,
            current: Mutex::new(Arc::new(tls)),
            shown: AtomicU64::new(0),
            roll: DashMap::new(),
            next: AtomicU64::new(0),
            wanted: Notify::new(),
            stamps: Mutex::new(stamps),
        }))
    }

    /// What is in force now.
    pub(crate) fn current(&self) -> Arc<NodeTls> {
        Arc::clone(&self.current.lock())
    }

    /// How often the node's own certificate has changed: who was shown an earlier one is to be shown the present.
    pub(crate) fn shown(&self) -> u64 {
        self.shown.load(Ordering::Acquire)
    }

    /// Has the files read at once.
    pub(crate) fn reload(&self) {
        self.wanted.notify_one();
    }

    /// Lets a connection in for as long as the certificates that it showed are good.
    pub(crate) fn admit(self: &Arc<Self>, role: Role, connection: &Connection) -> Result<Entry, NoGood> {
        let chain = peer_chain(connection).unwrap_or_default();
        self.admit_by(role, chain, Arc::new(connection.clone()))
    }

    /// Lets someone in for as long as these certificates, which it has proved, are good.
    pub(crate) fn admit_by(
        self: &Arc<Self>,
        role: Role,
        chain: Vec<CertificateDer<'static>>,
        guest: Arc<dyn Guest>,
    ) -> Result<Entry, NoGood> {
        let unreadable = || NoGood("it can't be read".to_owned());
        let chain: Arc<[_]> = chain.into();
        let until = valid_until(&chain).ok_or_else(unreadable)?;
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let listed = Listed {
            role,
            guest,
            chain: Arc::clone(&chain),
            until,
        };
        self.roll.insert(key, listed);
        let entry = Entry {
            key,
            credentials: Arc::clone(self),
        };
        // Trust may have changed since the handshake: who comes too late for the one judgement is in time for the other.
        self.judge(role, &chain).map_err(NoGood)?;
        Ok(entry)
    }

    /// Why these certificates would not be let in now, if so.
    fn judge(&self, role: Role, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let current = self.current();
        let trust = match role {
            Role::Node => Some(&current.nodes),
            Role::Client => current.clients.as_ref(),
        };
        let Some(trust) = trust else {
            return Err("certificates of clients are not asked for".to_owned());
        };
        match trust.judge(chain, UnixTime::now()) {
            // What is missing is the new list. Nobody new gets in without it; to end all that is there would not help.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. },
            ))
            | Ok(()) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Looks after files and roll until the node stops. `apply` is given what is in force from now on.
    pub(crate) async fn watch(self: Arc<Self>, phase: Follow, apply: impl Fn(&NodeTls)) {
        // Side by side: a file system may take its time, or never answer, and what is over is over.
        tokio::select! {
            biased;
            () = phase.reached(Phase::Stopped) => {}
            never = self.end_those_over() => never,
            never = self.read_again(apply) => never,
        }
    }

    /// Closes whoever's certificate is over, and warns of what ends soon. Never ends.
    async fn end_those_over<N>(&self) -> N {
        let mut look = looks();
        let mut notices = Vec::new();
        loop {
            look.tick().await;
            self.close_those_over(SystemTime::now());
            let due = self.current().notices(SystemTime::now());
            for notice in due.iter().filter(|notice| !notices.contains(*notice)) {
                warn!(name = %self.name, "{notice}");
            }
            notices = due;
        }
    }

    /// Reads the files when they have changed, or that is wanted, and puts what they hold in force. Never ends.
    async fn read_again<N>(self: &Arc<Self>, apply: impl Fn(&NodeTls)) -> N {
        let mut look = looks();
        let mut faults: Vec<String> = Vec::new();
        let mut looks_with_faults = 0u32;
        loop {
            let wanted = tokio::select! {
                biased;
                () = self.wanted.notified() => true,
                _ = look.tick() => false,
            };
            looks_with_faults = if faults.is_empty() { 0 } else { looks_with_faults + 1 };
            // A file that was being written may have had its last time stamp before its last byte.
            let again = looks_with_faults % LOOKS_WITH_FAULTS == 1;
            let (made, new) = match self.read_if_changed(wanted || again).await {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) => {
                    error!(name = %self.name, "reading the certificates failed: {error}");
                    continue;
                }
            };
            let mut now: Vec<String> = new.iter().map(ToString::to_string).collect();
            match made {
                Ok(tls) => self.take_up(tls, now.is_empty(), &apply).await,
                Err(error) => now.push(error.to_string()),
            }
            for fault in now.iter().filter(|fault| !faults.contains(*fault)) {
                error!(name = %self.name, "new certificates are of no use, the old ones stay in force: {fault}");
            }
            faults = now;
        }
    }

    /// Reads the files if they have changed.
    async fn read_if_changed(self: &Arc<Self>, anyway: bool) -> Result<Option<Read>, JoinError> {
        let this = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let stamps = Stamps::of(&this.dir, &this.name);
            if !anyway && stamps == *this.stamps.lock() {
                return None;
            }
            *this.stamps.lock() = stamps;
            Some(this.current().load_again(&this.dir, this.certificates))
        });
        read.await
    }

    /// Puts in force what was read, and judges all by it.
    async fn take_up(&self, tls: NodeTls, whole: bool, apply: &impl Fn(&NodeTls)) {
        // While one part is at fault the others are read again and again.
        if !whole && tls.is(&self.current()) {
            return;
        }
        let tls = Arc::new(tls);
        let old = std::mem::replace(&mut *self.current.lock(), Arc::clone(&tls));
        apply(&tls);
        if old.own.chain != tls.own.chain {
            self.shown.fetch_add(1, Ordering::AcqRel);
        }
        let what = if whole {
            "the certificates were"
        } else {
            "a part of the certificates was"
        };
        info!(name = %self.name, "{what} read again, and in force from now on");
        self.judge_all().await;
    }

    /// Closes all who would not be let in any more.
    async fn judge_all(&self) {
        let listed: Vec<_> = self
            .roll
            .iter()
            .map(|listed| (listed.role, Arc::clone(&listed.guest), Arc::clone(&listed.chain)))
            .collect();
        for (role, guest, chain) in listed {
            if let Err(why) = self.judge(role, &chain) {
                guest.turn_out(&why);
            }
            // Signatures are checked, and there may be many: the others have their turns.
            tokio::task::yield_now().await;
        }
    }

    fn close_those_over(&self, now: SystemTime) {
        for listed in self.roll.iter().filter(|listed| listed.until < now) {
            listed.guest.turn_out("it has expired");
        }
    }
}

/// The pace at which files, and those who were let in by them, are looked at.
pub(crate) fn looks() -> Interval {
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    look
}

impl NodeTls {
    /// What ends soon, for whoever runs the node.
    fn notices(&self, now: SystemTime) -> Vec<String> {
        let of_clients = self.clients.as_ref().and_then(|trust| trust.lists_until());
        let ends = [
            ("the node's certificate", Some(self.own.until)),
            ("the list of revoked nodes (node-ca.crl)", self.nodes.lists_until()),
            ("the list of revoked clients (client-ca.crl)", of_clients),
        ];
        let notice = |(what, until): (&str, Option<SystemTime>)| match until?.duration_since(now) {
            Ok(left) if left > SOON => None,
            Ok(left) => Some(format!("{what} ends in {}: renew it", roughly(left))),
            Err(_) => Some(format!("{what} is over, and connections are refused for it: renew it")),
        };
        ends.into_iter().filter_map(notice).collect()
    }
}

/// In units so large that the text changes rarely.
fn roughly(left: Duration) -> String {
    const HOUR: u64 = 60 * 60;
    match left.as_secs() {
        seconds if seconds >= 48 * HOUR => format!("{} days", seconds / (24 * HOUR)),
        seconds if seconds >= HOUR => format!("{} hours", seconds.div_ceil(HOUR)),
        _ => "less than an hour".to_owned(),
    }
}

/// By what a change of the files is noticed.
#[derive(Debug, PartialEq, Eq)]
struct Stamps(Vec<Stamp>);

/// When a file was changed, its length and its number; `None` if it is not there.
pub(crate) type Stamp = Option<(SystemTime, u64, u64)>;

/// The stamp of a file.
pub(crate) fn stamp(file: &Path) -> Stamp {
    let file = std::fs::metadata(file).ok()?;
    Some((file.modified().ok()?, file.len(), inode(&file)))
}

impl Stamps {
    fn of(dir: &Path, name: &NodeName) -> Self {
        let own = node_stem(name);
        let files = [
            (NODE_CA, "pem"),
            (NODE_CA, "crl"),
            (CLIENT_CA, "pem"),
            (CLIENT_CA, "crl"),
            (&own, "pem"),
            (&own, "key"),
        ];
        let of = |(stem, extension): (&str, &str)| stamp(&dir.join(format!("{stem}.{extension}")));
        Self(files.into_iter().map(of).collect())
    }
}

#[cfg(unix)]
fn inode(file: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[cfg(not(unix))]
fn inode(_file: &std::fs::Metadata) -> u64 {
    0
}
