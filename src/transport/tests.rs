//! Two endpoints on loopback.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn_udp::{RecvMeta, Transmit};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::socket::Socket;
use super::*;
use crate::address::NodeName;
use crate::config::{Congestion, Limits};
use crate::tls::{ClientCertificates, LINK_ALPN, NodeTls};

/// How long anything that must happen may take. Less than the 15 s after which a silent connection ends, as that would wake
/// whoever was not woken before.
const DEADLINE: Duration = Duration::from_secs(10);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("it does not come to its end")
}

/// Two endpoints, and a connection between them.
struct Pair {
    tracker: TaskTracker,
    end: CancellationToken,
    dialler: Endpoint,
    listener: Endpoint,
    dialled: Connection,
    accepted: Connection,
}

fn loopback() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// As two nodes have it, where the dialler sends by what `socket` makes of its socket.
async fn pair_by(socket: impl FnOnce(Socket) -> Arc<dyn Datagrams>) -> Pair {
    let certs = tempfile::tempdir().unwrap();
    let names: [NodeName; 2] = ["127.0.0.1:1215", "127.0.0.1:1216"].map(|name| name.parse().unwrap());
    crate::certs::make(certs.path(), &names, "test").unwrap();
    let [ours, theirs] = names.map(|name| NodeTls::load(certs.path(), &name, ClientCertificates::Unasked).unwrap());
    let limits = Limits::default();
    let server = |tls: &NodeTls| Some(link_server(tls.link_server(), &limits, Congestion::default()));
    let (tracker, end) = (TaskTracker::new(), CancellationToken::new());
    let start = |tls: &NodeTls| endpoint(tls.endpoint_config(LINK_ALPN), server(tls), loopback(), &tracker, &end);
    let (dialler, listener) = (start(&ours).unwrap(), start(&theirs).unwrap());
    dialler.rebind_to(&socket(Socket::new(loopback()).unwrap()));
    let config = link_client(ours.link_client(), &limits, Congestion::default());
    let dialling = dialler
        .connect(config, listener.local_addr().unwrap(), "127.0.0.1")
        .unwrap();
    let accepting = async { listener.accept().await.unwrap().accept().await };
    let (dialled, accepted) = soon(async { tokio::join!(dialling, accepting) }).await;
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    Pair {
        tracker,
        end,
        dialler,
        listener,
        dialled,
        accepted,
    }
}

async fn pair() -> Pair {
    pair_by(|socket| Arc::new(socket)).await
}

/// Reads streams that have ended, of which there are `count`.
async fn read_all(connection: &Connection, count: usize) -> Vec<Bytes> {
    let (mut parts, mut whole) = (HashMap::<StreamId, BytesMut>::new(), Vec::new());
    while whole.len() < count {
        let read = poll_fn(|cx| {
            connection.poll_streams(cx, |id, piece| match piece {
                Piece::Data(data) => {
                    parts.entry(id).or_default().extend_from_slice(&data);
                    // Whatever there is of it.
                    Want::Enough
                }
                Piece::End => {
                    whole.push(parts.remove(&id).unwrap_or_default().freeze());
                    Want::Enough
                }
                Piece::Reset => panic!("{id} was broken off"),
                Piece::Pause => Want::More,
            })
        });
        read.await.unwrap();
    }
    assert!(parts.is_empty());
    whole
}

/// Messages of many sizes, each of two parts.
fn messages(count: usize) -> Vec<[Bytes; 2]> {
    let body = |number: usize, length| Bytes::from(vec![u8::try_from(number % 251).unwrap(); length]);
    let of = |number: usize| match number % 7 {
        0 => [body(number, 1 + number % 5), body(number, 70_000 + number)],
        1 => [Bytes::new(), body(number, 3)],
        _ => [body(number, 30 + number % 100), Bytes::new()],
    };
    (0..count).map(of).collect()
}

fn joined(messages: &[[Bytes; 2]]) -> Vec<Bytes> {
    messages.iter().map(|parts| parts.concat().into()).collect()
}

/// Both in one order: streams do not wait for each other.
fn sorted(mut streams: Vec<Bytes>) -> Vec<Bytes> {
    streams.sort_unstable();
    streams
}

async fn all_arrive(pair: &Pair, sent: &[[Bytes; 2]]) {
    // In a task of its own, which is woken for itself.
    let reading = pair.tracker.spawn({
        let (connection, count) = (pair.accepted.clone(), sent.len());
        async move { read_all(&connection, count).await }
    });
    let mut rest = sent.iter().cloned();
    soon(MessageWriter::new(&pair.dialled).write(&mut rest)).await.unwrap();
    assert_eq!(sorted(soon(reading).await.unwrap()), sorted(joined(sent)));
}

