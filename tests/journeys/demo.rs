//! `scripts/demo`: it shows what it says, says what failed when something does, and leaves nothing behind.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use crate::harness::process::{Output, run_in};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs it with a program in place of what it would build, and a folder in place of the system's for temporary files.
fn demo(keppel: &str, folder: &Path) -> Output {
    let environment = [("KEPPEL", keppel), ("TMPDIR", folder.to_str().expect("text"))];
    run_in(Path::new(ROOT), &environment, "scripts/demo", ["--size", "4"])
}

fn assert_nothing_is_left(folder: &Path) {
    let left: Vec<_> = fs::read_dir(folder).expect("the folder is there").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
    let name = folder.to_str().expect("text");
    for process in fs::read_dir("/proc").expect("Linux").flatten() {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        assert!(!words.contains(name), "{words} still runs");
    }
}

#[test]
fn the_demo_pushes_pulls_cuts_and_mends_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = demo(env!("CARGO_BIN_EXE_keppel"), folder.path()).text();
    for words in [
        "skopeo pulls it from us, which has nothing of it yet",
        "the new one, sha256:",
        "served (\"Hello from Singapore.\"), and marked: Warning: 110 - \"Response is Stale\"",
        "503, not 404",
        "what eu took while it was alone; unmarked",
        "\"Hello from Frankfurt, which was cut off.\"",
    ] {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    assert_nothing_is_left(folder.path());
}

#[test]
fn a_demo_that_fails_says_where_and_what_the_processes_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("program");
    fs::write(&program, "#!/bin/sh\necho no luck today >&2\nexit 3\n").expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("it may run");
    let scratch = folder.path().join("scratch");
    fs::create_dir(&scratch).expect("a folder");
    let said = demo(program.to_str().expect("text"), &scratch).failure();
    assert!(said.contains("The demo failed in step 1") && said.contains("has ended with code 3"), "{said}");
    assert!(said.contains("no luck today"), "{said}");
    assert_nothing_is_left(&scratch);
}

#[test]
fn a_demo_that_is_interrupted_ends_what_it_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(Path::new(ROOT).join("scripts/demo"));
    command.env("KEPPEL", env!("CARGO_BIN_EXE_keppel")).env("TMPDIR", folder.path()).stdout(Stdio::piped());
    let mut child = command.stdin(Stdio::null()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    assert!(lines.any(|line| line.expect("text").contains("us and ap join")), "it has not come to its second step");
    // SAFETY: a signal to a child that has not been collected yet cannot reach another process.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert_nothing_is_left(folder.path());
}
