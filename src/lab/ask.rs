//! Questions that are answered: a client that connects, and what it hears from the server it reaches.

use std::fmt;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use super::{LabError, Netns};
use crate::model::Protocol;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Who answered, at which port, and whom he saw.
    By {
        /// The target's address, or `this host`.
        who: String,
        /// Its port.
        port: u16,
        /// The address that it saw.
        seen: SocketAddr,
    },
    /// Nobody is there.
    Refused,
    /// Nothing came.
    Silence,
    /// Something else went wrong.
    Failed(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By { who, port, seen } => write!(f, "{who} port {port} answered and saw {}", seen.ip()),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("no answer"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// Asks from a namespace and waits for the answer for as long as `patience`.
///
/// # Errors
/// Where the namespace cannot be entered.
pub(super) fn ask(
    namespace: &Netns,
    protocol: Protocol,
    source: IpAddr,
    to: SocketAddr,
    patience: Duration,
) -> Result<Answer, LabError> {
    let from = SocketAddr::new(source, 0);
    let text = namespace.run(|| match protocol {
        Protocol::Udp => ask_udp(from, to, patience),
        _ => ask_tcp(from, to, patience),
    })?;
    Ok(match text {
        Ok(text) => read(&text),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Answer::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Answer::Silence,
            _ => Answer::Failed(error.to_string()),
        },
    })
}

fn ask_tcp(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<String> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), patience)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn ask_udp(from: SocketAddr, to: SocketAddr, patience: Duration) -> io::Result<String> {
    let socket = UdpSocket::bind(from)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"?")?;
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

/// Reads what a server said: who he is, his port, whom he saw.
fn read(text: &str) -> Answer {
    let mut words = text.rsplitn(3, ' ');
    let seen = words.next().and_then(|word| word.parse().ok());
    let port = words.next().and_then(|word| word.parse().ok());
    match (words.next(), port, seen) {
        (Some(who), Some(port), Some(seen)) => Answer::By { who: who.to_owned(), port, seen },
        _ => Answer::Failed(format!("`{}` is no answer", crate::model::error::printable(text))),
    }
}
