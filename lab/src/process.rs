//! Programs whose log is read, and directories; each ends with its owner.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

/// How long anything that is waited for may take.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// How many of the last lines are told when what was waited for did not come.
const TOLD: usize = 5;

/// Where a program writes its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// To its standard output.
    Stdout,
    /// To its standard error.
    Stderr,
}

/// A running program; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Behind a lock, so that several threads may share a program.
    log: Mutex<Receiver<String>>,
}

impl Process {
    /// Starts a program and reads its log.
    ///
    /// # Errors
    ///
    /// When there is no such program.
    pub fn start(command: &mut Command, log: Log) -> anyhow::Result<Self> {
        let program = Path::new(command.get_program());
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match log {
            Log::Stdout => command.stdout(Stdio::piped()),
            Log::Stderr => command.stderr(Stdio::piped()),
        };
        let mut child = command.spawn().with_context(|| format!("can't run {name}"))?;
        let stream: Option<Box<dyn Read + Send>> = match log {
            Log::Stdout => child.stdout.take().map(|stream| Box::new(stream) as _),
            Log::Stderr => child.stderr.take().map(|stream| Box::new(stream) as _),
        };
        let (sender, log) = channel();
        if let Some(stream) = stream {
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    // Read on when nobody asks any more, so that the program is never held by its log.
                    let _ = sender.send(line);
                }
            });
        }
        let log = Mutex::new(log);
        Ok(Self { name, child, log })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// When the system refuses.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends it a signal, by its name without `SIG`.
    ///
    /// # Errors
    ///
    /// When there is no such signal, or the system refuses.
    pub fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let signal: Signal = format!("SIG{signal}").parse()?;
        Ok(kill(Pid::from_raw(self.child.id().try_into()?), signal)?)
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    ///
    /// When the system does not say.
    pub fn has_ended(&mut self) -> std::io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// The next line of its log; `None` when there are no more.
    ///
    /// # Errors
    ///
    /// When none comes in time.
    pub fn line(&self) -> anyhow::Result<Option<String>> {
        match self.log.lock().recv_timeout(DEADLINE) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("{} says nothing more", self.name),
        }
    }

    /// Waits for a line of its log with this text.
    ///
    /// # Errors
    ///
    /// When it does not come in time, or can't come any more; with the last lines that did.
    pub fn logged(&self, text: &str) -> anyhow::Result<String> {
        let [line] = self.logged_each([text])?;
        Ok(line)
    }

    /// Waits until each of these texts was in a line of its log, whichever comes first; gives the lines in the order of
    /// the texts.
    ///
    /// # Errors
    ///
    /// As [`Process::logged`].
    pub fn logged_each<const N: usize>(&self, texts: [&str; N]) -> anyhow::Result<[String; N]> {
        let until = Instant::now() + DEADLINE;
        let mut found = [const { None }; N];
        let mut last = VecDeque::new();
        loop {
            let awaited = texts.iter().zip(&found).find(|(_, found)| found.is_none());
            let Some((awaited, _)) = awaited else {
                return Ok(found.map(Option::unwrap_or_default));
            };
            let Ok(line) = self
                .log
                .lock()
                .recv_timeout(until.saturating_duration_since(Instant::now()))
            else {
                bail!("{} does not say {awaited:?}; its last lines are {last:?}", self.name);
            };
            for (text, found) in texts.iter().zip(&mut found) {
                if found.is_none() && line.contains(text) {
                    *found = Some(line.clone());
                }
            }
            last.push_back(line);
            if last.len() > TOLD {
                last.pop_front();
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fail for one that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A new directory among the system's temporary ones; removed when dropped.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// When it can't be made.
    pub fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("trunkline-lab-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).with_context(|| format!("can't make the directory {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left behind is in the system's temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_in_any_order_and_the_last_are_told() {
        let shell = |text: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", text]);
            command
        };
        let process = Process::start(&mut shell("echo one; echo two; echo three"), Log::Stdout).unwrap();
        let lines = process.logged_each(["tw", "on"]).unwrap();
        assert_eq!(lines, ["two", "one"]);
        let text = process.logged("four").unwrap_err().to_string();
        assert!(text.contains("four") && text.contains("three"), "{text}");
        assert_eq!(process.line().unwrap(), None);
        let mut process = Process::start(&mut shell("echo up >&2; exec sleep 60"), Log::Stderr).unwrap();
        process.logged("up").unwrap();
        assert!(!process.has_ended().unwrap());
        let missing = Process::start(&mut Command::new("/there/is/no-such-program"), Log::Stderr);
        assert!(missing.unwrap_err().to_string().contains("no-such-program"));
    }

    #[test]
    fn a_directory_ends_with_its_owner() {
        let directory = Directory::new().unwrap();
        let path = directory.path().to_owned();
        std::fs::write(path.join("file"), "text").unwrap();
        drop(directory);
        assert!(!path.exists());
    }
}
