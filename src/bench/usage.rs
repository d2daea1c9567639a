//! What processes take of the machine, as Linux's `/proc` tells.

use std::io;
use std::time::Duration;

use super::BenchError;

/// Ticks of `/proc/PID/stat` in a second: `USER_HZ`, which is 100 on every Linux.
const TICKS: u64 = 100;

/// What a process has taken so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Time on a processor, in user space and in the kernel.
    pub cpu: Duration,
    /// Memory that it has now, in bytes.
    pub memory: u64,
    /// The most memory it ever had, in bytes.
    pub peak: u64,
}

impl Usage {
    /// Looks at a process.
    ///
    /// # Errors
    ///
    /// When there is no such process, or it is not for this user to see.
    pub fn of(pid: u32) -> Result<Self, BenchError> {
        let read = |file: &str| {
            let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"));
            text.map_err(|error| BenchError::Process(pid, error))
        };
        let unreadable = || BenchError::Process(pid, io::Error::other("its figures can't be read"));
        let cpu = cpu(&read("stat")?).ok_or_else(unreadable)?;
        let status = read("status")?;
        let memory = |name| kilobytes(&status, name).ok_or_else(unreadable);
        Ok(Self {
            cpu,
            memory: memory("VmRSS:")?,
            peak: memory("VmHWM:")?,
        })
    }
}

/// Fields 14 and 15 of `/proc/PID/stat`; the second, the program's name, may hold spaces and brackets.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + kernel) * 1000 / TICKS))
}

fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(number * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_process() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194304 99 0 0 0 120 34 0 0 20 0 1 0 5 6 7";
        assert_eq!(cpu(stat), Some(Duration::from_millis(1540)));
        assert_eq!(kilobytes("VmHWM:\t    2048 kB\n", "VmHWM:"), Some(2 << 20));
        let own = Usage::of(std::process::id()).unwrap();
        assert!(own.memory > 0 && own.peak >= own.memory);
        assert!(Usage::of(u32::MAX).is_err());
    }
}
