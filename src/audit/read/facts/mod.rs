//! What is so on this host: read over rtnetlink, sock_diag, ctnetlink and below /proc, in the network namespace of the calling
//! thread. Nothing is changed by looking, no table made and no module loaded that is not there.
//!
//! Be aware: it is not all of one moment, and of a process that may not look at something there are gaps, each with its name
//! and reason.

mod boot;
mod dump;
mod legacy;
mod link;
mod listener;
mod route;
mod setting;
mod tracked;

use std::io;

use self::dump::{Answer, Kernel, Message, Subject};
use self::route::Told;
use crate::audit::facts::Facts;
use crate::audit::ruleset::Gap;
use crate::engine::guard::Ssh;
use crate::model::Family;

/// Reads all of it. `ssh` is what the environment says as `SSH_CONNECTION`, where the thread is in the namespace that the user
/// is connected to. What cannot be read is named in [`Facts::gaps`]; [`Facts::drift`] and [`Facts::ours`] are left empty.
pub fn read(ssh: Option<&str>) -> Facts {
    let ssh = ssh.and_then(Ssh::parse);
    let mut facts = Facts {
        ssh: ssh.map(|ssh| (ssh.server.ip(), ssh.server.port())),
        ssh_client: ssh.map(|ssh| ssh.client),
        ..Facts::default()
    };
    match Kernel::open() {
        Ok(mut kernel) => network(&mut kernel, &mut facts),
        Err(error) => facts.gaps.push(gap("interfaces, addresses, routes and neighbours", &error)),
    }
    facts.settings = setting::read(&mut facts.gaps);
    facts.legacy = legacy::read(&mut facts.gaps);
    facts.listeners = listener::read(&mut facts.gaps);
    facts.tracked_count = tracked::count(&facts);
    facts.tracked = tracked::read(&mut facts);
    facts.boot = boot::read(&mut facts.gaps);
    facts
}

fn gap(what: &str, error: &io::Error) -> Gap {
    let why = match error.kind() {
        io::ErrorKind::PermissionDenied => "only root may read it".to_owned(),
        _ => error.to_string(),
    };
    Gap { what: what.to_owned(), why }
}

fn network(kernel: &mut Kernel, facts: &mut Facts) {
    let mask = link::without_statistics();
    let links = all(kernel, dump::LINKS, 0, &mask, "interfaces", &mut facts.gaps, link::read);
    facts.programs = links.iter().filter(|(_, program)| *program).map(|(link, _)| link.name.clone()).collect();
    facts.links = links.into_iter().map(|(link, _)| link).collect();
    for family in Family::ALL {
        let number = route::number(family);
        let gaps = &mut facts.gaps;
        let what = |what: &str| format!("{what} of {family}");
        let addresses = all(kernel, dump::ADDRESSES, number, &[], &what("addresses"), gaps, route::address);
        facts.addresses.extend(addresses);
        let routes = all(kernel, dump::ROUTES, number, &[], &what("routes"), gaps, route::route);
        let neighbours = all(kernel, dump::NEIGHBOURS, number, &[], &what("neighbours"), gaps, route::neighbour);
        facts.neighbours.extend(neighbours);
        let rules = all(kernel, dump::RULES, number, &[], &what("routing rules"), gaps, route::lookup);
        facts.policy_routing |= route::unusual(&rules);
        for told in routes {
            match told {
                Told::Route(route) => facts.routes.push(route),
                Told::FromSome(route) => {
                    facts.routes.push(route);
                    facts.policy_routing = true;
                }
                Told::OfService => facts.policy_routing = true,
                Told::Object(route, object) => {
                    gaps.push(Gap {
                        what: format!("the way of the route to {}", route.to),
                        why: format!("it is the nexthop object {object}, which the kernel does not tell with it"),
                    });
                    facts.routes.push(route);
                }
            }
        }
    }
}

/// All of a kind; what is missing of it becomes gaps.
fn all<T>(
    kernel: &mut Kernel,
    subject: Subject,
    family: u8,
    attributes: &[u8],
    what: &str,
    gaps: &mut Vec<Gap>,
    read: impl Fn(Message<'_>, &mut Vec<T>) -> Option<()>,
) -> Vec<T> {
    match kernel.all(subject, family, attributes, read) {
        Ok(Answer { found, unread, torn }) => {
            if unread > 0 {
                gaps.push(Gap {
                    what: format!("{unread} of the {what}"),
                    why: "the kernel's words are not understood".into(),
                });
            }
            if torn {
                let why = "they were changed each time that they were read".into();
                gaps.push(Gap { what: format!("some of the {what}"), why });
            }
            found
        }
        Err(error) => {
            gaps.push(gap(what, &error));
            Vec::new()
        }
    }
}
