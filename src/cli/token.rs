//! `trunkline token`: makes tokens, and says what one is worth.

use std::io::{BufRead as _, Read as _};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use trunkline::address::ClientId;
use trunkline::permission::{NewToken, Permissions, SigningKey, issue, show};
use trunkline::{Pattern, certs};

/// Make a token, which lets a client in at nodes that run with `--clients token`; or show one.
///
/// The token is printed on stdout. It is signed with token.key in the certificate directory, which is made with token.pem
/// (for the nodes) on first use. Whoever has a token can use it: pass it on as you would a password.
#[derive(Debug, clap::Args)]
pub(crate) struct TokenArgs {
    /// Where the keys of tokens are
    #[arg(long, value_name = "DIR", default_value = "certs")]
    certs: PathBuf,

    /// The name of the cluster that the token is for
    #[arg(long, value_name = "NAME", default_value = certs::DEFAULT_CLUSTER)]
    cluster: String,

    /// How long the token holds: a number and s, m, h or d (seconds, minutes, hours, days)
    #[arg(long, value_name = "TIME", value_parser = life, required_unless_present = "show")]
    expires: Option<Duration>,

    /// An address that the client may send to, where * stands for any run of characters, as in *:*:bob; may be given
    /// several times [default: all addresses]
    #[arg(long, value_name = "HOST:PORT:ID")]
    send: Vec<Pattern>,

    /// The client may send to nobody
    #[arg(long, conflicts_with = "send")]
    no_send: bool,

    /// The client may not receive: messages to it are refused
    #[arg(long)]
    no_receive: bool,

    /// How many messages a second the client may send [default: as many as the node lets each]
    #[arg(long, value_name = "N")]
    message_rate: Option<NonZeroU32>,

    /// How many bytes of messages a second, likewise
    #[arg(long, value_name = "BYTES")]
    byte_rate: Option<NonZeroU32>,

    /// Sign with the secret token.secret (HS256) in place of token.key
    #[arg(long)]
    secret: bool,

    /// Read a token from stdin; print its claims, and whether the keys in the certificate directory accept it
    #[arg(
        long,
        conflicts_with_all = ["expires", "send", "no_send", "no_receive", "message_rate", "byte_rate", "secret", "subject"]
    )]
    show: bool,

    /// The client's name, which is its id on every node
    #[arg(value_name = "SUBJECT", required_unless_present = "show")]
    subject: Option<ClientId>,
}

/// More than any token has, and a line end.
const MOST_READ: u64 = 64 * 1024;

/// A time as a number and its unit.
fn life(text: &str) -> Result<Duration, String> {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    let wrong = || "not a number of 1 or more and s, m, h or d, such as 12h".to_owned();
    let at = text.len().saturating_sub(1);
    let (number, unit) = text.split_at_checked(at).ok_or_else(wrong)?;
    let unit = match unit {
        "s" => 1,
        "m" => MINUTE,
        "h" => HOUR,
        "d" => 24 * HOUR,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(unit) {
        Some(0) | None => Err(wrong()),
        Some(seconds) => Ok(Duration::from_secs(seconds)),
    }
}

/// Makes or shows a token. Fails with 1 for one that is shown and would not be accepted.
pub(crate) fn run(args: TokenArgs) -> anyhow::Result<ExitCode> {
    let (Some(subject), Some(life)) = (args.subject, args.expires) else {
        let mut token = String::new();
        let stdin = std::io::stdin().lock();
        stdin
            .take(MOST_READ)
            .read_line(&mut token)
            .context("can't read a token from stdin")?;
        let shown = show(&args.certs, &token, &args.cluster)?;
        println!("{}", shown.claims);
        return Ok(match shown.refused {
            None => {
                println!("accepted");
                ExitCode::SUCCESS
            }
            Some(why) => {
                println!("not accepted: {why}");
                ExitCode::FAILURE
            }
        });
    };
    let wanted = NewToken {
        subject,
        cluster: args.cluster,
        life,
        permissions: Permissions {
            send: (args.no_send || !args.send.is_empty()).then_some(args.send),
            receive: args.no_receive.then_some(false),
            message_rate: args.message_rate,
            byte_rate: args.byte_rate,
        },
    };
    let key = if args.secret {
        SigningKey::Secret
    } else {
        SigningKey::Private
    };
    let issued = issue(&args.certs, wanted, key)?;
    if let [private, public] = issued.made.as_slice() {
        eprintln!(
            "made {}, to be kept here, and {}, to go to every node",
            private.display(),
            public.display()
        );
    }
    println!("{}", issued.token);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_a_number_and_a_unit() {
        for (text, seconds) in [("5s", 5), ("90m", 5400), ("12h", 43_200), ("30d", 2_592_000)] {
            assert_eq!(life(text), Ok(Duration::from_secs(seconds)));
        }
        for text in [
            "",
            "d",
            "0h",
            "12",
            "-1h",
            "1.5h",
            "h1",
            "1é",
            "é",
            "99999999999999999999d",
            "999999999999999999d",
        ] {
            assert!(life(text).is_err(), "{text}");
        }
    }
}
