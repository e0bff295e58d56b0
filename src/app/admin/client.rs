//! Asks a running node. Blocks: a command has nothing else to do.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::socket::SocketPath;
use super::{Answer, Request};

/// Joining and waiting for a majority take their time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Why a node did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No node runs on this data folder.
    #[error("no keppel runs on the data folder {}", .data.display())]
    NotRunning {
        /// The data folder.
        data: PathBuf,
    },
    /// The socket cannot be used.
    #[error("cannot talk to the keppel that runs on {}", .data.display())]
    Io {
        /// The data folder.
        data: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It answered with something else.
    #[error("the keppel that runs is of another version: {0}")]
    Unreadable(#[from] serde_json::Error),
}

/// Asks the node that runs on a data folder.
///
/// # Errors
/// [`AdminError`].
pub fn ask(data: &Path, request: &Request) -> Result<Answer, AdminError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => AdminError::NotRunning { data: data.to_owned() },
        _ => AdminError::Io { data: data.to_owned(), source },
    };
    let socket = SocketPath::of(data, "").map_err(failed)?;
    let mut stream = UnixStream::connect(socket.path()).map_err(failed)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(failed)?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer).map_err(failed)?;
    Ok(serde_json::from_str(&answer)?)
}
