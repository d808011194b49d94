//! Findings about precedence between forwards and about single rules.

use super::{
    Fault, apply_fix, check_all, expect_fault, expect_finding, expect_no_fault, expect_none, expect_timeout,
    reset_and_run,
};
use crate::support::{Net, ask, privileged, serve};

/// Returns a network whose target has two addresses and serves some ports at both.
fn net() -> Net {
    let net = Net::new();
    for at in ["172.17.0.3:80", "172.17.0.4:80", "172.17.0.3:9000", "172.17.0.3:9002"] {
        net.serve(at, false);
    }
    net
}

#[test]
fn finds_forwards_for_the_same_packets() {
    if !privileged() {
        return;
    }
    let net = net();
    let shadowed = Fault {
        id: "F01",
        fault_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table ip other { chain c { type nat hook prerouting priority -101; tcp dport 8080 dnat to 172.17.0.4:80; }; }'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 8080 dnat to 172.17.0.3:80'
            nft 'table ip other { chain c { type nat hook prerouting priority -101; tcp dport 8081 dnat to 172.17.0.4:80; }; }'",
    };
    let finding = expect_fault(&net, &shadowed);
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.4:80 saw 192.0.2.2");
    apply_fix(&net, &finding);
    expect_none(&net, "F01");
    expect_no_fault(&net, &shadowed);
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");

    let conflict = Fault {
        id: "F02",
        fault_script: "nat 'tcp dport 8000-8010 dnat to 172.17.0.3:80; tcp dport 8005-8020 dnat to 172.17.0.4:80'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "nat 'tcp dport 8000-8010 dnat to 172.17.0.3:80; tcp dport 8011-8020 dnat to 172.17.0.4:80'",
    };
    expect_fault(&net, &conflict);
    assert_eq!(net.tcp("192.0.2.1:8010"), "172.17.0.3:80 saw 192.0.2.2");
    assert_eq!(net.tcp("192.0.2.1:8011"), "172.17.0.4:80 saw 192.0.2.2");
    expect_none(&net, "F01");
    expect_no_fault(&net, &conflict);

    let duplicate = Fault {
        id: "F03",
        fault_script: "xt nat '-A PREROUTING -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80
            -A PREROUTING -d 192.0.2.1 -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80'",
        found: ["proved", "warning", "ip nat PREROUTING handle"],
        near_miss_script: "xt nat '-A PREROUTING -p tcp --dport 8080 -j DNAT --to 172.17.0.3:80
            -A PREROUTING -d 192.0.2.1 -p tcp --dport 8081 -j DNAT --to 172.17.0.3:80'",
    };
    let finding = expect_fault(&net, &duplicate);
    apply_fix(&net, &finding);
    expect_none(&net, "F03");
    assert_eq!(net.tcp("192.0.2.1:8080"), "172.17.0.3:80 saw 192.0.2.2");
    expect_no_fault(&net, &duplicate);

    let wildcard = Fault {
        id: "F04",
        fault_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3; ip daddr 192.0.2.1 tcp dport 80 dnat to 172.17.0.4'",
        found: ["proved", "warning", "ip t pre handle"],
        near_miss_script: "nat 'ip daddr 192.0.2.1 tcp dport 80 dnat to 172.17.0.4; fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
    };
    expect_fault(&net, &wildcard);
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
    expect_no_fault(&net, &wildcard);
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.4:80 saw 192.0.2.2");
}

#[test]
fn the_later_of_two_tables_with_equal_priority_wins() {
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
        reset_and_run(&net, &(table("a", -100, order[0]) + &table("b", -100, order[1])));
        expect_finding(&net, "F05", ["proved", "error", "ip "]);
        assert_eq!(net.tcp("192.0.2.1:8080"), format!("{wins} saw 192.0.2.2"));
    }
    reset_and_run(&net, &(table("a", -100, "172.17.0.3:80") + &table("b", -99, "172.17.0.4:80")));
    expect_none(&net, "F05");
}

