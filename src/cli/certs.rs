//! `trunkline certs`: makes the certificates of a cluster.

use std::path::PathBuf;

use trunkline::address::NodeName;
use trunkline::certs;

/// Make what is missing in a certificate directory; what is there stays as it is.
#[derive(Debug, clap::Args)]
pub(crate) struct CertsArgs {
    /// The directory to put the certificates in
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: PathBuf,

    /// The name of the cluster; nodes of another one are refused
    #[arg(long, value_name = "NAME", default_value = certs::DEFAULT_CLUSTER)]
    cluster: String,

    /// The nodes, each as HOST:PORT, as their clients know them
    #[arg(value_name = "NODE", default_values = ["127.0.0.1:1215", "127.0.0.1:1216", "127.0.0.1:1217"])]
    nodes: Vec<NodeName>,
}

/// Makes the certificates and prints the name of each new file.
pub(crate) fn run(args: &CertsArgs) -> anyhow::Result<()> {
    let made = certs::make(&args.certs, &args.nodes, &args.cluster)?;
    for file in &made {
        println!("{}", file.display());
    }
    if made.is_empty() {
        println!("nothing to add: {} has a certificate for each", args.certs.display());
    }
    Ok(())
}
