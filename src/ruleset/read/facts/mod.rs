//! Reads the facts of this host over rtnetlink, xfrm, sock_diag and ctnetlink, and from /proc, in the network namespace of the
//! calling thread. The reads change nothing: they create no table and load no module.
//!
//! Limit: the facts are not of one moment. Each part that the process may not read is a gap.

mod boot;
mod gap;
mod legacy;
mod listener;
mod other;
mod route;
mod setting;
mod tracked;

use std::io;

use self::gap::gap;
use crate::model::Family;
use crate::ruleset::facts::Facts;
use crate::ruleset::table::Gap;
use crate::sys::rtnetlink::{Dump, Rtnetlink};
use crate::sys::ssh::Ssh;

/// Reads the facts. `ssh` is the value of `SSH_CONNECTION` if the user is connected to the thread's namespace. Parts that
/// cannot be read are in [`Facts::gaps`]. [`Facts::drift`] and [`Facts::ours`] stay empty.
pub fn read(ssh: Option<&str>) -> Facts {
    let ssh = ssh.and_then(Ssh::parse);
    let mut facts = Facts {
        ssh: ssh.map(|ssh| (ssh.server.ip(), ssh.server.port())),
        ssh_client: ssh.map(|ssh| ssh.client),
        ..Facts::default()
    };
    match Rtnetlink::open() {
        Ok(kernel) => network(&kernel, &mut facts),
        Err(error) => facts.gaps.push(gap("interfaces, addresses, routes and neighbours", &error)),
    }
    facts.settings = setting::read(&mut facts.gaps);
    facts.legacy = legacy::read(&mut facts.gaps);
    facts.ipsec = other::ipsec(&mut facts.gaps);
    facts.ipvs = other::ipvs(&mut facts.gaps);
    facts.listeners = listener::read(&mut facts.gaps);
    facts.tracked_count = tracked::count(&facts);
    facts.tracked = tracked::read(&mut facts);
    facts.boot = boot::read(&mut facts.gaps);
    facts
}

fn network(kernel: &Rtnetlink, facts: &mut Facts) {
    all(kernel.links(), "interfaces", facts).into_iter().for_each(|link| route::add_link(link, facts));
    let queues = all(kernel.qdiscs(), "queueing disciplines", facts);
    other::add_queues(&queues, facts);
    for family in Family::ALL {
        let addresses = all(kernel.addresses(family), &format!("addresses of {family}"), facts);
        addresses.into_iter().for_each(|address| route::add_address(address, facts));
        let routes = all(kernel.routes(family), &format!("routes of {family}"), facts);
        let neighbours = all(kernel.neighbours(family), &format!("neighbours of {family}"), facts);
        neighbours.iter().for_each(|neighbour| route::add_neighbour(neighbour, facts));
        let rules = all(kernel.rules(family), &format!("routing rules of {family}"), facts);
        facts.policy_routing |= route::unusual(&rules);
        *facts.rules_mut(family) = rules;
        routes.iter().for_each(|route| route::add_route(route, facts));
    }
}

/// Returns all objects of a kind. Missing objects become gaps.
fn all<T>(dump: io::Result<Dump<T>>, what: &str, facts: &mut Facts) -> Vec<T> {
    let gaps = &mut facts.gaps;
    match dump {
        Ok(Dump { objects, unread, interrupted }) => {
            if unread > 0 {
                gaps.push(Gap {
                    what: format!("{unread} of the {what}"),
                    why: "the kernel's words are not understood".into(),
                });
            }
            if interrupted {
                let why = "they were changed each time that they were read".into();
                gaps.push(Gap { what: format!("some of the {what}"), why });
            }
            objects
        }
        Err(error) => {
            gaps.push(gap(what, &error));
            Vec::new()
        }
    }
}
