//! The first line of a legacy client that has to show a token.

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::admission::Place;
use crate::clients::ClientContext;
use crate::counters::Counter;
use crate::outcome::Code;
use crate::permission::{Login, MAX_TOKEN};
use crate::phase::Phase;
use crate::wire::framing::Lines;
use crate::wire::line::{self, Request};

/// How long a line with a token may be, in bytes: every byte of the token may be written as an escape.
const MAX_LOGIN_LINE: usize = 6 * MAX_TOKEN + 1024;

/// What a client is told that begins with anything but its token.
const LOG_IN: &str = "this node asks for a token; say {\"cmd\":\"login\",\"token\":TOKEN} first, on one line";

/// What a client is told that is not let in; `None` if it has gone.
pub(super) type Refusal = Option<(Code, String)>;

/// Has a client log in, if it has to. Gives what it wrote behind that as well.
pub(super) async fn come_in(
    socket: &mut TcpStream,
    login: Option<Place>,
    context: &ClientContext,
) -> Result<(Lines, Option<Box<Login>>), Refusal> {
    let mut lines = Lines::new(context.limits.max_line());
    let Some(_place) = login else {
        return Ok((lines, None));
    };
    let mut first = Lines::new(MAX_LOGIN_LINE);
    let token = tokio::select! {
        biased;
        () = context.phase.reached(Phase::Draining) => {
            return Err(Some((Code::ShuttingDown, Code::ShuttingDown.advice().to_owned())));
        }
        token = timeout(context.limits.login, first_token(socket, &mut first, context)) => match token {
            Ok(token) => token?,
            Err(_) => Err("no token came in time; connect again and log in"),
        },
    };
    let judged = match &token {
        Ok(token) => context.log_in(Ok(token)).await,
        Err(text) => context.log_in(Err(text)).await,
    };
    let login = judged.map_err(|text| Some((Code::NotAllowed, text)))?;
    lines.buffer().extend_from_slice(first.pending());
    Ok((lines, Some(Box::new(login))))
}

/// The token on the first line; in the inner place: what to say of another line.
async fn first_token(
    socket: &mut TcpStream,
    lines: &mut Lines,
    context: &ClientContext,
) -> Result<Result<String, &'static str>, Refusal> {
    loop {
        match socket.read_buf(lines.buffer()).await {
            Ok(0) | Err(_) => return Err(None),
            Ok(_) => {}
        }
        if let Some(text) = line::stranger(lines.pending()) {
            context.counters.bump(Counter::EndedStranger);
            return Err(Some((Code::BadJson, text.to_owned())));
        }
        match lines.next_line() {
            Ok(Some(line)) => {
                return Ok(match line::parse(line) {
                    Ok(Request::Login { token, .. }) => Ok(token.into_owned()),
                    Ok(Request::Send { .. } | Request::Hello { .. }) | Err(_) => Err(LOG_IN),
                });
            }
            Ok(None) => {}
            Err(_) => return Ok(Err(LOG_IN)),
        }
    }
}
