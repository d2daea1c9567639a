//! How far the shutdown of a node has come. Everything that runs looks at this one thing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio_util::sync::CancellationToken;

/// The phases of a node's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// All is well.
    Running,
    /// Nothing more is accepted; what was accepted is delivered and answered.
    Draining,
    /// The grace is over: what still waits for anyone is given up, and its senders are told.
    GivingUp,
    /// The sessions of clients end, if they have not.
    Closing,
    /// Goodbyes are said; no link is made or taken in any more.
    Leaving,
    /// Everything ends.
    Stopped,
}

/// How many phases can be waited for: all but the first.
const COMING: usize = Phase::Stopped as usize;

/// Leads a node through its phases. When it is dropped, all phases are over.
#[derive(Debug)]
pub(crate) struct Lead(Follow);

/// Follows a node through its phases.
///
/// One token a phase, and not one value that changes: what waits for a token is 64 bytes, and each client has several.
#[derive(Debug, Clone)]
pub(crate) struct Follow(Arc<State>);

#[derive(Debug)]
struct State {
    now: AtomicU8,
    come: [CancellationToken; COMING],
}

/// The two ends, at [`Phase::Running`].
pub(crate) fn phases() -> (Lead, Follow) {
    let follow = Follow(Arc::new(State {
        now: AtomicU8::new(Phase::Running as u8),
        come: Default::default(),
    }));
    (Lead(follow.clone()), follow)
}

impl Lead {
    /// Goes on to a phase. Phases never go back.
    pub(crate) fn enter(&self, phase: Phase) {
        let state = &self.0.0;
        state.now.fetch_max(phase as u8, Ordering::AcqRel);
        for come in state.come.iter().take(phase as usize) {
            come.cancel();
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.enter(Phase::Stopped);
    }
}

impl Follow {
    /// Whether this phase has come, or is over.
    pub(crate) fn has_reached(&self, phase: Phase) -> bool {
        self.0.now.load(Ordering::Acquire) >= phase as u8
    }

    /// Waits until this phase has come. Cancel safe.
    pub(crate) async fn reached(&self, phase: Phase) {
        // None for the first, which has come.
        if let Some(come) = (phase as usize).checked_sub(1).and_then(|index| self.0.come.get(index)) {
            come.cancelled().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn phases_come_in_order_and_end_with_their_lead() {
        let (lead, follow) = phases();
        assert!(!follow.has_reached(Phase::Draining));
        lead.enter(Phase::Closing);
        lead.enter(Phase::Draining);
        assert!(follow.has_reached(Phase::Draining) && follow.has_reached(Phase::Closing));
        assert!(follow.reached(Phase::Closing).now_or_never().is_some());
        assert!(follow.reached(Phase::Leaving).now_or_never().is_none());
        drop(lead);
        assert!(follow.has_reached(Phase::Stopped));
        assert!(follow.reached(Phase::Stopped).now_or_never().is_some());
    }
}
