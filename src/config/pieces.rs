//! Large files are read in pieces, several at a time: whole, the tokens and tables of 60,000 forwards take 60 MB, and more
//! time to get that memory than to read them. Measured, Linux 6.18.
//!
//! A file is cut where a line begins with `[[`. What every piece says by itself is what the file says, where all pieces
//! are valid, no keys stand before the first header, and settings are in one piece only: what reaches across a cut, such as
//! text of several lines, has no end in the piece where it begins. Every other file, and every one with a mistake, is read
//! whole.

use std::sync::Arc;

use super::forward::host_of_network;
use super::part::Part;
use super::plain;
use super::reader::Reader;
use super::source::Source;

/// The least size of a piece in bytes: its tokens and tables stay in the processor's cache.
const PIECE: usize = 32 << 10;

/// How many pieces are worth a thread of their own.
const SHARE: usize = 4;

/// The most threads.
const THREADS: usize = 4;

/// Reads a file in pieces, where that can be done and all of it is valid.
pub(super) fn read(source: &Arc<Source>) -> Option<Vec<Part>> {
    if source.text.len() < PIECE * SHARE { None } else { read_by(source, PIECE) }
}

/// The same, in pieces of at least so many bytes.
fn read_by(source: &Arc<Source>, least: usize) -> Option<Vec<Part>> {
    if !begins_with_header(&source.text) {
        return None;
    }
    let pieces = cut(&source.text, least);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let share = pieces.len().div_ceil(threads).max(SHARE);
    let (mine, others) = pieces.split_at(share.min(pieces.len()));
    let parts: Option<Vec<Part>> = std::thread::scope(|scope| {
        let others: Vec<_> = others.chunks(share).map(|pieces| scope.spawn(|| together(source, pieces))).collect();
        let mut parts = together(source, mine)?;
        for other in others {
            parts.append(&mut other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Some(parts)
    });
    parts.filter(|parts| settings_once(parts) && all_hosts(parts))
}

/// Whether no keys stand before the first header.
fn begins_with_header(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.next().is_some_and(|line| line.starts_with('['))
}

/// The pieces of a text, each with the place where it begins.
fn cut(text: &str, least: usize) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let (mut begin, mut rest) = (0, text);
    while let Some(at) = rest.as_bytes().get(least..).and_then(header)
        && let Some((piece, next)) = rest.split_at_checked(least + at)
    {
        pieces.push((begin, piece));
        (begin, rest) = (begin + piece.len(), next);
    }
    pieces.push((begin, rest));
    pieces
}

/// Where the next line that begins with `[[` begins.
fn header(bytes: &[u8]) -> Option<usize> {
    bytes.windows(3).position(|three| three == b"\n[[").map(|at| at + 1)
}

/// Reads pieces one after another; nothing where one has a mistake.
fn together(source: &Arc<Source>, pieces: &[(usize, &str)]) -> Option<Vec<Part>> {
    let read = |(begin, text): &(usize, &str)| {
        let mut reader = Reader::new(source, *begin);
        if let Some(part) = plain::read(&reader, text) {
            return Some(part);
        }
        let part = Part::read(&mut reader, text);
        reader.problems.is_empty().then_some(part)
    };
    pieces.iter().map(read).collect()
}

fn settings_once(parts: &[Part]) -> bool {
    parts.iter().filter(|part| part.settings.is_some()).count() <= 1
}

/// Whether every target is a host in the networks of all pieces.
fn all_hosts(parts: &[Part]) -> bool {
    let networks: Vec<_> = parts.iter().flat_map(|part| &part.networks).cloned().collect();
    let mut forwards = parts.iter().flat_map(|part| &part.forwards);
    forwards.all(|(forward, _)| host_of_network(&forward.to, &networks).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn source(text: &str) -> Arc<Source> {
        Arc::new(Source { path: "x.toml".into(), text: text.to_owned() })
    }

    /// What a file says, read whole; nothing where it has a mistake.
    fn whole(source: &Arc<Source>) -> Option<Part> {
        let mut reader = Reader::new(source, 0);
        let part = Part::read(&mut reader, &source.text);
        reader.problems.is_empty().then_some(part)
    }

    fn joined(parts: Vec<Part>) -> Part {
        let mut all = Part::default();
        for part in parts {
            all.networks.extend(part.networks);
            all.forwards.extend(part.forwards);
            all.masquerades.extend(part.masquerades);
            all.snats.extend(part.snats);
            all.netmaps.extend(part.netmaps);
            all.name = part.name.or(all.name);
            all.settings = part.settings.or(all.settings);
            all.priority = part.priority.or(all.priority);
        }
        all
    }

    /// Parts of files, some of which mean something else, or nothing, where a file is cut.
    const FRAGMENTS: [&str; 32] = [
        "[[forward]]\nlisten = \"80\"\nto = \"10.0.0.1\"\n",
        "[[forward]]\nlisten = \"81\"\nto = \"10.0.0.0:80\" # [[forward]]\n",
        "[[forward]]\r\nlisten = \"82\"\r\nto = \"[fd00::1]:80\"\r\n",
        "[[ \"forward\" ]]\nlisten = \"83\"\nto = \":80\"\n",
        "[[forward]]\nlisten = \"84\"\nto = \"10.0.0.1\"\nfrom = [\n[[forward]]\n]\n",
        "[[forward]]\nlisten = \"85\"\nto = \"10.0.0.1\"\ncomment = \"\"\"\n[[forward]]\"\"\"\n",
        "[[forward]]\nlisten = \"86\"\nto = \"10.0.0.1\"\ncomment = '''\n[[forward]]\n",
        "[[forward]]\nlisten = \"87\"\nto = \"10.0.0.1\"\nfrom = [\n  \"10.0.0.0/8\",\n]\n",
        "'''\n",
        "\"\"\"\n",
        "]\n",
        "[[network]]\nname = \"br0\"\nsubnet = [\"10.0.0.0/24\"]\n",
        "[[masquerade]]\nout = \"eth0\"\n",
        "[[snat]]\nfrom = \"10.0.0.0/24\"\nto = \"203.0.113.5\"\n",
        "[[netmap]]\nlisten = \"192.0.2.0/24\"\nto = \"10.0.0.0/24\"\n",
        "[settings]\nname = \"web\"\npriority = -110\n",
        "[settings]\nip_forward = \"keep\"\n",
        "[forward]\nlisten = \"88\"\n",
        "[[forward.more]]\nlisten = \"89\"\n",
        "forward = []\n",
        "# a remark with [[forward]] and \"\"\"\n\n",
        "loopback = true\n",
        "[[forward]]\nlisten = \"2001\"\nto = \"10.0.0.1\"\n\nprotocol = \"udp\"\ninterface = \"eth0\"\n",
        "[[forward]]\nfrom = \"10.9.0.0/16\"\nto = \"10.0.0.1:80\"\nlisten = \"10.0.0.9:90\"\nsource = \"masquerade\"\n",
        "[[forward]]\nlisten = \"91\"\nto = \"10.0.0.1\"\ncomment = \"a = \\\"b\\\" # c\"\n",
        "[[forward]]\nlisten = \"92\"\nto = \"10.0.0.1\"\ncomment = \"a = b # c\"",
        "comment = \"d\"\n",
        "listen = \"93\"\n",
        "to = \"10.0.0.2\" # to\n",
        "source = \"nowhere\"\n",
        "[[forward]]\n",
        "hairpin = \"no\"\n",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn pieces_say_what_the_whole_file_says(
            picks in proptest::collection::vec(0..FRAGMENTS.len(), 1..9),
            least in 1usize..120,
        ) {
            let source = source(&picks.iter().map(|at| FRAGMENTS[*at]).collect::<String>());
            if let Some(parts) = read_by(&source, least) {
                prop_assert_eq!(Some(joined(parts)), whole(&source), "{}", &source.text);
            }
        }
    }

    #[test]
    fn a_long_list_is_read_in_pieces_with_its_places() {
        let text: String =
            (1..=20_000).map(|port| format!("[[forward]]\nlisten = \"{port}\"\nto = \"10.0.0.1:80\"\n")).collect();
        let source = source(&text);
        let parts = read(&source).expect("in pieces");
        assert!(parts.len() > 8, "{}", parts.len());
        assert_eq!(Some(joined(parts)), whole(&source));
        assert!(plain::read(&Reader::new(&source, 0), &text).is_some());
    }

    #[test]
    fn a_target_that_is_no_host_of_a_network_in_another_piece_is_found() {
        let text = FRAGMENTS[1].repeat(2) + FRAGMENTS[11];
        assert_eq!(read_by(&source(&text.replacen("81", "90", 1)), 1), None);
    }
}
