//! The operator's door to a running node, without a process for each question.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use serde_json::Value;

/// Asks a node through the socket in its data folder.
pub struct Operator {
    data: PathBuf,
}

impl Operator {
    pub fn new(data: PathBuf) -> Operator {
        Operator { data }
    }

    /// Asks one thing; fails when the node refuses.
    pub fn ask(&self, question: &Value) -> Value {
        let socket = self.send(question);
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).expect("it answers");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{question}: {error}: {line}"));
        assert!(answer["answer"].is_string() && answer["answer"] != "refused", "{question}: {answer}");
        answer
    }

    /// Asks, and leaves the answer to whoever wants it.
    pub fn send(&self, question: &Value) -> UnixStream {
        let mut socket = UnixStream::connect(self.data.join("admin.sock")).expect("the node runs");
        socket.write_all(format!("{question}\n").as_bytes()).expect("it listens");
        socket
    }
}
