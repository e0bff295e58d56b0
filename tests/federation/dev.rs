//! `keppel dev --regions`: several regions in one process. Its ports are fixed, so it gets a network of its own.

use std::time::{Duration, Instant};

use crate::harness::process::Daemon;
use crate::network;
use crate::region::{keppel, until};

#[test]
fn three_regions_in_one_process_agree_and_end_in_order_at_ctrl_c() {
    network::enter();
    let folder = tempfile::tempdir().expect("a folder");
    let (data, log) = (folder.path().join("data"), folder.path().join("log"));
    for round in ["a first", "a second"] {
        let mut command = keppel();
        command.args(["dev", "--regions", "3", "--data"]).arg(&data);
        let mut process = Daemon::start(&mut command, &log, Duration::from_secs(20));
        let status = |region: &str| {
            let mut status = keppel();
            let output = status.args(["federation", "status", "--json", "--data"]).arg(data.join(region)).output();
            serde_json::from_slice::<serde_json::Value>(&output.expect("it runs").stdout).unwrap_or_default()
        };
        until("all three vote and are well", || {
            let words = std::fs::read_to_string(&log).unwrap_or_default();
            assert!(process.is_running(), "{round} start ended:\n{words}");
            ["eu", "us", "ap"].iter().all(|region| {
                let status = status(region);
                status["quorum"]["healthy"] == true && status["voters"].as_array().is_some_and(|all| all.len() == 3)
            })
        });
        let words = std::fs::read_to_string(&log).unwrap_or_default();
        for line in
            ["docker push 127.0.0.1:5001/alpine", "docker pull 127.0.0.1:5002/library/alpine", "account move library"]
        {
            assert!(words.contains(line), "{line}:\n{words}");
        }
        let begin = Instant::now();
        // SAFETY: a signal to a child that has not been collected yet cannot reach another process.
        unsafe { libc::kill(process.pid().cast_signed(), libc::SIGINT) };
        until("it ends", || !process.is_running());
        let took = begin.elapsed();
        println!("{round} start ended {took:?} after Ctrl-C");
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(process.exit_code(), Some(0), "{}", std::fs::read_to_string(&log).unwrap_or_default());
    }
}
