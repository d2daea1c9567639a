//! How far the shutdown of a node has come. Everything that runs looks at this one thing.

use tokio::sync::watch;

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

/// Leads a node through its phases. When it is dropped, all phases are over.
#[derive(Debug)]
pub(crate) struct Lead(watch::Sender<Phase>);

/// Follows a node through its phases.
#[derive(Debug, Clone)]
pub(crate) struct Follow(watch::Receiver<Phase>);

/// The two ends, at [`Phase::Running`].
pub(crate) fn phases() -> (Lead, Follow) {
    let (lead, follow) = watch::channel(Phase::Running);
    (Lead(lead), Follow(follow))
}

impl Lead {
    /// Goes on to a phase. Phases never go back.
    pub(crate) fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }
}

impl Follow {
    /// Whether this phase has come, or is over.
    pub(crate) fn has_reached(&self, phase: Phase) -> bool {
        // An error: the node was dropped.
        *self.0.borrow() >= phase || self.0.has_changed().is_err()
    }

    /// Waits until this phase has come. Cancel safe.
    pub(crate) async fn reached(&self, phase: Phase) {
        let mut follow = self.0.clone();
        // An error: the node was dropped, and all phases with it.
        let _ = follow.wait_for(|now| *now >= phase).await;
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
