//! Ids that nodes give to their clients.

use std::collections::HashSet;

use futures_util::future::join_all;

use crate::support::Cluster;

#[tokio::test]
async fn no_id_is_given_twice() {
    const CLIENTS: usize = 2000;
    const AT_ONCE: usize = 50;
    let cluster = Cluster::start(1).await;
    let mut ids = HashSet::new();
    while ids.len() < CLIENTS {
        for client in join_all((0..AT_ONCE).map(|_| cluster.line(0))).await {
            let id = client.address.id.as_str().to_owned();
            assert_eq!(id.len(), 6, "{id}");
            assert!(id.bytes().all(|byte| matches!(byte, b'1'..=b'9')), "{id}");
            assert!(ids.insert(id.clone()), "{id} was given twice");
        }
    }
}
