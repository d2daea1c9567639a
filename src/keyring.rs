//! The keys of tokens, kept up to date while a node runs, and the clients that were let in by them.
//!
//! The files are looked at every second, as those of [certificates](crate::tls::credentials) are, and a fault leaves in
//! force what was there. A file that is gone is no fault: its keys are withdrawn. Each client that was let in by a token is
//! on a roll: when its token expires, or the key that has signed it is withdrawn, its [permit](Permit) is over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::address::Address;
use crate::permission::{Fingerprint, Grant, KeyFileError, Keys, Login, Stamps, TokenError, read_keys};
use crate::phase::{Follow, Phase};
use crate::tls::credentials::looks;

/// The keys of a node.
#[derive(Debug)]
pub(crate) struct Keyring {
    dir: PathBuf,
    cluster: String,
    current: Mutex<Arc<Keys>>,
    roll: DashMap<u64, Listed>,
    next: AtomicU64,
    wanted: Notify,
    /// Of the files, before they were read.
    stamps: Mutex<Stamps>,
}

/// Someone who was let in by a token.
#[derive(Debug)]
struct Listed {
    key: Fingerprint,
    until: Option<SystemTime>,
    over: CancellationToken,
}

impl Keyring {
    /// Reads the keys of a node.
    pub(crate) fn load(dir: &Path, cluster: &str) -> Result<Arc<Self>, KeyFileError> {
        let stamps = Stamps::of(dir);
        Ok(Arc::new(Self::with(dir, cluster, read_keys(dir)?, stamps)))
    }

    /// Of a node that takes no tokens.
    pub(crate) fn unused(dir: &Path, cluster: &str) -> Arc<Self> {
        Arc::new(Self::with(dir, cluster, Keys::default(), Stamps::default()))
    }

    fn with(dir: &Path, cluster: &str, keys: Keys, stamps: Stamps) -> Self {
        Self {
            dir: dir.to_owned(),
            cluster: cluster.to_owned(),
            current: Mutex::new(Arc::new(keys)),
            roll: DashMap::new(),
            next: AtomicU64::new(0),
            wanted: Notify::new(),
            stamps: Mutex::new(stamps),
        }
    }

    fn current(&self) -> Arc<Keys> {
        Arc::clone(&self.current.lock())
    }

    /// Has the files read at once.
    pub(crate) fn reload(&self) {
        self.wanted.notify_one();
    }

    /// Judges a token by the keys and the time.
    pub(crate) fn judge(&self, token: &str) -> Result<Login, TokenError> {
        self.current().judge(token, &self.cluster, SystemTime::now())
    }

    /// Lets a client do what its token grants, or everything if it was let in without one.
    pub(crate) fn permit(self: &Arc<Self>, login: Option<&Login>) -> Permit {
        let permit = Permit {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            keyring: Arc::clone(self),
            grant: Mutex::new(Grant::everything()),
            is_bounded: AtomicBool::new(false),
            over: CancellationToken::new(),
        };
        permit.renew(login);
        permit
    }

    /// Looks after files and roll until the node stops.
    pub(crate) async fn watch(self: Arc<Self>, phase: Follow) {
        // Side by side: a file system may take its time, or never answer, and what is over is over.
        tokio::select! {
            biased;
            () = phase.reached(Phase::Stopped) => {}
            never = self.look_at_the_roll() => never,
            never = self.read_again() => never,
        }
    }

    /// Ends whoever's token is over. Never ends.
    async fn look_at_the_roll<N>(&self) -> N {
        let mut look = looks();
        loop {
            look.tick().await;
            self.end_those_over(SystemTime::now());
        }
    }

    /// Reads the files when they have changed, or that is wanted. Never ends.
    async fn read_again<N>(self: &Arc<Self>) -> N {
        let mut look = looks();
        let mut failure: Option<String> = None;
        loop {
            let wanted = tokio::select! {
                biased;
                () = self.wanted.notified() => true,
                _ = look.tick() => false,
            };
            match self.read_if_changed(wanted || failure.is_some()).await {
                Ok(changed) => {
                    failure = None;
                    if changed {
                        self.judge_all();
                    }
                }
                Err(text) => {
                    if failure.as_ref() != Some(&text) {
                        error!("the new keys of tokens are of no use, the old ones stay in force: {text}");
                        failure = Some(text);
                    }
                }
            }
        }
    }

    /// Reads the files if they have changed, and puts what they hold in force. Says whether that was done.
    async fn read_if_changed(self: &Arc<Self>, anyway: bool) -> Result<bool, String> {
        let this = Arc::clone(self);
        // A file system may take its time.
        let read = tokio::task::spawn_blocking(move || {
            let stamps = Stamps::of(&this.dir);
            if !anyway && stamps == *this.stamps.lock() {
                return Ok(None);
            }
            *this.stamps.lock() = stamps;
            read_keys(&this.dir).map(Some)
        });
        let keys = match read.await.map_err(|error| error.to_string())? {
            Ok(None) => return Ok(false),
            Ok(Some(keys)) => {
                info!(
                    keys = keys.len(),
                    "the keys of tokens were read again, and are in force"
                );
                keys
            }
            Err(error @ KeyFileError::None(_)) => {
                warn!("all keys of tokens are withdrawn: {error}");
                Keys::default()
            }
            Err(error) => return Err(error.to_string()),
        };
        *self.current.lock() = Arc::new(keys);
        Ok(true)
    }

