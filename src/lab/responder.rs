//! Servers at the targets. Each answers with its own name and the client's address.

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;

use nix::cmsg_space;
use nix::libc::{in_addr, in_pktinfo, in6_addr, in6_pktinfo};
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt};

use super::LabError;
use super::probe::Probe;
use super::topology::Topology;
use crate::model::Protocol;

/// The running servers. They end with the process.
pub(super) struct Responders;

/// Starts a server at each address and port that a probe should reach.
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

/// Binds a socket in the namespace of the calling thread and serves it in a new thread.
fn serve(name: &str, protocol: Protocol, port: u16, ipv6: bool) -> std::io::Result<()> {
    let any: IpAddr = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let at = SocketAddr::new(any, port);
    let reply = {
        let name = name.to_owned();
        move |peer: SocketAddr| format!("{name} {port} {peer}")
    };
    match protocol {
        Protocol::Udp => {
            let socket = bind_udp(at)?;
            thread::spawn(move || {
                let mut request = [0; 64];
                while let Ok((peer, local)) = receive(&socket, &mut request) {
                    let sent = send_answer(&socket, reply(peer).as_bytes(), peer, local);
                    drop(sent);
                }
            });
        }
        _ => {
            let listener = bind_tcp(at)?;
            thread::spawn(move || {
                while let Ok((mut stream, peer)) = listener.accept() {
                    let sent = stream.write_all(reply(peer).as_bytes());
                    drop(sent);
                }
            });
        }
    }
    Ok(())
}

/// Binds to one family only, so that an IPv4 and an IPv6 server can share a port.
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
        setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
    }
    socket.bind(&at.into())?;
    Ok(socket.into())
}

/// Receives a request. Returns the client's address and the local address that the request was sent to.
fn receive(socket: &UdpSocket, request: &mut [u8]) -> std::io::Result<(SocketAddr, Option<IpAddr>)> {
    let (mut parts, mut control) = ([IoSliceMut::new(request)], cmsg_space!(in6_pktinfo, in_pktinfo));
    let flags = MsgFlags::empty();
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut local = None;
    for extra in message.cmsgs()? {
        match extra {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                local = Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into()),
            _ => {}
        }
    }
    let peer = message.address.as_ref().and_then(|peer| {
        let v4 = peer.as_sockaddr_in().map(|peer| SocketAddr::new(peer.ip().into(), peer.port()));
        v4.or_else(|| peer.as_sockaddr_in6().map(|peer| SocketAddr::new(peer.ip().into(), peer.port())))
    });
    Ok((peer.ok_or(std::io::ErrorKind::InvalidData)?, local))
}

/// Sends an answer from the address that received the request.
///
/// Without a source address the kernel chooses the one on the route to the peer, and NAT does not recognise the answer.
fn send_answer(socket: &UdpSocket, text: &[u8], peer: SocketAddr, local: Option<IpAddr>) -> std::io::Result<usize> {
    let parts = [IoSlice::new(text)];
    let (v4, v6);
    let from = match local {
        Some(IpAddr::V4(address)) => {
            let ipi_spec_dst = in_addr { s_addr: u32::from(address).to_be() };
            v4 = in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr: in_addr { s_addr: 0 } };
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Some(IpAddr::V6(address)) => {
            v6 = in6_pktinfo { ipi6_addr: in6_addr { s6_addr: address.octets() }, ipi6_ifindex: 0 };
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        None => None,
    };
    let flags = MsgFlags::empty();
    Ok(sendmsg(socket.as_raw_fd(), &parts, from.as_slice(), flags, Some(&SockaddrStorage::from(peer)))?)
}
