//! How many files and sockets the process may have open.

/// Files that are open besides connections: databases, blobs being read and written, the rest.
const RESERVE: u64 = 512;

/// Raises the limit as far as the system lets us, and says so in the log when that is too little for `connections_max`:
/// the shell's usual 1024 is there for programs that know no better.
pub fn raise(connections_max: usize) {
    match raise_to_hard_limit() {
        Ok(limit) if limit < connections_max as u64 + RESERVE => tracing::warn!(
            limit,
            connections_max,
            "the limit of open files (ulimit -n, LimitNOFILE) is too low for http.connections_max"
        ),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}

/// Gives the limit that is now in force.
fn raise_to_hard_limit() -> std::io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid pointer to a limit of our own.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        limit.rlim_cur = limit.rlim_max;
        if libc::setrlimit(libc::RLIMIT_NOFILE, &limit) != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_the_system_allows() {
        let raised = raise_to_hard_limit().expect("raising up to the hard limit is always allowed");
        let limits = std::fs::read_to_string("/proc/self/limits").expect("Linux");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("the limit is listed");
        assert_eq!(line.split_whitespace().nth(3), Some(raised.to_string().as_str()), "{line}");
    }
}
