//! Servers at the targets that say whom they see.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use super::LabError;
use super::probe::Probe;
use super::topology::Topology;
use crate::model::Protocol;

/// Servers; they end with the process.
pub(super) struct Responders;

/// Starts a server for everything that a probe should reach.
pub(super) fn start(topology: &Topology, probes: &[Probe]) -> Result<Responders, LabError> {
    let mut started: BTreeSet<(String, Protocol, u16, bool)> = BTreeSet::new();
    for probe in probes {
        let Some((namespace, at)) = probe.server(topology) else { continue };
        let here = std::ptr::eq(namespace, &raw const topology.host);
        let name = if here { "this host".to_owned() } else { at.ip().to_string() };
        let (protocol, port, ipv6) = (probe.packet.protocol, at.port(), at.is_ipv6());
        if started.insert((name.clone(), protocol, port, ipv6)) {
            let bound = namespace.run(|| serve(&name, protocol, port, ipv6))?;
            bound.map_err(|error| LabError::Io("listening at a target", error))?;
        }
    }
    Ok(Responders)
}

/// Binds in the namespace of the calling thread, and serves from then on.
fn serve(name: &str, protocol: Protocol, port: u16, ipv6: bool) -> std::io::Result<()> {
    let any: IpAddr =
        if ipv6 { std::net::Ipv6Addr::UNSPECIFIED.into() } else { std::net::Ipv4Addr::UNSPECIFIED.into() };
    let at = SocketAddr::new(any, port);
    let say = {
        let name = name.to_owned();
        move |peer: SocketAddr| format!("{name} {port} {peer}")
    };
    match protocol {
        Protocol::Udp => {
            let socket = bind_udp(at)?;
            thread::spawn(move || {
                let mut question = [0; 64];
                while let Ok((_, peer)) = socket.recv_from(&mut question) {
                    let sent = socket.send_to(say(peer).as_bytes(), peer);
                    drop(sent);
                }
            });
        }
        _ => {
            let listener = bind_tcp(at)?;
            thread::spawn(move || {
                while let Ok((mut stream, peer)) = listener.accept() {
                    let sent = stream.write_all(say(peer).as_bytes());
                    drop(sent);
                }
            });
        }
    }
    Ok(())
}

/// One family only, so that a server for each can have the same port.
fn bind_tcp(at: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::STREAM, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&at.into())?;
    socket.listen(64)?;
    Ok(socket.into())
}

fn bind_udp(at: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::DGRAM, None)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&at.into())?;
    Ok(socket.into())
}
