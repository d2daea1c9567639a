//! File descriptors: as many as the system grants, some of them kept for what must go on when clients take the rest.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

/// Descriptors that TCP clients do not get: the node's own sockets, its links', what logs and libraries open, all some
/// twenty at most; and what is about to be closed, as a client that is turned away.
const RESERVE: u64 = 64;

/// Raises the limit of open files to what the system allows. Gives how many descriptors TCP clients may have, when
/// `others` more are spoken for; warns if those are fewer than `clients`.
pub(crate) fn claim(clients: usize, others: usize) -> usize {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limits.maximum,
        Err(error) => {
            debug!("the limit of open files stays as it is: {error}");
            limits.current
        }
    };
    let bound = left(limit, others);
    if bound < clients {
        warn!(
            files = limit,
            tcp_clients = bound,
            max_clients = clients,
            "there are file descriptors for fewer TCP clients than --max-clients: raise the hard limit of open files (ulimit -Hn, \
             or LimitNOFILE of the service), or lower --max-clients"
        );
    }
    bound
}

/// What is left for clients of so many descriptors (`None`: there is no limit). Half of them in any case, so that a node with very few
/// still serves someone.
fn left(limit: Option<u64>, others: usize) -> usize {
    let Some(limit) = limit else {
        return usize::MAX;
    };
    let kept = (RESERVE + others as u64).min(limit / 2);
    usize::try_from(limit - kept).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept_and_some_are_left() {
        assert_eq!(left(None, 64), usize::MAX);
        assert_eq!(left(Some(1024), 64), 1024 - 128);
        assert_eq!(left(Some(160), 64), 80);
        assert_eq!(left(Some(2), 64), 1);
        assert_eq!(left(Some(u64::MAX), 64), usize::MAX - 128);
    }

    #[test]
    fn the_limit_is_raised_to_what_the_system_allows() {
        claim(1, 0);
        let limits = getrlimit(Resource::Nofile);
        assert_eq!(limits.current, limits.maximum);
    }
}
