use std::time::Duration;

/// How long this machine has been up, the time it slept included. It only grows, whatever is done to the time of day, so
/// that a lease cannot outlive a suspended machine.
pub fn uptime() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    // Counts the time asleep as well there.
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours and outlives the call, which only fills it.
    let outcome = unsafe { libc::clock_gettime(CLOCK, &mut now) };
    debug_assert_eq!(outcome, 0, "the clock is always there");
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uptime_grows_with_the_time() {
        let (before, began) = (uptime(), std::time::Instant::now());
        assert!(before > Duration::ZERO);
        std::thread::sleep(Duration::from_millis(20));
        let passed = uptime() - before;
        assert!(passed >= Duration::from_millis(20) && passed <= began.elapsed() + Duration::from_millis(1));
    }
}
