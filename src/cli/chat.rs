//! `trunkline chat`: a line typed is a message sent, and what comes in is shown as it comes.

use std::collections::VecDeque;
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;

use futures_util::stream::{FuturesUnordered, StreamExt};
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, ExternalPrinter};
use tokio::sync::mpsc;
use trunkline::client::{Event, Receipt, SendError};
use trunkline::{Address, Client, Outcome};

use super::terminal::{paint, stdout_takes_colours};
use super::{ClientArgs, gone};

const GREEN: u8 = 32;
const RED: u8 = 31;
const CYAN: u8 = 36;
const DIM: u8 = 2;

/// How many receipts may be outstanding while lines come from a file or a pipe.
const OUTSTANDING: usize = 1024;

/// Talk to others: a line typed is a message sent; what comes in is shown as it comes.
///
/// `/to ADDRESS` changes whom you write to, `/quit` or Ctrl-D ends. Without --to you write to whoever wrote to you
/// first.
#[derive(Debug, clap::Args)]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    client: ClientArgs,

    /// Whom to write to
    #[arg(long, value_name = "ADDRESS")]
    to: Option<Address>,
}

/// Prints lines, also while a line is being typed.
struct Screen {
    printer: Option<Box<dyn ExternalPrinter + Send>>,
    colours: bool,
}

impl Screen {
    fn show(&mut self, line: &str) {
        let shown = match &mut self.printer {
            Some(printer) => printer.print(format!("{line}\n")).is_ok(),
            None => false,
        };
        if !shown {
            let mut out = std::io::stdout().lock();
            // Fails only when nobody reads any more, and then the input ends too.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }

    fn paint(&self, text: &str, sgr: u8) -> String {
        paint(text, sgr, self.colours)
    }

    fn hint(&mut self, text: &str) {
        let text = self.paint(text, DIM);
        self.show(&text);
    }

    fn outcome(&mut self, text: &str, outcome: Outcome) {
        let line = match outcome.code() {
            None => self.paint(&format!("delivered : {text}"), DIM),
            Some(code) => {
                let status = format!("{} : {code} : {}", outcome.status(), code.advice());
                format!("{} : {text}", self.paint(&status, RED))
            }
        };
        self.show(&line);
    }
}

pub(crate) async fn run(args: ChatArgs) -> anyhow::Result<ExitCode> {
    let client = args.client.connect().await?;
    let (lines, printer) = read_lines()?;
    let mut screen = Screen {
        printer,
        colours: stdout_takes_colours(),
    };
    let address = screen.paint(&client.address().to_string(), GREEN);
    screen.show(&format!("you is  : {address}"));
    let failures = talk(&client, args.to, lines, &mut screen).await;
    client.close().await;
    Ok(if failures { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Sends what is typed and shows what comes until one of the two ends. Says whether the node went away.
async fn talk(
    client: &Client,
    mut to: Option<Address>,
    mut lines: mpsc::Receiver<String>,
    screen: &mut Screen,
) -> bool {
    let mut receipts = FuturesUnordered::new();
    let mut typing = true;
    // What was typed before there was anyone to send it to.
    let mut unsent = VecDeque::new();
    // One at a time, so that they stay in order. Not waited for alone: what comes must be received meanwhile, or two that
    // write to each other would wait for each other.
    let mut sending = FuturesUnordered::new();
    loop {
        if let Some(to) = &to
            && sending.is_empty()
            && let Some(text) = unsent.pop_front()
        {
            sending.push(send(client, to.clone(), text));
        }
        if !typing && receipts.is_empty() && sending.is_empty() {
            break;
        }
        tokio::select! {
            biased;
            event = client.receive() => match event {
                Some(Event::Message(message)) => {
                    let from = screen.paint(&message.from.to_string(), CYAN);
                    screen.show(&format!("{from} say : {}", message.text()));
                    if to.is_none() {
                        screen.hint(&format!("you write to {}", message.from));
                        to = Some(message.from);
                    }
                }
                Some(_) => {}
                None => {
                    let text = screen.paint(&gone(client), RED);
                    screen.show(&text);
                    return true;
                }
            },
            Some(answered) = receipts.next() => {
                let (line, outcome): (String, Outcome) = answered;
                screen.outcome(&line, outcome);
            }
            Some((text, sent)) = sending.next() => match sent {
                Ok(receipt) => receipts.push(answered(text, receipt)),
                Err(error) => {
                    let line = screen.paint(&format!("not sent : {error}"), RED);
                    screen.show(&line);
                }
            },
            line = lines.recv(), if typing && sending.is_empty() && receipts.len() < OUTSTANDING => match line {
                None => typing = false,
                Some(line) => match command(&line) {
                    Command::Quit => typing = false,
                    Command::To(address) => match address.parse() {
                        Ok(address) => {
                            screen.hint(&format!("you write to {address}"));
                            to = Some(address);
                        }
                        Err(error) => screen.hint(&format!("{address}: {error}")),
                    },
                    Command::Unknown => screen.hint("commands: /to ADDRESS, /quit; // sends a line that begins with /"),
                    Command::Say("") => {}
                    Command::Say(text) if to.is_none() => {
                        if unsent.is_empty() {
                            screen.hint("kept until there is someone to send it to: /to ADDRESS");
                        }
                        unsent.push_back(text.to_owned());
                    }
                    Command::Say(text) => unsent.push_back(text.to_owned()),
                },
            },
        }
    }
    if !unsent.is_empty() {
        screen.hint(&format!("not sent, for want of a recipient: {} lines", unsent.len()));
    }
    false
}

async fn send(client: &Client, to: Address, text: String) -> (String, Result<Receipt, SendError>) {
    let sent = client.send_with_receipt(&to, text.clone()).await;
    (text, sent)
}

async fn answered(line: String, receipt: Receipt) -> (String, Outcome) {
    (line, receipt.await)
}

enum Command<'a> {
    Say(&'a str),
    To(&'a str),
    Quit,
    Unknown,
}

fn command(line: &str) -> Command<'_> {
    let Some(command) = line.strip_prefix('/') else {
        return Command::Say(line);
    };
    match command.split_once(' ').unwrap_or((command, "")) {
        _ if command.starts_with('/') => Command::Say(command),
        ("to", address) => Command::To(address.trim()),
        ("quit", "") => Command::Quit,
        _ => Command::Unknown,
    }
}

type Lines = (mpsc::Receiver<String>, Option<Box<dyn ExternalPrinter + Send>>);

/// Reads lines in a thread of its own: with editing and a prompt where a person types, as they are elsewhere.
fn read_lines() -> anyhow::Result<Lines> {
    let (sender, receiver) = mpsc::channel(16);
    if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        return Ok((receiver, None));
    }
    let mut editor = DefaultEditor::new()?;
    let printer = editor.create_external_printer()?;
    std::thread::spawn(move || {
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    // History is a comfort; without it the line is sent all the same.
                    let _ = editor.add_history_entry(&line);
                    if sender.blocking_send(line).is_err() {
                        return;
                    }
                }
                Err(ReadlineError::Interrupted | ReadlineError::Eof) => return,
                Err(error) => {
                    eprintln!("trunkline: can't read from the terminal: {error}");
                    return;
                }
            }
        }
    });
    Ok((receiver, Some(Box::new(printer))))
}
