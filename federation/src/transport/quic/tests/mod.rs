use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::*;
use crate::wire::Body;

mod hostile;

const PATIENCE: Duration = Duration::from_secs(10);

/// Echoes requests, counts what it sees, and keeps those that ask to wait.
#[derive(Default)]
struct Echo {
    seen: AtomicUsize,
    dropped: Arc<AtomicUsize>,
    datagrams: Mutex<HashMap<NodeId, Vec<Bytes>>>,
    arrived: Notify,
}

struct CountDrop(Arc<AtomicUsize>);
impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, from: NodeId, channel: Channel, request: Bytes) -> Result<Body, String> {
        self.seen.fetch_add(1, Ordering::SeqCst);
        self.arrived.notify_waiters();
        match &request[..] {
            b"wait" => {
                let _guard = CountDrop(self.dropped.clone());
                std::future::pending().await
            }
            b"refuse" => Err("because".into()),
            b"huge" => Ok(Bytes::from(vec![0; 8 << 20]).into()),
            _ => {
                let pieces = [from.short().into_bytes(), format!("{channel:?}").into_bytes(), request.to_vec()];
                Ok(pieces.into_iter().map(Bytes::from).collect())
            }
        }
    }

    fn handle_datagram(&self, from: NodeId, datagram: Bytes) {
        self.datagrams.lock().unwrap().entry(from).or_default().push(datagram);
        self.arrived.notify_waiters();
    }
}

struct TestNode {
    id: NodeId,
    transport: Arc<QuicTransport>,
    echo: Arc<Echo>,
}

impl TestNode {
    fn address(&self) -> SocketAddr {
        self.transport.listening()[0]
    }

    async fn ask(&self, other: &Self, request: &'static [u8]) -> Result<Bytes, TransportError> {
        self.transport.request(other.id, Channel::Command, request.into(), PATIENCE).await
    }

    fn knows(&self, other: &Self) {
        self.transport.set_addresses(other.id, vec![other.address()]);
    }
}

fn options() -> QuicOptions {
    QuicOptions {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        duplicate_window: Duration::from_millis(300),
        ..QuicOptions::default()
    }
}

fn node_with(key: &NodeKey, options: QuicOptions) -> TestNode {
    let transport = Arc::new(QuicTransport::start(key, options).unwrap());
    let echo = Arc::new(Echo::default());
    transport.serve(echo.clone());
    TestNode { id: key.id(), transport, echo }
}

fn node() -> TestNode {
    node_with(&NodeKey::generate().unwrap(), options())
}

fn admit_all(nodes: &[&TestNode]) {
    let ids: Vec<NodeId> = nodes.iter().map(|node| node.id).collect();
    for node in nodes {
        node.transport.set_admitted(ids.clone());
    }
}

fn pair() -> (TestNode, TestNode) {
    let (a, b) = (node(), node());
    admit_all(&[&a, &b]);
    a.knows(&b);
    b.knows(&a);
    (a, b)
}

/// Waits until something holds, at most so long; the failure says what it was.
async fn until(what: &str, at_most: Duration, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < at_most, "not within {at_most:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn members_exchange_requests_on_every_channel_and_know_each_other_by_key() {
    let (a, b) = pair();
    for channel in [Channel::Consensus, Channel::Command, Channel::Admission, Channel::Status, Channel::Content] {
        let answer = a.transport.request(b.id, channel, Bytes::from_static(b"!"), PATIENCE).await.unwrap();
        assert_eq!(answer, format!("{}{channel:?}!", a.id.short()));
    }
    assert!(a.transport.round_trip_time(b.id).is_some());
    assert!(a.transport.packets_from(b.id).is_some_and(|(_, packets)| packets > 0));
    let refused = a.ask(&b, b"refuse").await.unwrap_err();
    assert!(matches!(&refused, TransportError::Refused { reason, .. } if reason == "because"), "{refused}");
    assert_eq!(a.transport.connection_count(), 1);
}

#[tokio::test]
async fn the_one_connection_serves_both_directions() {
    let (a, b) = pair();
    b.transport.set_addresses(a.id, vec!["127.0.0.1:1".parse().unwrap()]);
    a.ask(&b, b"x").await.unwrap();
    b.ask(&a, b"y").await.unwrap();
    assert_eq!((a.transport.connection_count(), b.transport.connection_count()), (1, 1));
}

#[tokio::test]
async fn a_stranger_is_refused_in_the_handshake_and_nothing_it_sends_arrives() {
    let (a, stranger) = (node(), node());
    stranger.transport.set_admitted(vec![a.id, stranger.id]);
    stranger.knows(&a);
    a.transport.set_admitted(vec![a.id]);
    let refused = stranger.ask(&a, b"let me in").await.unwrap_err();
    assert!(matches!(&refused, TransportError::Refused { reason, .. } if reason.contains("member")), "{refused}");

    // One that does not wait to be welcomed, but sends at once.
    let dialer = &stranger.transport.shared.dialer;
    let tls = dialer.tls.client(Some(a.id), Purpose::Member).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let connecting = dialer.endpoints[0].connect_with(config, a.address(), "keppel").unwrap();
    if let Ok(connection) = connecting.await {
        _ = connection.send_datagram(Bytes::from_static(b"datagram"));
        if let Ok((mut send, _receive)) = connection.open_bi().await {
            _ = send.write_all(b"K\x01\x01\x01\0\0\0\x01x").await;
            _ = send.finish();
        }
        connection.closed().await;
    }
    assert_eq!(a.echo.seen.load(Ordering::SeqCst), 0);
    assert!(a.echo.datagrams.lock().unwrap().is_empty());
    assert_eq!(a.transport.connection_count(), 0);
}

