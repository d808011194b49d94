//! Which forward wins, and what single rules look like.

use super::{Fault, all, expect, found, make, mend, none, not_found, silent};
use crate::support::{Net, ask, privileged, serve};

/// A host whose target answers at some ports of both of its addresses.
fn net() -> Net {
    let net = Net::new();
    for at in ["172.17.0.3:80", "172.17.0.4:80", "172.17.0.3:9000", "172.17.0.3:9002"] {
        net.serve(at, false);
    }
    net
}

#[test]
fn of_forwards_that_want_the_same_packets() {
    if !privileged() {
        return;
    }
    let net = net();
    let shadowed = Fault {
        id: "F01",
        made_by: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table ip other { chain c { type nat hook prerouting priority -101; tcp dport 8080 dnat to 172.17.0.4:80; }; }'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table ip other { chain c { type nat hook prerouting priority -101; tcp dport 8081 dnat to 172.17.0.4:80; }; }'",
    };
    let finding = found(&net, &shadowed);
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.4:80 saw 192.0.2.2");
    mend(&net, &finding);
    none(&net, "F01");
    not_found(&net, &shadowed);
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");

    let conflict = Fault {
        id: "F02",
        made_by: "nat 'tcp dport 8000-8010 dnat to 172.17.0.3:80; tcp dport 8005-8020 dnat to 172.17.0.4:80'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "nat 'tcp dport 8000-8010 dnat to 172.17.0.3:80; tcp dport 8011-8020 dnat to 172.17.0.4:80'",
    };
    found(&net, &conflict);
    assert_eq!(net.tcp("192.0.2.1:8010"), "172.17.0.3:80 saw 192.0.2.2");
    assert_eq!(net.tcp("192.0.2.1:8011"), "172.17.0.4:80 saw 192.0.2.2");
    none(&net, "F01");
    not_found(&net, &conflict);

    let duplicate = Fault {
        id: "F03",
        made_by: "xt nat '-A PREROUTING -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80
            -A PREROUTING -d 192.0.2.1 -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80'",
        found: ["proved", "warning", "ip nat PREROUTING handle"],
        nearly: "xt nat '-A PREROUTING -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80
            -A PREROUTING -d 192.0.2.1 -p tcp --dport 8081 -j DNAT --to 172.17.0.3:80'",
    };
    let finding = found(&net, &duplicate);
    mend(&net, &finding);
    none(&net, "F03");
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    not_found(&net, &duplicate);

    let wildcard = Fault {
        id: "F04",
        made_by: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3; ip daddr 192.0.2.1 tcp dport 80 dnat to 172.17.0.4'",
        found: ["proved", "warning", "ip t pre handle"],
        nearly: "nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 172.17.0.4; fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
    };
    found(&net, &wildcard);
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
    not_found(&net, &wildcard);
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.4:80 saw 192.0.2.2");
}

#[test]
fn of_two_tables_of_one_priority_the_last_one_wins() {
    if !privileged() {
        return;
    }
    let net = net();
    let table = |name: &str, priority: i32, target: &str| {
        format!(
            "nft 'table ip {name} {{ chain c {{ type nat hook prerouting priority {priority}; tcp dport 8080 dnat to {target}; }}; }}'\n"
        )
    };
    for (order, wins) in
        [(["172.17.0.3:80", "172.17.0.4:80"], "172.17.0.4:80"), (["172.17.0.4:80", "172.17.0.3:80"], "172.17.0.3:80")]
    {
        make(&net, &(table("a", -100, order[0]) + &table("b", -100, order[1])));
        expect(&net, "F05", ["proved", "error", "ip "]);
        assert_eq!(net.tcp("192.0.2.1:8080"), format!("{wins} saw 192.0.2.2"));
    }
    make(&net, &(table("a", -100, "172.17.0.3:80") + &table("b", -99, "172.17.0.4:80")));
    none(&net, "F05");
}

