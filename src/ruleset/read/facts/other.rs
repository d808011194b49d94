//! Parts of the kernel that see packets but are no rules: queueing disciplines (tc), IPsec policies (xfrm) and virtual
//! services (IPVS). The simulator does not model them, so it only needs to know whether they exist.

use std::fs;
use std::io;
use std::path::Path;

use nix::errno::Errno;

use super::gap::gap;
use crate::ruleset::facts::Facts;
use crate::ruleset::table::Gap;
use crate::sys::netlink::{Attributes, Bus, Request, Socket};
use crate::sys::rtnetlink::Qdisc;

/// Queueing disciplines that hold no filters and drop packets only if a queue is full.
const PLAIN: [&str; 15] = [
    "noqueue",
    "pfifo",
    "bfifo",
    "pfifo_fast",
    "pfifo_head_drop",
    "mq",
    "mqprio",
    "fq",
    "fq_codel",
    "codel",
    "fq_pie",
    "pie",
    "sfq",
    "cake",
    "taprio",
];

/// Adds the interfaces with a queueing discipline that can hold filters.
pub(super) fn add_queues(queues: &[Qdisc], facts: &mut Facts) {
    let others = queues.iter().filter(|queue| !PLAIN.contains(&queue.kind.as_str()));
    let mut names: Vec<String> = others.filter_map(|queue| Some(facts.link(queue.index)?.name.clone())).collect();
    names.sort();
    names.dedup();
    facts.queues = names;
}

/// Returns true if the namespace has IPsec policies. Policies of single sockets do not count.
///
/// Source: `xfrm_get_spdinfo` in net/xfrm/xfrm_user.c, `XFRMA_SPD_INFO` in include/uapi/linux/xfrm.h.
pub(super) fn ipsec(gaps: &mut Vec<Gap>) -> bool {
    const GET_INFO: u16 = 0x25;
    const INFO: u16 = 1;
    let mut policies = 0;
    // The counts of policies for input, output and forwarding are the first three numbers.
    let answer = Socket::open(Bus::Xfrm).and_then(|mut socket| {
        let read = socket.get(&Request::new(GET_INFO, vec![0; 4]), |message| {
            let counts = Attributes::behind(message.body, 4).get(INFO).unwrap_or_default();
            policies = counts.iter().take(12).map(|byte| u32::from(*byte)).sum();
        });
        read.map_err(io::Error::from)
    });
    match answer {
        Ok(()) => {}
        // A kernel without xfrm has no policies.
        Err(error) if is_absent(&error) => {}
        Err(error) => gaps.push(gap("IPsec policies", &error)),
    }
    policies > 0
}

fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::EPROTONOSUPPORT, Errno::EAFNOSUPPORT, Errno::ECONNREFUSED, Errno::EINVAL];
    absent.iter().any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// Returns true if the namespace has virtual services of IPVS.
pub(super) fn ipvs(gaps: &mut Vec<Gap>) -> bool {
    ipvs_below(Path::new("/proc/thread-self/net"), gaps)
}

fn ipvs_below(directory: &Path, gaps: &mut Vec<Gap>) -> bool {
    match fs::read_to_string(directory.join("ip_vs")) {
        // Three lines of headings come first.
        Ok(text) => text.lines().nth(3).is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            gaps.push(gap("virtual services (IPVS)", &error));
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::hosts;

    #[test]
    fn only_services_of_ipvs_count_and_not_its_headings() {
        let directory = tempfile::tempdir().expect("directory");
        let mut gaps = Vec::new();
        assert!(!ipvs_below(directory.path(), &mut gaps));
        let headings = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        for (services, has) in [("", false), ("TCP  C0000201:0050 wlc\n", true), ("FWM  00000001 rr\n", true)] {
            fs::write(directory.path().join("ip_vs"), format!("{headings}{services}")).expect("written");
            assert_eq!(ipvs_below(directory.path(), &mut gaps), has, "{services}");
        }
        assert_eq!(gaps, []);
        fs::remove_file(directory.path().join("ip_vs")).expect("removed");
        fs::create_dir(directory.path().join("ip_vs")).expect("made");
        assert!(!ipvs_below(directory.path(), &mut gaps));
        assert_eq!(gaps.len(), 1);
    }

    #[test]
    fn a_plain_queue_is_no_filter() {
        let mut facts = hosts::facts();
        let queue = |index, kind: &str| Qdisc { index, kind: kind.into() };
        add_queues(&[queue(2, "fq_codel"), queue(3, "noqueue")], &mut facts);
        assert!(facts.queues.is_empty());
        add_queues(&[queue(2, "clsact"), queue(3, "netem"), queue(3, "ingress"), queue(9, "htb")], &mut facts);
        assert_eq!(facts.queues, ["docker0", "eth0"]);
    }
}