#[tokio::test]
async fn each_message_arrives_as_a_stream_of_its_own() {
    // More than the streams and the bytes that may be under way.
    all_arrive(&pair().await, &messages(3_000)).await;
}

#[tokio::test]
async fn a_message_that_comes_alone_in_many_pieces_is_read_to_its_end() {
    let alone = [Bytes::from_static(b"head"), Bytes::from(vec![7; 900_000])];
    all_arrive(&pair().await, &[alone]).await;
}

/// Writes until there is no room, is called off, and goes on once something is read.
async fn goes_on(sent: &[[Bytes; 2]]) {
    let pair = pair().await;
    let mut writer = MessageWriter::new(&pair.dialled);
    let mut rest = sent.iter().cloned();
    let called_off = timeout(Duration::from_millis(200), writer.write(&mut rest)).await;
    assert!(called_off.is_err(), "there was room for all");
    let reading = pair.tracker.spawn({
        let (connection, count) = (pair.accepted.clone(), sent.len());
        async move { read_all(&connection, count).await }
    });
    soon(writer.write(&mut rest)).await.unwrap();
    assert_eq!(sorted(soon(reading).await.unwrap()), sorted(joined(sent)));
}

#[tokio::test]
async fn a_writer_waits_for_streams_and_goes_on_where_it_was() {
    let small = |number: usize| [Bytes::from(number.to_string()), Bytes::new()];
    goes_on(&(0..1_000).map(small).collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn a_writer_waits_for_its_window_and_goes_on_where_it_was() {
    let large = |number| [Bytes::from(vec![number; 100_000]), Bytes::from(vec![number; 100_000])];
    goes_on(&(0..120).map(large).collect::<Vec<_>>()).await;
}

/// A socket for which the system has no room every other time.
#[derive(Debug)]
struct Narrow {
    socket: Arc<Socket>,
    asked: AtomicUsize,
}

impl Datagrams for Narrow {
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.socket.send(transmit)
    }

    fn writable(self: Arc<Self>) -> Writable {
        Arc::clone(&self.socket).writable()
    }

    fn poll_receive(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_receive(cx, buffers, metas)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

#[tokio::test]
async fn what_the_system_has_no_room_for_is_sent_when_it_has() {
    let narrow = |socket| -> Arc<dyn Datagrams> {
        Arc::new(Narrow {
            socket: Arc::new(socket),
            asked: AtomicUsize::new(0),
        })
    };
    let pair = pair_by(narrow).await;
    let before = pair.dialled.lost_packets();
    all_arrive(&pair, &messages(500)).await;
    assert_eq!(pair.dialled.lost_packets(), before, "packets were lost");
}

#[tokio::test]
async fn a_stream_that_is_stopped_is_passed_over_by_its_writer() {
    let pair = pair().await;
    // More than a stream may have under way, so that none is written before it is stopped.
    let large = || [Bytes::from(vec![1; 40_000]), Bytes::from(vec![2; 3_000_000])];
    let last = [Bytes::from_static(b"last"), Bytes::new()];
    let mut sent = (0..50).map(|_| large()).chain([last]);
    let mut writer = MessageWriter::new(&pair.dialled);
    let write = async { writer.write(&mut sent).await.unwrap() };
    let read = async {
        let mut is_last = false;
        while !is_last {
            let read = poll_fn(|cx| {
                pair.accepted.poll_streams(cx, |_, piece| match piece {
                    Piece::Data(data) if data == "last" => {
                        is_last = true;
                        Want::Enough
                    }
                    Piece::Data(_) => Want::Stop(VarInt::from_u32(7)),
                    _ => Want::More,
                })
            });
            read.await.unwrap();
        }
    };
    soon(async { tokio::join!(write, read) }).await;
}

#[tokio::test]
async fn the_control_stream_goes_both_ways() {
    let pair = pair().await;
    let ours = async {
        let (mut send, mut recv) = pair.dialled.open_control().await.unwrap();
        send.write_all(&[1; 100_000]).await.unwrap();
        send.finish();
        send.ended().await;
        assert_eq!(recv.read(10).await.unwrap(), Some(Bytes::from_static(b"all there")));
    };
    let theirs = async {
        let (mut send, mut recv) = pair.accepted.accept_control().await.unwrap();
        let mut length = 0;
        while let Some(piece) = recv.read(1_000).await.unwrap() {
            assert!(piece.len() <= 1_000);
            length += piece.len();
        }
        assert_eq!(length, 100_000);
        send.write(Bytes::from_static(b"all there")).await.unwrap();
    };
    soon(async { tokio::join!(ours, theirs) }).await;
}

/// Whether the other side said so.
fn is_enough(lost: &ConnectionError) -> bool {
    matches!(lost, ConnectionError::ApplicationClosed(why) if why.reason == "enough")
}

#[tokio::test]
async fn all_who_wait_are_told_when_a_connection_is_closed() {
    let pair = pair().await;
    let (mut send, mut recv) = soon(pair.accepted.open_control()).await.unwrap();
    send.write_all(b"x").await.unwrap();
    let messages = std::iter::repeat_with(|| [Bytes::from(vec![1; 10_000]), Bytes::new()]);
    let [first, second, third] = [(); 3].map(|()| pair.accepted.clone());
    // In tasks of their own: each is woken for itself.
    let read = pair.tracker.spawn(async move { recv.read(10).await.unwrap_err() });
    let write_control = pair.tracker.spawn(async move {
        loop {
            if let Err(error) = send.write(Bytes::from(vec![1; 500_000])).await {
                break error;
            }
        }
    });
    let streams = pair
        .tracker
        .spawn(async move { poll_fn(|cx| first.poll_streams(cx, |_, _| Want::More)).await });
    let write = pair
        .tracker
        .spawn(async move { MessageWriter::new(&second).write(&mut messages.take(1_000)).await });
    let closed = pair.tracker.spawn(async move { third.closed().await });
    // They have come to where they wait: nothing is read.
    soon(pair.dialled.is_full()).await;
    pair.dialled.close(VarInt::from_u32(9), b"enough");
    for error in [soon(read).await.unwrap(), soon(write_control).await.unwrap()] {
        assert!(matches!(&error, StreamError::Lost(lost) if is_enough(lost)), "{error}");
    }
    assert!(is_enough(&soon(streams).await.unwrap().unwrap_err()));
    assert!(is_enough(&soon(write).await.unwrap().unwrap_err()));
    assert!(is_enough(&soon(closed).await.unwrap()));
    assert_eq!(pair.dialled.close_reason(), Some(ConnectionError::LocallyClosed));
}

#[tokio::test]
async fn what_came_before_the_end_is_read() {
    let pair = pair().await;
    let mut sent = messages(20).into_iter();
    MessageWriter::new(&pair.dialled).write(&mut sent).await.unwrap();
    // The other side acknowledges all streams once they are there.
    let (mut ours, _) = soon(pair.dialled.open_control()).await.unwrap();
    ours.write_all(b"x").await.unwrap();
    soon(pair.accepted.accept_control()).await.unwrap();
    soon(pair.dialled.all_acknowledged()).await;
    pair.dialled.close(VarInt::from_u32(0), b"");
    soon(pair.accepted.closed()).await;
    assert_eq!(soon(read_all(&pair.accepted, 20)).await.len(), 20);
    let after = poll_fn(|cx| pair.accepted.poll_streams(cx, |_, _| Want::More)).await;
    assert!(after.is_err());
}

#[tokio::test]
async fn a_connection_that_nobody_has_is_closed() {
    let Pair { dialled, accepted, .. } = pair().await;
    let clone = dialled.clone();
    drop(dialled);
    assert_eq!(clone.close_reason(), None);
    drop(clone);
    let closed = soon(accepted.closed()).await;
    assert!(matches!(closed, ConnectionError::ApplicationClosed(why) if why.error_code == VarInt::from_u32(0)));
}

#[tokio::test]
async fn tasks_end_when_nobody_has_the_endpoint_and_its_connections_are_drained() {
    let pair = pair().await;
    pair.listener.close(VarInt::from_u32(3), b"over");
    assert!(soon(pair.listener.accept()).await.is_none());
    soon(pair.listener.wait_idle()).await;
    soon(pair.dialler.wait_idle()).await;
    let tracker = pair.tracker.clone();
    drop(pair);
    tracker.close();
    soon(tracker.wait()).await;
}

#[tokio::test]
async fn tasks_end_at_once_when_they_are_to() {
    let pair = pair().await;
    pair.end.cancel();
    pair.tracker.close();
    soon(pair.tracker.wait()).await;
    assert!(pair.dialled.close_reason().is_some());
    assert!(soon(pair.listener.accept()).await.is_none());
    let write = soon(async {
        MessageWriter::new(&pair.dialled)
            .write(&mut messages(1).into_iter())
            .await
    })
    .await;
    assert!(write.is_err());
}
