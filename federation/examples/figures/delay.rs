//! A long line: passes UDP packets on to an address, and the answers back, each some time later and in order.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

const PACKET_MAX: usize = 65_536;
/// Packets on the line; more are lost, as on a real one.
const UNDER_WAY_MAX: usize = 4096;

type Packet = (Instant, Vec<u8>);

/// Starts a line to `target`; gives the address at which it begins. It ends with the runtime.
pub async fn spawn(target: SocketAddr, one_way: Duration) -> io::Result<SocketAddr> {
    let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    let address = near.local_addr()?;
    tokio::spawn(async move {
        let mut lines: HashMap<SocketAddr, mpsc::Sender<Packet>> = HashMap::new();
        let mut buffer = vec![0; PACKET_MAX];
        while let Ok((size, from)) = near.recv_from(&mut buffer).await {
            let line = match lines.entry(from) {
                Entry::Occupied(line) => line.into_mut(),
                Entry::Vacant(place) => match open_line(near.clone(), from, target, one_way).await {
                    Ok(line) => place.insert(line),
                    Err(_) => continue,
                },
            };
            let _ = line.try_send((Instant::now() + one_way, buffer[..size].to_vec()));
        }
    });
    Ok(address)
}

/// One asker's packets leave from a socket of their own, so that the answers find back.
async fn open_line(
    near: Arc<UdpSocket>,
    asker: SocketAddr,
    target: SocketAddr,
    one_way: Duration,
) -> io::Result<mpsc::Sender<Packet>> {
    let far = Arc::new(UdpSocket::bind("127.0.0.1:0").await?);
    far.connect(target).await?;
    let (there, mut going) = mpsc::channel::<Packet>(UNDER_WAY_MAX);
    let (back, mut coming) = mpsc::channel::<Packet>(UNDER_WAY_MAX);
    let sender = far.clone();
    tokio::spawn(async move {
        while let Some((due, packet)) = going.recv().await {
            sleep_until(due).await;
            let _ = sender.send(&packet).await;
        }
    });
    tokio::spawn(async move {
        while let Some((due, packet)) = coming.recv().await {
            sleep_until(due).await;
            let _ = near.send_to(&packet, asker).await;
        }
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; PACKET_MAX];
        loop {
            // An error says that nobody listens there now; somebody may again.
            let Ok(size) = far.recv(&mut buffer).await else { continue };
            let sent = back.try_send((Instant::now() + one_way, buffer[..size].to_vec()));
            if matches!(sent, Err(mpsc::error::TrySendError::Closed(_))) {
                return;
            }
        }
    });
    Ok(there)
}
