//! The `keppel` program: parse, run, exit code.

fn main() -> std::process::ExitCode {
    keppel::cli::run(std::env::args_os())
}
