//! F06: ranges of ports that the kernel does not map one to one.

use super::Context;
use super::wording;
use crate::audit::finding::{Finding, Kind};
use crate::ruleset::describe;
use crate::ruleset::region::Field;
use crate::ruleset::set::Set;

/// Finds F06: a forward of several ports to several ports that are not the same range. Rules with random ports are excluded
/// if the dump shows the option; the kernel does not report it.
pub(super) fn shifted(context: &Context<'_>, kind: &'static Kind) -> Vec<Finding> {
    let host = context.host;
    let mut found = Vec::new();
    for forward in super::forwards(context) {
        let (Some((first, last)), None) = (forward.to.ports, forward.to.base) else { continue };
        let asked = forward.steps.iter().map(|(_, _, step)| step.region.get(Field::Port));
        let ports = asked.fold(Set::none(), |all, ports| if all.covers(ports) { all } else { all.or(ports) });
        let ports = ports.and(&Set::range(0, u16::MAX.into()));
        let there = Set::range(first.into(), last.into());
        let moved = ports.minus(&there);
        let random = host.rules.at(forward.at).and_then(|(_, _, rule)| rule.words.as_deref());
        if first >= last
            || ports.size() < 2
            || moved.is_empty()
            || random.is_some_and(|words| words.contains("--random"))
        {
            continue;
        }
        let kept = ports.and(&there);
        let name = wording::name(forward);
        let message = match kept.is_empty() {
            true => format!("{name} leads all of its {} ports to port {first}, and not one to one", ports.size()),
            false => format!(
                "{name} leads {} of its {} ports to port {first}, and not one to one",
                moved.size(),
                ports.size()
            ),
        };
        let words = |set: &Set| describe::set(Field::Port, set, forward.family);
        let mut finding = kind.found(wording::sure(host), message).at(host.place(forward.at));
        finding = finding.seen(format!("`{}`", wording::rule(host, forward.at)));
        finding =
            finding.seen(format!("ports {} are outside of {first}-{last}, so they arrive at {first}", words(&moved)));
        if !kept.is_empty() {
            finding = finding.seen(format!("ports {} stay as they are", words(&kept)));
        }
        let wide = ports.size() == there.size() && ports.ranges().len() == 1;
        let fix = match (forward.target(), ports.first(), ports.ranges().last()) {
            (Some(target), Some(low), Some((_, high))) if wide => {
                let target = if target.is_ipv6() { format!("[{target}]") } else { target.to_string() };
                let protocol = describe::protocol(forward.protocol().unwrap_or(6).into());
                let remove = wording::removal(host, forward.at);
                format!(
                    "{remove}; then `portfwd add {low}-{high}/{protocol} {target}:{first}-{last}`, which leads each port to its own"
                )
            }
            _ => kind.fix.to_owned(),
        };
        found.push(finding.mended_by(fix));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::super::hosts::{confidences, dump, find, nat, with_nat};
    use crate::ruleset::confidence::Confidence;

    fn rule(ports: &str, to: &str) -> String {
        format!("-A PREROUTING -p tcp -m tcp --dport {ports} -j DNAT --to-destination 172.17.0.2:{to}")
    }

    #[test]
    fn f06_a_shifted_range_goes_to_one_port() {
        let all = find(&with_nat(&rule("8000:8010", "9000-9010")), "F06");
        assert_eq!(
            all.iter().map(|it| it.message.as_str()).collect::<Vec<_>>(),
            ["`8000-8010/tcp -> 172.17.0.2:9000-9010` leads all of its 11 ports to port 9000, and not one to one"]
        );
        assert!(all[0].fix.contains("portfwd add 8000-8010/tcp 172.17.0.2:9000-9010"), "{}", all[0].fix);
        assert_eq!(all[0].confidence, Confidence::Proved);
        let part = find(&with_nat(&rule("8000:8010", "8005-8015")), "F06");
        assert!(part[0].message.contains("leads 5 of its 11 ports to port 8005"), "{}", part[0].message);
        let redirect = "-A PREROUTING -p udp -m udp --dport 1:2 -j REDIRECT --to-ports 3-4";
        assert_eq!(find(&with_nat(redirect), "F06").len(), 1);
    }

    #[test]
    fn f06_a_range_that_stays_is_fine() {
        for (ports, to) in [
            ("8000:8010", "8000-8010"),
            ("8001:8003", "8000-8010"),
            ("8000:8010", "9000"),
            ("8000:8010", "9000-9010/8000"),
            ("8000:8010", "9000-9010 --random"),
            ("80", "9000-9010"),
        ] {
            assert!(find(&with_nat(&rule(ports, to)), "F06").is_empty(), "{ports} {to}");
        }
    }

    #[test]
    fn f06_a_dump_proves_nothing() {
        assert_eq!(confidences(&dump(&nat(&rule("1:2", "3-4"))), "F06"), [Confidence::Likely]);
    }
}
