//! `keppel completion`: what a shell needs to complete our commands.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Arguments, Failure, say};

#[derive(Debug, Args)]
#[command(after_help = "For bash: keppel completion bash > /etc/bash_completion.d/keppel")]
pub(super) struct Completion {
    /// The shell.
    shell: Shell,
}

impl Completion {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Arguments::command(), "keppel", &mut script);
        say(&String::from_utf8_lossy(&script))
    }
}
