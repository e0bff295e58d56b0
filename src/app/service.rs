//! Tells the service manager (systemd, `Type=notify`) how far we are: one datagram to the socket it named.

use std::os::unix::net::UnixDatagram;

/// Sends `state`, such as `READY=1`, where `NOTIFY_SOCKET` names a socket. A manager that does not hear is no reason to
/// stop; it is logged.
pub fn notify(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(name.as_encoded_bytes(), state) {
        tracing::warn!(%error, "cannot tell the service manager {state}");
    }
}

/// `name` is a path, or an abstract name that starts with `@`.
fn send(name: &[u8], state: &str) -> std::io::Result<()> {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::ffi::OsStrExt as _;
    let socket = UnixDatagram::unbound()?;
    match name.strip_prefix(b"@") {
        Some(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
            socket.send_to_addr(state.as_bytes(), &address)?;
        }
        None => drop(socket.send_to(state.as_bytes(), std::ffi::OsStr::from_bytes(name))?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_that_we_are_ready() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        send(path.as_os_str().as_encoded_bytes(), "READY=1").expect("sent");
        let mut buffer = [0; 32];
        let length = manager.recv(&mut buffer).expect("received");
        assert_eq!(&buffer[..length], b"READY=1");
    }
}
