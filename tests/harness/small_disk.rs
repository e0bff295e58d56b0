//! A small file system that a test may fill up.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::process::run;

/// A file system in memory, unmounted when dropped.
pub struct SmallDisk {
    pub path: PathBuf,
    _home: TempDir,
}

impl SmallDisk {
    pub fn mount(mebibytes: usize) -> SmallDisk {
        let home = tempfile::tempdir().expect("a temporary directory can be made");
        let path = home.path().join("disk");
        fs::create_dir(&path).expect("a folder can be made");
        let size = format!("size={mebibytes}m");
        let mounted = run("mount", ["-t", "tmpfs", "-o", &size, "tmpfs", &path.display().to_string()]);
        assert!(mounted.success, "this test mounts a small file system, so run it as root: {}", mounted.stderr);
        SmallDisk { path, _home: home }
    }

    pub fn free_bytes(&self) -> u64 {
        let path = std::ffi::CString::new(self.path.as_os_str().as_bytes()).expect("a path has no zero byte");
        // SAFETY: zeroes are a valid statvfs, and the path ends in a zero byte.
        let mut stats: libc::statvfs = unsafe { std::mem::zeroed() };
        let code = unsafe { libc::statvfs(path.as_ptr(), &raw mut stats) };
        assert_eq!(code, 0, "the file system tells its size");
        stats.f_bavail * stats.f_frsize
    }

    /// Takes all the space that is left, and returns the file that holds it.
    pub fn fill(&self) -> PathBuf {
        let path = self.path.join("filler");
        let mut file = File::create(&path).expect("a file can be made");
        while file.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
        path
    }

    pub fn wait_until_free(&self, bytes: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.free_bytes() < bytes {
            assert!(Instant::now() < deadline, "{} of {bytes} bytes came back", self.free_bytes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = run("umount", ["--lazy", &self.path.display().to_string()]);
        if !unmounted.success {
            eprintln!("{}", unmounted.stderr);
        }
    }
}
