//! What the kernel says about this process (`/proc`, Linux only; nothing elsewhere).

/// The unit of times in `/proc/self/stat`: fixed at 100 per second in what Linux shows to programs.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: i64,
    pub(super) open_fds: i64,
    pub(super) started_at_seconds: f64,
}

/// `None` where there is no `/proc`.
pub(super) fn read() -> Option<Process> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kernel = std::fs::read_to_string("/proc/stat").ok()?;
    // The directory being read is open too.
    let open_fds = std::fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    parse(&stat, &status, &kernel, open_fds)
}

fn parse(stat: &str, status: &str, kernel: &str, open_fds: usize) -> Option<Process> {
    // The second field is the program's name in parentheses and may hold anything: count from behind it.
    let (_, fields) = stat.rsplit_once(") ")?;
    let field = |number: usize| fields.split(' ').nth(number - 3)?.trim().parse::<f64>().ok();
    let line = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<i64>().ok())
    };
    Some(Process {
        cpu_seconds: (field(14)? + field(15)?) / TICKS_PER_SECOND,
        resident_bytes: line(status, "VmRSS:")?.saturating_mul(1024),
        open_fds: open_fds.try_into().ok()?,
        started_at_seconds: line(kernel, "btime ")? as f64 + field(22)? / TICKS_PER_SECOND,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_read_as_proc_5_describes_them() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 150 13 14 15 16 17 18 1000 20 21\n";
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t1\n";
        let kernel = "cpu 1 2\nbtime 1700000000\nprocesses 1\n";
        let expected =
            Process { cpu_seconds: 4.0, resident_bytes: 2_097_152, open_fds: 7, started_at_seconds: 1_700_000_010.0 };
        assert_eq!(parse(stat, status, kernel, 7), Some(expected));
        assert_eq!(parse("", status, kernel, 7), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_memory_and_descriptors() {
        let now = read().unwrap();
        assert!(now.resident_bytes > 1024 * 1024 && now.open_fds >= 3 && now.started_at_seconds > 1.6e9);
    }
}