    /// Ends all whose key is gone.
    fn judge_all(&self) {
        let keys = self.current();
        for listed in self.roll.iter().filter(|listed| !keys.has(listed.key)) {
            listed.over.cancel();
        }
    }

    fn end_those_over(&self, now: SystemTime) {
        let over = |until: Option<SystemTime>| until.is_some_and(|until| until <= now);
        for listed in self.roll.iter().filter(|listed| over(listed.until)) {
            listed.over.cancel();
        }
    }
}

/// What a client may do, as long as what it has shown holds.
#[derive(Debug)]
pub(crate) struct Permit {
    number: u64,
    keyring: Arc<Keyring>,
    grant: Mutex<Grant>,
    /// What `grant` says, readable without its lock: most clients may send to all, and receive.
    is_bounded: AtomicBool,
    over: CancellationToken,
}

impl Permit {
    /// Whether the client may send to this address.
    pub(crate) fn may_send(&self, to: &Address) -> bool {
        !self.is_bounded.load(Ordering::Acquire) || self.grant.lock().may_send(to)
    }

    /// Whether messages to the client are delivered.
    pub(crate) fn may_receive(&self) -> bool {
        !self.is_bounded.load(Ordering::Acquire) || self.grant.lock().receive
    }

    fn set(&self, grant: Grant) {
        let mut current = self.grant.lock();
        self.is_bounded.store(grant.is_bounded(), Ordering::Release);
        *current = grant;
    }

    /// The client has shown a token, or a certificate in place of one: from now on that holds.
    pub(crate) fn renew(&self, login: Option<&Login>) {
        let Some(login) = login else {
            self.set(Grant::everything());
            self.keyring.roll.remove(&self.number);
            return;
        };
        self.set(login.grant.clone());
        let listed = Listed {
            key: login.key,
            until: login.grant.until,
            over: self.over.clone(),
        };
        self.keyring.roll.insert(self.number, listed);
        // The key may have gone since the token was judged: who comes too late for the one look is in time for the other.
        if !self.keyring.current().has(login.key) {
            self.over.cancel();
        }
    }

    /// Waits until what the client has shown holds no more. Cancel safe.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.keyring.roll.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::permission::{NewToken, Permissions, SigningKey, issue};
    use std::time::Duration;

    fn token(dir: &Path, seconds: u64) -> String {
        let wanted = NewToken {
            subject: "bob".parse().unwrap(),
            cluster: "test".to_owned(),
            life: Duration::from_secs(seconds),
            permissions: Permissions {
                receive: Some(false),
                ..Permissions::default()
            },
        };
        issue(dir, wanted, SigningKey::Private).unwrap().token
    }

    #[tokio::test]
    async fn a_permit_is_over_with_its_time_or_its_key_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let long = token(dir.path(), 1000);
        let keyring = Keyring::load(dir.path(), "test").unwrap();
        let login = |text: &str| keyring.judge(text).unwrap();
        let (soon, later) = (login(&token(dir.path(), 10)), login(&long));
        let [first, renewed, second, free] =
            [Some(&soon), Some(&soon), Some(&later), None].map(|login| keyring.permit(login));
        renewed.renew(Some(&later));
        assert!(!first.may_receive() && free.may_receive());
        let over = || [&first, &renewed, &second, &free].map(|permit| permit.over.is_cancelled());
        keyring.end_those_over(SystemTime::now() + Duration::from_secs(9));
        assert_eq!(over(), [false; 4]);
        keyring.end_those_over(SystemTime::now() + Duration::from_secs(13));
        assert_eq!(over(), [true, false, false, false]);

        assert_eq!(keyring.read_if_changed(false).await, Ok(false));
        std::fs::write(dir.path().join("token.pem"), "half a file").unwrap();
        assert!(keyring.read_if_changed(false).await.is_err());
        keyring.judge_all();
        assert_eq!(over(), [true, false, false, false], "a fault withdrew a key");
        assert!(keyring.judge(&long).is_ok());
        std::fs::remove_file(dir.path().join("token.pem")).unwrap();
        assert_eq!(keyring.read_if_changed(false).await, Ok(true));
        keyring.judge_all();
        assert_eq!(over(), [true, true, true, false]);
        assert_eq!(keyring.judge(&long), Err(TokenError::UnknownSignature));
        // One whose token was judged just before that.
        assert!(keyring.permit(Some(&later)).over.is_cancelled());
        // One who shows a certificate next.
        second.renew(None);
        assert!(second.may_receive());
        drop((first, renewed, second, free));
        assert!(keyring.roll.is_empty());
    }
}
