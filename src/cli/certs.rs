//! `trunkline certs`: makes the certificates of a cluster.

use std::path::PathBuf;

use trunkline::address::{ClientId, NodeName};
use trunkline::certs;

/// Make what is missing in a certificate directory; what is there stays as it is. Or revoke certificates.
#[derive(Debug, clap::Args)]
pub(crate) struct CertsArgs {
    /// The directory to put the certificates in
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: PathBuf,

    /// The name of the cluster; nodes of another one are refused
    #[arg(long, value_name = "NAME", default_value = certs::DEFAULT_CLUSTER)]
    cluster: String,

    /// A client, by the name that is to be its id on every node; may be given several times
    #[arg(long = "client", value_name = "NAME")]
    clients: Vec<ClientId>,

    /// Revoke the certificate in this file; may be given several times. What is made is the list of its authority, which
    /// goes to all nodes
    #[arg(long, value_name = "FILE", conflicts_with_all = ["nodes", "clients"])]
    revoke: Vec<PathBuf>,

    /// Make the lists of what is revoked anew: one holds for 30 days
    #[arg(long, conflicts_with_all = ["nodes", "clients", "revoke"])]
    renew_lists: bool,

    /// The nodes, each as HOST:PORT, as their clients know them
    #[arg(value_name = "NODE", default_values = ["127.0.0.1:1215", "127.0.0.1:1216", "127.0.0.1:1217"])]
    nodes: Vec<NodeName>,
}

/// Makes the certificates or lists, and prints the name of each new file.
pub(crate) fn run(args: &CertsArgs) -> anyhow::Result<()> {
    let made = if args.renew_lists {
        certs::renew_lists(&args.certs)?
    } else if args.revoke.is_empty() {
        certs::make_for(&args.certs, &args.nodes, &args.clients, &args.cluster)?
    } else {
        certs::revoke(&args.certs, &args.revoke)?
    };
    for file in &made {
        println!("{}", file.display());
    }
    if made.is_empty() && args.renew_lists {
        println!(
            "nothing to renew: {} has no list of what is revoked",
            args.certs.display()
        );
    } else if made.is_empty() {
        println!("nothing to add: {} has a certificate for each", args.certs.display());
    }
    Ok(())
}
