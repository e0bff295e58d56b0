//! Where the socket is. A socket's name may have some 100 bytes, a data folder's path more; then the name goes through
//! an open handle of the folder.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

const NAME: &str = "admin.sock";
const NAME_BYTES_MAX: usize = 90;

/// The path of the socket in a data folder, good as long as this value lives.
pub struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    /// The socket of the data folder, or with a suffix the name under which it is made.
    pub fn of(data: &Path, suffix: &str) -> io::Result<Self> {
        let name = format!("{NAME}{suffix}");
        let path = data.join(&name);
        if path.as_os_str().len() <= NAME_BYTES_MAX {
            return Ok(Self { path, _folder: None });
        }
        let folder = File::open(data)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
        Ok(Self { path, _folder: Some(folder) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}