#[tokio::test]
async fn another_key_at_the_address_is_not_spoken_to() {
    let (a, b) = pair();
    let impostor = node();
    admit_all(&[&a, &b, &impostor]);
    a.transport.set_addresses(b.id, vec![impostor.address()]);
    let failed = a.ask(&b, b"secret").await.unwrap_err();
    assert!(failed.to_string().contains("another node"), "{failed}");
    assert_eq!(impostor.echo.seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_removed_member_is_cut_off_within_a_second_and_cannot_come_back() {
    let (a, b) = pair();
    a.ask(&b, b"x").await.unwrap();
    let (asker, other) = (a.transport.clone(), b.id);
    let under_way =
        tokio::spawn(
            async move { asker.request(other, Channel::Command, Bytes::from_static(b"wait"), PATIENCE).await },
        );
    until("the request arrived", PATIENCE, || b.echo.seen.load(Ordering::SeqCst) == 2).await;
    let start = Instant::now();
    b.transport.set_admitted(vec![b.id]);
    let cut = under_way.await.unwrap().unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(cut.to_string().contains("not a member"), "{cut}");
    let refused = a.ask(&b, b"again").await.unwrap_err();
    assert!(matches!(refused, TransportError::Refused { .. }), "{refused}");
    assert_eq!(b.transport.connection_count(), 0);
    assert_eq!(b.echo.seen.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn versions_without_overlap_are_refused_with_both_ranges() {
    let (a, b) = (NodeKey::generate().unwrap(), node());
    let newer = QuicTransport::start_speaking(&a, options(), VersionRange::new(7, 9)).unwrap();
    newer.set_admitted(vec![a.id(), b.id]);
    b.transport.set_admitted(vec![a.id(), b.id]);
    newer.set_addresses(b.id, vec![b.address()]);
    let refused = newer.request(b.id, Channel::Status, Bytes::new(), PATIENCE).await.unwrap_err().to_string();
    assert!(refused.contains("7 to 9") && refused.contains("version 1"), "{refused}");
    assert_eq!(b.echo.seen.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_handler_is_dropped_when_the_caller_hangs_up() {
    let (a, b) = pair();
    let waiting = a.transport.request(b.id, Channel::Command, Bytes::from_static(b"wait"), Duration::from_millis(100));
    let timed_out = waiting.await.unwrap_err();
    assert!(matches!(timed_out, TransportError::Timeout { .. }), "{timed_out}");
    until("the handler is dropped", PATIENCE, || b.echo.dropped.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn nodes_that_connect_to_each_other_at_once_end_with_one_connection() {
    for _ in 0..5 {
        let (a, b) = pair();
        let both = tokio::join!(a.ask(&b, b"x"), b.ask(&a, b"y"));
        both.0.unwrap();
        both.1.unwrap();
        until("one connection is left", PATIENCE, || {
            (a.transport.connection_count(), b.transport.connection_count()) == (1, 1)
        })
        .await;
        tokio::join!(a.ask(&b, b"x"), b.ask(&a, b"y")).0.unwrap();
    }
}

#[tokio::test]
async fn a_node_that_restarts_at_its_address_is_reached_again() {
    let key = NodeKey::generate().unwrap();
    let (a, b) = (node(), node_with(&key, options()));
    admit_all(&[&a, &b]);
    a.knows(&b);
    a.ask(&b, b"x").await.unwrap();
    let address = b.address();
    b.transport.shutdown().await;
    drop(b);
    until("the address is free", PATIENCE, || std::net::UdpSocket::bind(address).is_ok()).await;
    let b = node_with(&key, QuicOptions { listen: vec![address], ..options() });
    b.transport.set_admitted(vec![a.id, b.id]);
    let start = Instant::now();
    while a.ask(&b, b"y").await.is_err() {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_node_that_moves_is_reached_at_its_new_address() {
    let key = NodeKey::generate().unwrap();
    let (a, b) = (node(), node_with(&key, options()));
    admit_all(&[&a, &b]);
    a.knows(&b);
    a.ask(&b, b"x").await.unwrap();
    b.transport.shutdown().await;
    let moved = node_with(&key, options());
    moved.transport.set_admitted(vec![a.id, moved.id]);
    a.transport.set_addresses(moved.id, vec![b.address(), moved.address()]);
    let start = Instant::now();
    a.ask(&moved, b"y").await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "the dead address does not hold it up: {:?}", start.elapsed());
}

#[tokio::test]
async fn an_unreachable_node_is_tried_with_pauses_and_reported_at_once_in_between() {
    let a = node();
    let gone = NodeKey::generate().unwrap().id();
    a.transport.set_admitted(vec![a.id, gone]);
    let unknown = a.transport.request(gone, Channel::Status, Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(matches!(unknown, TransportError::UnknownNode(_)), "{unknown}");
    let impostor = node();
    a.transport.set_addresses(gone, vec![impostor.address()]);
    let first = a.transport.request(gone, Channel::Status, Bytes::new(), PATIENCE).await.unwrap_err();
    let start = Instant::now();
    let second = a.transport.request(gone, Channel::Status, Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(50));
    assert_eq!(first.to_string(), second.to_string());
}

#[tokio::test]
async fn datagrams_arrive_also_when_the_connection_is_made_for_them() {
    let (a, b) = pair();
    a.transport.send_datagram(b.id, Bytes::from_static(b"first")).unwrap();
    until("the first arrives", PATIENCE, || b.echo.datagrams.lock().unwrap().contains_key(&a.id)).await;
    b.transport.send_datagram(a.id, Bytes::from(vec![7; 1100])).unwrap();
    until("one of 1,100 bytes arrives", PATIENCE, || a.echo.datagrams.lock().unwrap().contains_key(&b.id)).await;
    let refused = b.transport.send_datagram(a.id, Bytes::from(vec![7; 60_000])).unwrap_err();
    assert!(matches!(refused, TransportError::TooLarge { .. }), "{refused}");
    let stranger = NodeKey::generate().unwrap().id();
    assert!(b.transport.send_datagram(stranger, Bytes::new()).is_err());
}

#[tokio::test]
async fn a_member_is_met_at_an_address_without_its_id_and_a_stranger_is_not() {
    let (a, b) = (node(), node());
    admit_all(&[&a, &b]);
    let stranger = node();
    assert_eq!(a.transport.meet(b.address(), PATIENCE).await, Some(b.id));
    assert_eq!(a.transport.meet(b.address(), PATIENCE).await, Some(b.id));
    assert_eq!(a.transport.meet(stranger.address(), PATIENCE).await, None);
    a.ask(&b, b"without any address set").await.unwrap();
    assert_eq!((a.transport.connection_count(), stranger.transport.connection_count()), (1, 0));
}

#[tokio::test]
async fn a_newcomer_gets_the_admission_channel_and_nothing_else() {
    let (member, newcomer) = (node(), node());
    member.transport.set_admitted(vec![member.id]);
    let addresses = vec![member.address()];
    let answer =
        newcomer.transport.knock(member.id, addresses.clone(), Bytes::from_static(b"?"), PATIENCE).await.unwrap();
    assert_eq!(answer, format!("{}Admission?", newcomer.id.short()));

    let dialer = &newcomer.transport.shared.dialer;
    let connection = dialer.dial(Some(member.id), &addresses, Purpose::Join).await.unwrap();
    let (send, receive) = connection.open_bi().await.unwrap();
    let refused =
        newcomer.transport.shared.exchange(member.id, send, receive, Channel::Command, b"x").await.unwrap_err();
    assert!(refused.to_string().contains("only members"), "{refused}");
    let second = timeout(Duration::from_millis(200), connection.open_bi()).await;
    assert!(!matches!(second, Ok(Ok(_))), "a second stream");
    assert_eq!(member.echo.seen.load(Ordering::SeqCst), 1);

    let wrong_key = newcomer.transport.knock(newcomer.id, addresses, Bytes::from_static(b"secret"), PATIENCE).await;
    assert!(wrong_key.is_err());
    assert_eq!(member.echo.seen.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn newcomers_beyond_the_limits_are_sent_away() {
    let key = NodeKey::generate().unwrap();
    let member = node_with(&key, QuicOptions { joins_per_second: 2, ..options() });
    let newcomer = node();
    let mut refused = 0;
    for _ in 0..6 {
        let request = Bytes::from_static(b"?");
        let answer = newcomer.transport.knock(member.id, vec![member.address()], request, PATIENCE).await;
        refused += usize::from(matches!(answer, Err(TransportError::Refused { .. })));
    }
    assert!(refused >= 2, "{refused} of 6");
}

#[tokio::test]
async fn both_address_families_work_on_one_socket() {
    let key = NodeKey::generate().unwrap();
    let both = node_with(&key, QuicOptions { listen: vec!["[::]:0".parse().unwrap()], ..options() });
    let four = node();
    admit_all(&[&both, &four]);
    both.knows(&four);
    both.ask(&four, b"x").await.unwrap();
    let port = both.address().port();
    let six_key = NodeKey::generate().unwrap();
    let six = node_with(&six_key, QuicOptions { listen: vec!["[::1]:0".parse().unwrap()], ..options() });
    admit_all(&[&both, &four, &six]);
    let unreachable = "192.0.2.1:9".parse().unwrap();
    six.transport.set_addresses(both.id, vec![unreachable, format!("[::1]:{port}").parse().unwrap()]);
    six.ask(&both, b"y").await.unwrap();
}
