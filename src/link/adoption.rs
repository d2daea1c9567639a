//! Which of several connections between two nodes is the link.
//!
//! Both nodes may dial, at once or anew while an old connection still looks alive to one of them. So that they never
//! choose differently, one node decides: the one with the smaller name. It gives each connection it adopts the next
//! generation, and says so on it; the other follows the highest generation it hears of.

/// What is known of the connection that is the link now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Current {
    epoch: u64,
    generation: u64,
    /// The other side is silent, and a new connection would be welcome.
    suspect: bool,
    /// All is well, but another connection is to take its place.
    outdated: bool,
    rank: Rank,
}

/// How good a way to the other node is: a better one takes the place of one that is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// By way of a third, which may lose what it carries.
    Relayed,
    /// Straight.
    Direct,
}

/// The choice of connections, at one of the two nodes.
#[derive(Debug)]
pub(crate) struct Adoption {
    current: Option<Current>,
    /// The epoch of the process at the other side, once known.
    peer_epoch: Option<u64>,
    /// The highest generation used with that process.
    generation: u64,
    is_retired: bool,
}

/// What becomes of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It is the link now, under this generation.
    Adopt {
        generation: u64,
        /// The other side is another process than the one before it.
        restarted: bool,
    },
    /// The link is well without it.
    Refuse,
}

impl Adoption {
    pub(crate) const fn new() -> Self {
        Self {
            current: None,
            peer_epoch: None,
            generation: 0,
            is_retired: false,
        }
    }

    /// The generation of the connection that is to stay where one of this rank may be had; 0 for none. The other side is
    /// told this when a new connection comes.
    pub(crate) fn live(&self, rank: Rank) -> u64 {
        self.current
            .filter(|current| !current.suspect && !current.outdated && current.rank >= rank)
            .map_or(0, |current| current.generation)
    }

    /// Whether there ever was a connection.
    pub(crate) const fn is_proved(&self) -> bool {
        self.peer_epoch.is_some()
    }

    /// Refuses all connections from now on, if there never was one. Says whether it does.
    pub(crate) const fn retire(&mut self) -> bool {
        self.is_retired = !self.is_proved();
        self.is_retired
    }

    /// Whether a connection is there and not in doubt.
    pub(crate) fn is_well(&self) -> bool {
        self.current.is_some_and(|current| !current.suspect)
    }

    /// At the node that decides: a connection of this rank came to a process with this epoch, which holds the connection of
    /// generation `live` for as good and alive.
    pub(crate) fn decide(&mut self, epoch: u64, live: u64, rank: Rank) -> Decision {
        if self.is_retired {
            return Decision::Refuse;
        }
        // Another dial that crossed with the one that won. If the other side does not know of the current
        // connection, or holds it for dead, it is no use here either.
        if let Some(current) = self.current
            && current.epoch == epoch
            && current.generation == live
            && !current.suspect
            && !current.outdated
            && current.rank >= rank
        {
            return Decision::Refuse;
        }
        self.adopt(epoch, self.generation + 1, rank)
    }

    /// At the node that follows: the other, with this epoch, has adopted a connection of this rank.
    pub(crate) fn follow(&mut self, epoch: u64, generation: u64, rank: Rank) -> Decision {
        if self.is_retired || self.peer_epoch == Some(epoch) && generation <= self.generation {
            return Decision::Refuse;
        }
        self.adopt(epoch, generation, rank)
    }

    /// The connection that was the link is gone.
    pub(crate) fn lost(&mut self) {
        self.current = None;
    }

    /// The other side has become silent, or was heard again.
    pub(crate) fn set_suspect(&mut self, suspect: bool) {
        if let Some(current) = &mut self.current {
            current.suspect = suspect;
        }
    }

    /// Another connection is to take the place of the present one.
    pub(crate) fn set_outdated(&mut self) {
        if let Some(current) = &mut self.current {
            current.outdated = true;
        }
    }

