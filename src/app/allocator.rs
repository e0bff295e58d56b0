//! How the system's allocator keeps memory.

/// Arenas that threads share. The C library would make eight for each CPU, and each keeps what a burst left in it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MAX: libc::c_int = 2;

/// Makes threads share few arenas, so that memory is given back after a burst. Call it before there are threads.
pub fn share_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt only sets a number within the allocator; it takes any value and is called before other threads are.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}
