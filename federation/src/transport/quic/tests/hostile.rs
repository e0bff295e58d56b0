//! Nodes and strangers that do not keep to the rules.

use super::*;

#[tokio::test]
async fn garbage_on_a_stream_is_refused_and_the_connection_goes_on() {
    let (a, b) = pair();
    for garbage in [&b""[..], b"GET / HTTP/1.1\r\n", b"K\x01\x01\xff\0\0\0\0", b"K\x01\x01\x01\xff\xff\xff\xff", b"K"] {
        let (mut send, mut receive) = a.transport.shared.open_stream(b.id).await.unwrap();
        _ = send.write_all(garbage).await;
        _ = send.finish();
        let answer = receive.read_to_end(4096).await.unwrap();
        assert_eq!(answer.first(), Some(&1), "a refusal of {garbage:?}: {answer:?}");
    }
    a.ask(&b, b"x").await.unwrap();
    assert_eq!(a.transport.connection_count(), 1);
}

#[tokio::test]
async fn a_slow_sender_is_told_so_and_holds_up_nobody() {
    let key = NodeKey::generate().unwrap();
    let b = node_with(&key, QuicOptions { receive_timeout: Duration::from_millis(200), ..options() });
    let a = node();
    admit_all(&[&a, &b]);
    a.knows(&b);
    let (mut send, mut receive) = a.transport.shared.open_stream(b.id).await.unwrap();
    send.write_all(b"K\x01\x01\x01\0\0\0\x09half").await.unwrap();
    a.ask(&b, b"beside it").await.unwrap();
    let answer = receive.read_to_end(4096).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("did not arrive within"), "{answer:?}");
    assert_eq!(b.echo.seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn messages_over_the_limit_are_refused_on_both_sides() {
    let (a, b) = pair();
    let limit = channels::limits(Channel::Status).request_bytes;
    let big = Bytes::from(vec![0; limit + 1]);
    let refused = a.transport.request(b.id, Channel::Status, big.clone(), PATIENCE).await.unwrap_err();
    assert!(matches!(refused, TransportError::TooLarge { .. }), "{refused}");

    // One that ignores the limit.
    let (send, receive) = a.transport.shared.open_stream(b.id).await.unwrap();
    let exchange = a.transport.shared.exchange(b.id, send, receive, Channel::Status, &big).await.unwrap_err();
    assert!(exchange.to_string().contains("over the limit"), "{exchange}");
    assert_eq!(b.echo.seen.load(Ordering::SeqCst), 0);

    let refused = a.ask(&b, b"huge").await.unwrap_err();
    assert!(refused.to_string().contains("over the limit"), "{refused}");
}

/// An Initial packet of a handshake that its sender never goes on with. Made by the QUIC library itself, so that the
/// node under test has to take it for real.
fn half_open(node: NodeId, tls: &Tls) -> Vec<u8> {
    let crypto: Arc<dyn quinn::crypto::ClientConfig> = Arc::new(tls.client(Some(node), Purpose::Member).unwrap());
    let now = std::time::Instant::now();
    let mut endpoint = quinn_proto::Endpoint::new(Arc::default(), None, true, None);
    let address = "127.0.0.1:9".parse().unwrap();
    let (_, mut connection) = endpoint.connect(now, quinn::ClientConfig::new(crypto), address, "keppel").unwrap();
    let mut packet = Vec::new();
    _ = connection.poll_transmit(now, 1, &mut packet).unwrap();
    packet
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_half_open_handshakes_leave_memory_bounded_and_members_unaffected() {
    let (a, b) = pair();
    a.ask(&b, b"before").await.unwrap();
    let newcomer = node();
    admit_all(&[&a, &b, &newcomer]);
    newcomer.knows(&b);
    let tls = &a.transport.shared.dialer.tls;
    let before = resident_kib();
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for count in 0..10_000 {
        socket.send_to(&half_open(b.id, tls), b.address()).await.unwrap();
        if count % 500 == 0 {
            let start = Instant::now();
            a.ask(&b, b"amid").await.unwrap();
            assert!(start.elapsed() < Duration::from_secs(2), "a member waited {:?}", start.elapsed());
        }
        if count == 5_000 {
            newcomer.ask(&b, b"a member that connects amid the flood").await.unwrap();
        }
    }
    let handshakes = b.transport.shared.dialer.endpoints[0].open_connections();
    // Those that were given up stay known for a moment, to answer late packets.
    assert!(handshakes <= 3 * options().handshakes_unvalidated_max, "{handshakes} handshakes are held");
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "memory grew by {grown} KiB");
}