#[test]
fn finds_faults_in_single_rules() {
    if !privileged() {
        return;
    }
    let net = net();
    let shifted = Fault {
        id: "F06",
        fault_script: "nat 'tcp dport 8000-8003 dnat to 172.17.0.3:9000-9003'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "xt nat '-A PREROUTING -p tcp --dport 8000:8003 -j DNAT --to 172.17.0.3:9000-9003/8000'",
    };
    expect_fault(&net, &shifted);
    assert_eq!(net.tcp("192.0.2.1:8002"), "172.17.0.3:9000 saw 192.0.2.2");
    expect_no_fault(&net, &shifted);
    assert_eq!(net.tcp("192.0.2.1:8002"), "172.17.0.3:9002 saw 192.0.2.2");

    let unguarded = Fault {
        id: "F07",
        fault_script: "nat 'tcp dport 80 dnat to 172.17.0.3:9000'",
        found: ["proved", "error", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3:9000'",
    };
    expect_fault(&net, &unguarded);
    // A rule without an address also takes routed traffic to other hosts.
    assert_eq!(net.tcp("172.17.0.4:80"), "172.17.0.3:9000 saw 192.0.2.2");
    expect_no_fault(&net, &unguarded);
    assert_eq!(net.tcp("172.17.0.4:80"), "172.17.0.4:80 saw 192.0.2.2");

    let never = Fault {
        id: "F43",
        fault_script: "nat 'tcp dport 81 counter dnat to 172.17.0.4:80; tcp dport 82 counter packets 7 bytes 420 dnat to 172.17.0.4:80'",
        found: ["proved", "info", "ip t pre handle"],
        near_miss_script: "nat 'tcp dport 81 counter dnat to 172.17.0.4:80; tcp dport 82 counter dnat to 172.17.0.4:80'",
    };
    let finding = expect_fault(&net, &never);
    assert!(finding["message"].as_str().expect("text").contains("81"), "{finding:#}");
    expect_no_fault(&net, &never);
    assert_eq!(net.tcp("192.0.2.1:82"), "172.17.0.4:80 saw 192.0.2.2");
    expect_finding(&net, "F43", ["proved", "info", "ip t pre handle"]);
    assert_eq!(net.tcp("192.0.2.1:81"), "172.17.0.4:80 saw 192.0.2.2");
    expect_none(&net, "F43");

    check_all(
        &net,
        &[
            Fault {
                id: "F41",
                fault_script: "nat 'tcp dport 21 dnat to 172.17.0.3'",
                found: ["likely", "info", "ip t pre handle"],
                near_miss_script: "nat 'tcp dport 22 dnat to 172.17.0.3'",
            },
            Fault {
                id: "F18",
                fault_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
                found: ["proved", "warning", "ip t pre handle"],
                near_miss_script: "nat 'fib daddr type local ip saddr 192.0.2.0/24 tcp dport 80 dnat to 172.17.0.3'",
            },
            Fault {
                id: "F29",
                fault_script: "post masquerade",
                found: ["proved", "warning", "ip t post handle"],
                near_miss_script: "post 'oifname eth0 masquerade'",
            },
        ],
    );

    let lonely = Fault {
        id: "F20",
        fault_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'",
        found: ["proved", "warning", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'
            nat6 'fib daddr type local tcp dport 80 dnat to fd00:17::3'",
    };
    net.serve("[fd00:17::3]:80", false);
    expect_fault(&net, &lonely);
    assert_eq!(net.tcp("[2001:db8::1]:80"), "ConnectionRefused");
    expect_no_fault(&net, &lonely);
    assert_eq!(net.tcp("[2001:db8::1]:80"), "[fd00:17::3]:80 saw 2001:db8::2");

    let foreign = Fault {
        id: "F30",
        fault_script: "post 'oifname eth0 snat to 192.0.2.99'",
        found: ["proved", "error", "ip t post handle"],
        near_miss_script: "post 'oifname eth0 snat to 192.0.2.1'",
    };
    let outside = "192.0.2.2:99";
    net.client.run(|| serve(outside.parse().expect("address"), false)).expect("client");
    expect_fault(&net, &foreign);
    expect_timeout(&net.target, outside);
    expect_no_fault(&net, &foreign);
    let seen = net.target.run(|| ask(outside.parse().expect("address"), false)).expect("target");
    assert_eq!(seen, "192.0.2.2:99 saw 192.0.2.1");

    let lost = Fault {
        id: "F31",
        fault_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'; post 'oifname docker0 masquerade'",
        found: ["proved", "warning", "ip t pre handle"],
        near_miss_script: "nat 'fib daddr type local tcp dport 80 dnat to 172.17.0.3'
            post 'ip saddr 172.17.0.0/16 oifname docker0 masquerade'",
    };
    expect_fault(&net, &lost);
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 172.17.0.1");
    expect_no_fault(&net, &lost);
    assert_eq!(net.tcp("192.0.2.1:80"), "172.17.0.3:80 saw 192.0.2.2");
}
