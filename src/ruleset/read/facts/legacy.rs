//! The tables of iptables-legacy that exist in the network namespace. Only their names are read: a request for a table, as
//! `iptables-legacy -L` sends, creates it.
//!
//! Source: `xt_table_seq_ops` and `xt_proto_init` in net/netfilter/x_tables.c.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::gap::gap;
use crate::model::Family;
use crate::ruleset::table::Gap;

/// The directory of the thread's namespace. /proc/net is that of the process's first thread.
const DIRECTORY: &str = "/proc/thread-self/net";

/// Reads the names. A family without the file has no tables.
pub(super) fn read(gaps: &mut Vec<Gap>) -> BTreeSet<(Family, String)> {
    read_below(Path::new(DIRECTORY), gaps)
}

fn read_below(directory: &Path, gaps: &mut Vec<Gap>) -> BTreeSet<(Family, String)> {
    let mut found = BTreeSet::new();
    for (family, file) in [(Family::Ipv4, "ip_tables_names"), (Family::Ipv6, "ip6_tables_names")] {
        match fs::read_to_string(directory.join(file)) {
            Ok(names) => found.extend(names.lines().map(|name| (family, name.to_owned()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => {}
            Err(error) => gaps.push(gap(&format!("tables of iptables-legacy of {family}"), &error)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_no_gap_but_one_that_cannot_be_read() {
        let directory = tempfile::tempdir().expect("directory");
        let mut gaps = Vec::new();
        assert!(read_below(directory.path(), &mut gaps).is_empty());
        assert_eq!(gaps, []);
        fs::write(directory.path().join("ip_tables_names"), "nat\nfilter\n").expect("written");
        fs::create_dir(directory.path().join("ip6_tables_names")).expect("made");
        let found = read_below(directory.path(), &mut gaps);
        assert_eq!(found, BTreeSet::from([(Family::Ipv4, "filter".into()), (Family::Ipv4, "nat".into())]));
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        assert!(gaps[0].what.ends_with("IPv6"), "{gaps:?}");
        gaps.clear();
        assert!(read_below(&directory.path().join("none"), &mut gaps).is_empty());
        assert_eq!(gaps.len(), 2, "{gaps:?}");
    }
}