    fn adopt(&mut self, epoch: u64, generation: u64, rank: Rank) -> Decision {
        let restarted = self.peer_epoch.is_some_and(|known| known != epoch);
        self.peer_epoch = Some(epoch);
        self.generation = generation;
        self.current = Some(Current {
            epoch,
            generation,
            suspect: false,
            outdated: false,
            rank,
        });
        Decision::Adopt { generation, restarted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn adopt(generation: u64, restarted: bool) -> Decision {
        Decision::Adopt { generation, restarted }
    }

    #[test]
    fn a_dial_that_crossed_is_refused_and_one_after_a_loss_is_not() {
        let mut decider = Adoption::new();
        assert_eq!(decider.decide(7, 0, Rank::Direct), adopt(1, false));
        assert_eq!(decider.decide(7, 1, Rank::Direct), Decision::Refuse);
        // The other side lost it; this side has not noticed.
        assert_eq!(decider.decide(7, 0, Rank::Direct), adopt(2, false));
        // This side is in doubt, the other not.
        decider.set_suspect(true);
        assert_eq!(decider.live(Rank::Direct), 0);
        assert_eq!(decider.decide(7, 2, Rank::Direct), adopt(3, false));
        decider.set_outdated();
        assert!(decider.is_well() && decider.live(Rank::Direct) == 0);
        assert_eq!(decider.decide(7, 3, Rank::Direct), adopt(4, false));
        assert_eq!(decider.decide(7, 4, Rank::Direct), Decision::Refuse);
        decider.lost();
        assert_eq!(decider.decide(7, 4, Rank::Direct), adopt(5, false));
        assert_eq!(decider.decide(8, 5, Rank::Direct), adopt(6, true), "another process");
    }

    #[test]
    fn what_is_retired_refuses_all_and_what_was_ever_a_link_does_not_retire() {
        for follows in [false, true] {
            let try_one = |adoption: &mut Adoption, generation| match follows {
                true => adoption.follow(7, generation, Rank::Direct),
                false => adoption.decide(7, 0, Rank::Direct),
            };
            let mut never = Adoption::new();
            assert!(never.retire() && !never.is_proved());
            assert_eq!(try_one(&mut never, 1), Decision::Refuse);
            let mut once = Adoption::new();
            assert_eq!(try_one(&mut once, 1), adopt(1, false));
            once.lost();
            assert!(!once.retire() && once.is_proved());
            assert_eq!(try_one(&mut once, 2), adopt(2, false));
        }
    }

    #[test]
    fn a_better_way_takes_the_place_of_one_that_is_well_and_not_the_other_way_round() {
        let (mut decider, mut follower) = (Adoption::new(), Adoption::new());
        assert_eq!(decider.decide(7, 0, Rank::Relayed), adopt(1, false));
        follower.follow(8, 1, Rank::Relayed);
        assert_eq!(follower.live(Rank::Relayed), 1);
        assert_eq!(decider.decide(7, 1, Rank::Relayed), Decision::Refuse);
        assert_eq!(follower.live(Rank::Direct), 0);
        assert_eq!(decider.decide(7, 0, Rank::Direct), adopt(2, false));
        follower.follow(8, 2, Rank::Direct);
        assert_eq!(follower.live(Rank::Relayed), 2);
        assert_eq!(decider.decide(7, 2, Rank::Relayed), Decision::Refuse);
        // The other side has lost the better one.
        follower.lost();
        assert_eq!(decider.decide(7, 0, Rank::Relayed), adopt(3, false));
    }

    #[test]
    fn the_follower_takes_the_highest_generation_of_a_process() {
        let mut follower = Adoption::new();
        assert_eq!(follower.follow(7, 2, Rank::Direct), adopt(2, false));
        assert_eq!(follower.follow(7, 1, Rank::Direct), Decision::Refuse);
        assert_eq!(follower.follow(7, 2, Rank::Direct), Decision::Refuse);
        assert_eq!(follower.follow(9, 1, Rank::Direct), adopt(1, true));
        follower.lost();
        assert_eq!(follower.follow(9, 2, Rank::Direct), adopt(2, false));
    }

    proptest! {
        /// Whatever connections are tried, in whatever order their words arrive: when all words have arrived, both
        /// hold the same connection.
        #[test]
        fn both_end_on_the_same_connection(events in proptest::collection::vec((0u8..8, any::<prop::sample::Index>()), 1..60)) {
            let (mut decider, mut follower) = (Adoption::new(), Adoption::new());
            // Hellos on their way to the decider, and adoptions on their way to the follower. Those of different
            // connections may overtake each other.
            let (mut hellos, mut adoptions) = (Vec::new(), Vec::new());
            let settle = |decider: &mut Adoption, follower: &mut Adoption, hellos: &mut Vec<u64>, adoptions: &mut Vec<u64>| {
                for live in hellos.drain(..) {
                    if let Decision::Adopt { generation, .. } = decider.decide(1, live, Rank::Direct) {
                        adoptions.push(generation);
                    }
                }
                while let Some(generation) = adoptions.pop() {
                    follower.follow(2, generation, Rank::Direct);
                }
            };
            for (event, index) in events {
                match event {
                    0 => hellos.push(follower.live(Rank::Direct)),
                    1 if !hellos.is_empty() => {
                        let live = hellos.swap_remove(index.index(hellos.len()));
                        if let Decision::Adopt { generation, .. } = decider.decide(1, live, Rank::Direct) {
                            adoptions.push(generation);
                        }
                    }
                    2 if !adoptions.is_empty() => {
                        let generation = adoptions.swap_remove(index.index(adoptions.len()));
                        follower.follow(2, generation, Rank::Direct);
                    }
                    3 => decider.set_suspect(index.index(2) == 0),
                    4 => follower.set_suspect(index.index(2) == 0),
                    5 => decider.set_outdated(),
                    6 => follower.set_outdated(),
                    7 => settle(&mut decider, &mut follower, &mut hellos, &mut adoptions),
                    _ => {}
                }
            }
            hellos.push(follower.live(Rank::Direct));
            settle(&mut decider, &mut follower, &mut hellos, &mut adoptions);
            prop_assert_eq!(decider.generation, follower.generation);
            prop_assert!(decider.generation > 0);
        }
    }
}
