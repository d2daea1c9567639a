//! How a running wire is told what to be: a line for each change, over a Unix socket, answered by a line.
//!
//! `delay MS`, `jitter MS`, `loss %`, `reorder % [MS]`, `duplicate %`, `rate MBIT|none`, `queue BYTES`,
//! `cut both|ab|ba`, `mend`, `clear` (a perfect wire again) and `stats`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::wire::{Path, Settings, Stats};

/// Does what a line says to both directions (from A to B, from B to A), and gives the answer.
pub fn command(line: &str, paths: &mut [Path; 2]) -> anyhow::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let set = |paths: &mut [Path; 2], set: &dyn Fn(&mut Settings)| {
        paths.iter_mut().for_each(|path| set(&mut path.settings));
    };
    match *words.as_slice() {
        ["delay", ms] => {
            let delay = milliseconds(ms)?;
            set(paths, &|to| to.delay = delay);
        }
        ["jitter", ms] => {
            let jitter = milliseconds(ms)?;
            set(paths, &|to| to.jitter = jitter);
        }
        ["loss", percent] => {
            let loss = share(percent)?;
            set(paths, &|to| to.loss = loss);
        }
        ["reorder", percent] => {
            let reorder = share(percent)?;
            set(paths, &|to| to.reorder = reorder);
        }
        ["reorder", percent, ms] => {
            let (reorder, by) = (share(percent)?, milliseconds(ms)?);
            set(paths, &|to| (to.reorder, to.reorder_by) = (reorder, by));
        }
        ["duplicate", percent] => {
            let duplicate = share(percent)?;
            set(paths, &|to| to.duplicate = duplicate);
        }
        ["rate", "none"] => set(paths, &|to| to.rate = None),
        ["rate", megabits] => {
            let rate = number(megabits)? * 1e6;
            ensure!(rate >= 1.0, "a rate of nothing; say `cut both`");
            set(paths, &|to| to.rate = Some(rate as u64));
        }
        ["queue", bytes] => {
            let queue = number(bytes)? as usize;
            set(paths, &|to| to.queue = queue);
        }
        ["cut", which] => {
            let (ab, ba) = match which {
                "both" => (true, true),
                "ab" => (true, false),
                "ba" => (false, true),
                _ => bail!("cut both, ab or ba, not {which}"),
            };
            let [a, b] = paths;
            (a.cut, b.cut) = (ab, ba);
        }
        ["mend"] => paths.iter_mut().for_each(|path| path.cut = false),
        ["clear"] => *paths = Default::default(),
        ["stats"] => return Ok(serde_json::to_string(&paths.each_ref().map(|path| &path.stats))?),
        _ => bail!("not a command of the wire: {line}"),
    }
    Ok("ok".to_owned())
}

fn number(text: &str) -> anyhow::Result<f64> {
    let number: f64 = text.parse().with_context(|| format!("not a number: {text}"))?;
    ensure!((0.0..=1e9).contains(&number), "not from 0 to 10^9: {text}");
    Ok(number)
}

fn milliseconds(text: &str) -> anyhow::Result<Duration> {
    Ok(Duration::from_secs_f64(number(text)? / 1000.0))
}

fn share(percent: &str) -> anyhow::Result<f64> {
    let percent = number(percent)?;
    ensure!(percent <= 100.0, "more than 100 %");
    Ok(percent / 100.0)
}

/// Speaks to a running wire.
#[derive(Debug)]
pub struct Control {
    socket: BufReader<UnixStream>,
}

impl Control {
    /// Connects to the wire that listens at this path.
    pub fn connect(path: &std::path::Path) -> anyhow::Result<Self> {
        let socket = UnixStream::connect(path).with_context(|| format!("no wire at {}", path.display()))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self {
            socket: BufReader::new(socket),
        })
    }

    /// Has one line done, and gives the answer.
    pub fn say(&mut self, line: &str) -> anyhow::Result<String> {
        self.socket.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.socket.read_line(&mut answer).context("the wire does not answer")?;
        let answer = answer.trim_end();
        ensure!(!answer.starts_with("error"), "{line}: {answer}");
        Ok(answer.to_owned())
    }

    /// What has happened so far from A to B, and from B to A.
    pub fn stats(&mut self) -> anyhow::Result<[Stats; 2]> {
        Ok(serde_json::from_str(&self.say("stats")?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_change_both_directions() {
        let mut paths = <[Path; 2]>::default();
        for line in ["delay 10", "loss 1", "rate 20", "queue 5000", "reorder 2 7", "cut ab"] {
            assert_eq!(command(line, &mut paths).unwrap(), "ok", "{line}");
        }
        for path in &paths {
            assert_eq!(path.settings.delay, Duration::from_millis(10));
            assert_eq!(path.settings.loss, 0.01);
            assert_eq!(path.settings.rate, Some(20_000_000));
            assert_eq!(path.settings.queue, 5000);
            assert_eq!(path.settings.reorder_by, Duration::from_millis(7));
        }
        assert!(paths[0].cut && !paths[1].cut);
        command("mend", &mut paths).unwrap();
        assert!(!paths[0].cut);
    }

    #[test]
    fn what_is_no_command_changes_nothing() {
        let mut paths = <[Path; 2]>::default();
        for line in [
            "", "loss", "loss x", "loss 101", "delay -1", "cut", "cut off", "rate 0", "mend it",
        ] {
            assert!(command(line, &mut paths).is_err(), "{line}");
        }
        assert_eq!(paths[0].settings, Settings::default());
    }
}
