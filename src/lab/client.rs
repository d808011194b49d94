//! A client that connects to a server and reads the answer of [`super::responder`].

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::{LabError, Netns};
use crate::model::Protocol;

/// The result of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The server accepted the request and answered.
    From {
        /// The target's address, or `this host`.
        server: String,
        /// The port that the server listens on.
        port: u16,
        /// The client's address as the server sees it.
        client: SocketAddr,
    },
    /// The peer refused or reset the connection.
    Refused,
    /// No answer came within the timeout.
    Silence,
    /// Another error, with its text.
    Failed(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From { server, port, client } => write!(f, "{server} port {port} answered and saw {}", client.ip()),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("no answer"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// Sends a request from a namespace and waits at most `timeout` for the answer.
///
/// # Errors
/// If the thread cannot enter the namespace.
pub(super) fn query(
    namespace: &Netns,
    protocol: Protocol,
    source: IpAddr,
    to: SocketAddr,
    timeout: Duration,
) -> Result<Answer, LabError> {
    let from = SocketAddr::new(source, 0);
    let text = namespace.run(|| match protocol {
        Protocol::Udp => query_udp(from, to, timeout),
        _ => query_tcp(from, to, timeout),
    })?;
    Ok(match text {
        Ok(text) => parse_answer(&text),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Answer::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Answer::Silence,
            _ => Answer::Failed(error.to_string()),
        },
    })
}

fn query_tcp(from: SocketAddr, to: SocketAddr, timeout: Duration) -> io::Result<String> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), timeout)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(timeout))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn query_udp(from: SocketAddr, to: SocketAddr, timeout: Duration) -> io::Result<String> {
    let socket = UdpSocket::bind(from)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.send(b"?")?;
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

/// Parses the answer of a server: its name, its port, the client's address.
fn parse_answer(text: &str) -> Answer {
    let mut words = text.rsplitn(3, ' ');
    let client = words.next().and_then(|word| word.parse().ok());
    let port = words.next().and_then(|word| word.parse().ok());
    match (words.next(), port, client) {
        (Some(server), Some(port), Some(client)) => Answer::From { server: server.to_owned(), port, client },
        _ => Answer::Failed(format!("`{}` is no answer", crate::model::error::printable(text))),
    }
}
