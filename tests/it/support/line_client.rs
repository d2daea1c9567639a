//! A legacy client, as bare as `nc`: it knows lines and nothing else.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use trunkline::{Address, Code};

use super::within;

/// A receive buffer so small that a client that does not read is soon noticed.
const SMALL_BUFFER: usize = 4096;

/// How long nothing more may be taken of a sender for it to count as held.
pub(crate) const HELD: Duration = Duration::from_secs(1);

/// The line that sends a message, without its end.
pub(crate) fn message_line(to: &Address, body: &str) -> String {
    json!({"to": to.to_string(), "body": body, "cmd": "sendMsg"}).to_string()
}

/// The same, asking for a receipt.
pub(crate) fn message_line_with_id(to: &Address, body: &str, id: &str) -> String {
    json!({"to": to.to_string(), "body": body, "id": id, "cmd": "sendMsg"}).to_string()
}

#[derive(Debug)]
pub(crate) struct LineClient {
    pub(crate) address: Address,
    pub(crate) reader: LineReader,
    pub(crate) writer: LineWriter,
}

#[derive(Debug)]
pub(crate) struct LineReader(BufReader<OwnedReadHalf>);

#[derive(Debug)]
pub(crate) struct LineWriter(OwnedWriteHalf);

impl LineClient {
    /// Connects and reads the greeting.
    pub(crate) async fn connect(addr: impl Into<Option<SocketAddr>>) -> Self {
        let connecting = TcpStream::connect(addr.into().unwrap());
        Self::greeted(within("a legacy client connects", connecting).await.unwrap()).await
    }

    /// The same with as small a receive buffer as there may be, for a client that is slow to read.
    pub(crate) async fn connect_small(addr: impl Into<Option<SocketAddr>>) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(SMALL_BUFFER).unwrap();
        socket.set_nonblocking(true).unwrap();
        let connecting = TcpSocket::from_std_stream(socket.into()).connect(addr.into().unwrap());
        Self::greeted(within("a legacy client connects", connecting).await.unwrap()).await
    }

    /// The same from another address of this machine.
    pub(crate) async fn connect_from(host: [u8; 4], addr: SocketAddr) -> Self {
        Self::greeted(stream_from(host, addr).await).await
    }

    async fn greeted(stream: TcpStream) -> Self {
        let (mut reader, writer) = split(stream);
        let greeting = reader.line().await;
        let address = greeting
            .strip_prefix("you is  : ")
            .unwrap_or_else(|| panic!("not a greeting: {greeting:?}"));
        Self {
            address: address.parse().unwrap(),
            reader,
            writer,
        }
    }

    /// Sends a message without asking for a receipt.
    pub(crate) async fn say(&mut self, to: &Address, body: &str) {
        self.writer.send(&message_line(to, body)).await;
    }

    /// Sends a message that asks for a receipt.
    pub(crate) async fn say_with_id(&mut self, to: &Address, body: &str, id: &str) {
        self.writer.send(&message_line_with_id(to, body, id)).await;
    }

    /// Fails if anything waits to be read: the next line must be what the client now says to itself.
    pub(crate) async fn expect_nothing_else(&mut self) {
        let own = self.address.clone();
        self.say(&own, "is there anything else?").await;
        self.reader.expect_message(&own, "is there anything else?").await;
    }
}

/// A connection from this address of this machine.
async fn stream_from(host: [u8; 4], addr: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((host, 0).into()).unwrap();
    within("a legacy client connects", socket.connect(addr)).await.unwrap()
}

/// Both directions of a connection on which nothing was read yet.
pub(crate) fn split(stream: TcpStream) -> (LineReader, LineWriter) {
    let (reader, writer) = stream.into_split();
    (LineReader(BufReader::new(reader)), LineWriter(writer))
}

impl LineReader {
    /// Connects without reading the greeting, which a node that is full does not send.
    pub(crate) async fn connect(addr: impl Into<Option<SocketAddr>>) -> (Self, LineWriter) {
        let connecting = TcpStream::connect(addr.into().unwrap());
        split(within("a legacy client connects", connecting).await.unwrap())
    }

    /// The next line as it came, with its end; `None` once the node has closed the connection.
    pub(crate) async fn raw_line(&mut self) -> Option<Vec<u8>> {
        let mut line = Vec::new();
        let read = within("the next line", self.0.read_until(b'\n', &mut line)).await;
        // A reset is an end, too: of a client that wrote more than the node read.
        read.ok().filter(|&length| length > 0).map(|_| line)
    }

    /// The next line without its end; `None` once the node has closed the connection.
    pub(crate) async fn next(&mut self) -> Option<String> {
        let mut line = String::from_utf8(self.raw_line().await?).expect("what a node writes is UTF-8");
        if line.ends_with('\n') {
            line.pop();
        }
        if line.ends_with('\r') {
            line.pop();
        }
        Some(line)
    }

    /// The next line, which must come.
    pub(crate) async fn line(&mut self) -> String {
        self.next().await.expect("a line, not the end of the connection")
    }

    pub(crate) async fn expect_message(&mut self, from: &Address, body: &str) {
        assert_eq!(self.line().await, format!("{from} say : {body}"));
    }

    /// The next line must be an error with this code; gives its text.
    pub(crate) async fn expect_error(&mut self, code: Code) -> String {
        let line = self.line().await;
        let text = line.strip_prefix(&format!("error : {code} : "));
        text.unwrap_or_else(|| panic!("not an error with code {code}: {line:?}"))
            .to_owned()
    }

    /// The next line, which must be JSON.
    pub(crate) async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// The next line must say that the message was delivered.
    pub(crate) async fn expect_delivered(&mut self, id: &str) {
        assert_eq!(
            self.json().await,
            json!({"cmd": "receipt", "id": id, "status": "delivered"})
        );
    }

    /// The next line must say that the message was refused, for this reason.
    pub(crate) async fn expect_refused(&mut self, id: &str, code: Code) {
        let mut receipt = self.json().await;
        let text = receipt.as_object_mut().and_then(|receipt| receipt.remove("text"));
        assert!(text.is_some_and(|text| text.as_str().is_some_and(|text| !text.is_empty())));
        assert_eq!(
            receipt,
            json!({"cmd": "receipt", "id": id, "status": "refused", "code": code.as_str()})
        );
    }

    /// The node must close the connection now.
    pub(crate) async fn expect_end(&mut self) {
        assert_eq!(self.next().await, None);
    }
}

impl LineWriter {
    /// Writes bytes; a failure is the test's.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within("a write", self.0.write_all(bytes)).await.unwrap();
    }

    /// Writes bytes, for as long as the node takes them.
    pub(crate) async fn write_while_taken(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// Writes a line again and again until nothing of it is taken for a while. Its last one may be broken off.
    pub(crate) async fn stuff(&mut self, line: &str) {
        let line = format!("{line}\n");
        let mut rest = line.as_bytes();
        while let Ok(written) = timeout(HELD, self.0.write(rest)).await {
            rest = match rest.get(written.unwrap()..) {
                None | Some([]) => line.as_bytes(),
                Some(rest) => rest,
            };
        }
    }

    /// Writes a line.
    pub(crate) async fn send(&mut self, line: &str) {
        self.write(format!("{line}\n").as_bytes()).await;
    }

    /// Ends the sending side.
    pub(crate) async fn end(&mut self) {
        within("the end", self.0.shutdown()).await.unwrap();
    }
}
