//! What is said on a terminal, and only there: colours.

use std::io::IsTerminal;

/// Whether stdout is a terminal whose owner wants colours (see no-color.org).
pub(crate) fn stdout_takes_colours() -> bool {
    std::io::stdout().is_terminal() && colours_are_wanted()
}

/// The same of stderr.
pub(crate) fn stderr_takes_colours() -> bool {
    std::io::stderr().is_terminal() && colours_are_wanted()
}

fn colours_are_wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Puts a text into a colour, given by its SGR number, if there are to be colours.
pub(crate) fn paint(text: &str, sgr: u8, colours: bool) -> String {
    if colours {
        format!("\x1b[{sgr}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