#[test]
fn of_single_rules() {
    if !privileged() {
        return;
    }
    let net = net();
    let shifted = Fault {
        id: "F06",
        made_by: "nat 'tcp dport 8000-8003 dnat to 172.17.0.3:9000-9003'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "xt nat '-A PREROUTING -p tcp --dport 8000:8003 -j DNAT --to 172.17.0.3:9000-9003/8000'",
    };
    found(&net, &shifted);
    assert_eq!(net.tcp("192.0.2.1:8002"), "172.17.0.3:9000 saw 192.0.2.2");
    not_found(&net, &shifted);
    assert_eq!(net.tcp("192.0.2.1:8002"), "172.17.0.3:9002 saw 192.0.2.2");

    let unguarded = Fault {
        id: "F07",
        made_by: "nat 'tcp dport 80 dnat to 172.17.0.3:9000'",
        found: ["proved", "error", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3:9000'",
    };
    found(&net, &unguarded);
    // What only passes through to the other one is taken.
    assert_eq!(net.tcp("172.17.0.4:80"), "172.17.0.3:9000 saw 192.0.2.2");
    not_found(&net, &unguarded);
    assert_eq!(net.tcp("172.17.0.4:80"), "172.17.0.4:80 saw 192.0.2.2");

    let never = Fault {
        id: "F43",
        made_by: "nat 'tcp dport 81 counter dnat to 172.17.0.4:80; tcp dport 82 counter packets 7 bytes 420 dnat to 172.17.0.4:80'",
        found: ["proved", "info", "ip t pre handle"],
        nearly: "nat 'tcp dport 81 counter dnat to 172.17.0.4:80; tcp dport 82 counter dnat to 172.17.0.4:80'",
    };
    let finding = found(&net, &never);
    assert!(finding["message"].as_str().expect("text").contains("81"), "{finding:#}");
    not_found(&net, &never);
    assert_eq!(net.tcp("192.0.2.1:82"), "172.17.0.4:80 saw 192.0.2.2");
    expect(&net, "F43", ["proved", "info", "ip t pre handle"]);
    assert_eq!(net.tcp("192.0.2.1:81"), "172.17.0.4:80 saw 192.0.2.2");
    none(&net, "F43");

    all(
        &net,
        &[
            Fault {
                id: "F41",
                made_by: "nat 'tcp dport 21 dnat to 172.17.0.3'",
                found: ["likely", "info", "ip t pre handle"],
                nearly: "nat 'tcp dport 22 dnat to 172.17.0.3'",
            },
            Fault {
                id: "F18",
                made_by: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
                found: ["proved", "warning", "ip t pre handle"],
                nearly: "nat 'fib daddr type local ip saddr 192.0.2.0/24 tcp dport 80 dnat to 172.17.0.3'",
            },
            Fault {
                id: "F29",
                made_by: "post masquerade",
                found: ["proved", "warning", "ip t post handle"],
                nearly: "post 'oifname eth0 masquerade'",
            },
        ],
    );

    let lonely = Fault {
        id: "F20",
        made_by: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
        found: ["proved", "warning", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'
            nat6 'fib daddr type local tcp dport 80 dnat to fd00:17::3'",
    };
    net.serve("[fd00:17::3]:80", false);
    found(&net, &lonely);
    assert_eq!(net.tcp("[2001:db8::1]:80"), "ConnectionRefused");
    not_found(&net, &lonely);
    assert_eq!(net.tcp("[2001:db8::1]:80"), "[fd00:17::3]:80 saw 2001:db8::2");

    let foreign = Fault {
        id: "F30",
        made_by: "post 'oifname eth0 snat to 192.0.2.99'",
        found: ["proved", "error", "ip t post handle"],
        nearly: "post 'oifname eth0 snat to 192.0.2.1'",
    };
    let outside = "192.0.2.2:99";
    net.client.run(|| serve(outside.parse().expect("address"), false)).expect("client");
    found(&net, &foreign);
    silent(&net.target, outside);
    not_found(&net, &foreign);
    let seen = net.target.run(|| ask(outside.parse().expect("address"), false)).expect("target");
    assert_eq!(seen, "192.0.2.2:99 saw 192.0.2.1");

    let lost = Fault {
        id: "F31",
        made_by: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'; post 'oifname docker0 masquerade'",
        found: ["proved", "warning", "ip t pre handle"],
        nearly: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'
            post 'ip saddr 172.17.0.0/16 oifname docker0 masquerade'",
    };
    found(&net, &lost);
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 172.17.0.1");
    not_found(&net, &lost);
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
}
