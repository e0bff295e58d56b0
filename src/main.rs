//! The `keppel` program: parse, run, exit code.

/// Gives memory back after a burst, where the system's allocator keeps an arena per thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    keppel::cli::run(std::env::args_os())
}
