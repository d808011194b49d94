//! What an established connection costs on its way through a host: much data, and many small messages back and forth, with our
//! forwards, with one plain rule of nft(8), and without any rewriting.
//!
//! Both ends are in one thread, so that nobody has to wake up, and a packet walks through the host while its sender waits.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Instant;

use crate::connection::net::{HOST, Net, TARGET};
use crate::connection::{ONE, plain_nft};
use crate::effort::Effort;
use crate::race::{Cost, Race};
use crate::table::Report;

/// How much is written before it is read, in bytes; less than a socket's buffer.
const PIECE: usize = 64 << 10;

const OURS: &str = "portfwd";
const PLAIN: &str = "nft, one dnat rule";
const NONE: &str = "no rewriting";

/// What sends so much from one end to the other.
type Send = fn(&TcpStream, &TcpStream, usize);

/// Measures.
pub fn bench(effort: Effort, report: &mut Report) {
    let nets = [(OURS, Net::new()), (PLAIN, Net::new()), (NONE, Net::new())];
    let [(_, ours), (_, plain), _] = &nets;
    let first = u32::from(ONE);
    let forwards: String = (1..=effort.most())
        .filter(|n| *n != first)
        .chain([first])
        .map(|n| format!("[[forward]]\nlisten = \"{n}\"\nto = \"{TARGET}:80\"\n"))
        .collect();
    ours.apply(&forwards);
    plain.load("nft", &["-f"], &plain_nft(ONE));
    let ends = nets.iter().map(|(name, net)| {
        let to = if *name == NONE { SocketAddrV4::new(TARGET, 80) } else { SocketAddrV4::new(HOST, ONE) };
        (*name, net.established(to))
    });
    let ends: Vec<(&str, (TcpStream, TcpStream))> = ends.collect();
    let (pieces, messages) = if effort.quick { (400, 2_000) } else { (4_000, 20_000) };
    let rounds = if effort.quick { 9 } else { 21 };
    let kinds = [("throughput", bulk as Send, pieces), ("round trip of a byte", back_and_forth, messages)];
    for (what, send, count) in kinds {
        let mut race = Race::default();
        for (name, (client, server)) in &ends {
            race.enter(*name, move || {
                let start = Instant::now();
                send(client, server, count);
                Cost::seconds(start.elapsed().as_secs_f64())
            });
        }
        let results = race.run(what, rounds);
        report.against_all(what, effort.most(), OURS, &results, &[]);
    }
}

/// Sends so many pieces from the client to the target.
fn bulk(mut client: &TcpStream, mut server: &TcpStream, pieces: usize) {
    let (piece, mut room) = (vec![7; PIECE], vec![0; PIECE]);
    for _ in 0..pieces {
        client.write_all(&piece).expect("sent");
        read_all(&mut server, &mut room);
    }
}

/// Sends a byte to the target and back, so many times.
fn back_and_forth(mut client: &TcpStream, mut server: &TcpStream, messages: usize) {
    let mut room = [0];
    client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).expect("no delay");
    for _ in 0..messages {
        client.write_all(&[1]).expect("sent");
        read_all(&mut server, &mut room);
        server.write_all(&[2]).expect("sent");
        client.read_exact(&mut room).expect("received");
    }
}

/// Reads as much as there is room for from a socket that does not block.
fn read_all(socket: &mut &TcpStream, room: &mut [u8]) {
    let mut have = 0;
    while have < room.len() {
        match socket.read(&mut room[have..]) {
            Ok(0) => panic!("the connection ended"),
            Ok(length) => have += length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("the connection: {error}"),
        }
    }
}
