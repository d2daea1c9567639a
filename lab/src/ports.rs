//! Ports for servers that are given theirs: because others have to know it before, or because they come back to it.
//!
//! A port that was seen free can be taken before the server is there, and many tests run at once. So a process draws from blocks that no
//! other process draws from meanwhile, and no port twice.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::Context as _;
use parking_lot::Mutex;

/// Where the blocks are: below what systems give to whoever asks them for any port, which begins at 32768.
const BLOCKS_FROM: u16 = 10_000;

/// How many blocks there are.
const BLOCKS: u16 = 440;

/// Ports of a block. The first is its lock: who listens there has the block, up to the end of the process.
const BLOCK: u16 = 50;

/// The blocks of this process.
struct Blocks {
    locks: Vec<TcpListener>,
    /// What is left of the last one.
    next: u16,
    end: u16,
}

static BLOCKS_HERE: Mutex<Blocks> = Mutex::new(Blocks {
    locks: Vec::new(),
    next: 0,
    end: 0,
});

/// A port of 127.0.0.1 that is free, for TCP and for UDP, and that nobody else is given here.
///
/// # Errors
///
/// When every block is taken.
pub fn own_port() -> anyhow::Result<SocketAddr> {
    let mut here = BLOCKS_HERE.lock();
    loop {
        if here.next == here.end {
            here.take_another()?;
        }
        let addr = at(here.next);
        here.next += 1;
        if TcpListener::bind(addr).is_ok() && UdpSocket::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
}

impl Blocks {
    fn take_another(&mut self) -> anyhow::Result<()> {
        // Anywhere, so that a port is not soon another test's, whose packets may still be on their way.
        let start = rand::random_range(0..BLOCKS);
        let firsts = (0..BLOCKS).map(|index| BLOCKS_FROM + (start + index) % BLOCKS * BLOCK);
        let mut taken = firsts.filter_map(|first| Some((first, TcpListener::bind(at(first)).ok()?)));
        let (first, lock) = taken
            .next()
            .context("every block of ports is taken; what else runs here?")?;
        self.locks.push(lock);
        (self.next, self.end) = (first + 1, first + BLOCK);
        Ok(())
    }
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_port_is_given_twice_and_blocks_are_left_alone_that_others_have() {
        let another = at(BLOCKS_FROM + rand::random_range(0..BLOCKS) * BLOCK);
        let theirs = TcpListener::bind(another);
        let ports: Vec<u16> = (0..4 * BLOCK).map(|_| own_port().unwrap().port()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), ports.len());
        assert!(ports.iter().all(|port| (BLOCKS_FROM..32_000).contains(port)));
        if theirs.is_ok() {
            let block = another.port()..another.port() + BLOCK;
            assert!(!ports.iter().any(|port| block.contains(port)), "{ports:?}");
        }
        // Who asks for a block finds that these are taken.
        for lock in &BLOCKS_HERE.lock().locks {
            assert!(TcpListener::bind(lock.local_addr().unwrap()).is_err());
        }
    }
}
