//! Tests of files, descriptions and plans. They need no kernel.

use std::sync::Arc;

use expect_test::expect;

use super::description::Bridge;
use super::plan::{self, Step};
use super::{Lab, read};
use crate::config::Source;

const ALL: &str = r#"
name = "everything"

[[namespace]]
name = "red"
forward = true

[[bridge]]
name = "docker0"
address = ["172.17.0.1/16", "fd00:17::1/64"]
masquerade = true
chain = "DOCKER-USER"

[[bridge]]
name = "ovs0"
kind = "ovs"
address = ["10.9.0.1/24"]

[[veth]]
ends = [
  { namespace = "red", name = "veth-red", address = ["192.168.15.1/24"] },
  { name = "veth-red-br", bridge = "docker0", address = ["192.168.15.2/24"] },
]

[[route]]
namespace = "red"
to = "default"
via = "192.168.15.2"
dev = "veth-red"

[[route]]
to = "10.0.0.0/8"
via = "192.168.15.1"

[[container]]
name = "web"
address = "172.17.0.3"
publish = ["8080:80", "192.0.2.1:5353:53/udp", "[2001:db8::1]:8000-8010:9000-9010"]
processes = true
command = ["sleep", "infinity"]

[[container]]
name = "db"
bridge = "ovs0"
publish = ["9000:90"]

[[container]]
name = "alone"
network = "none"

[[container]]
name = "same"
network = "host"
processes = true
command = ["sleep", "infinity"]
"#;

fn source(text: &str) -> Arc<Source> {
    Arc::new(Source { path: "rules/lab/x.toml".into(), text: text.into() })
}

fn lab(text: &str) -> Lab {
    read(&source(text)).unwrap_or_else(|problems| panic!("{}", render_all(&problems)))
}

fn render_all(problems: &[crate::config::Problem]) -> String {
    problems.iter().map(|problem| problem.render(false)).collect()
}

#[test]
fn a_printed_lab_reads_as_the_same_lab() {
    let first = lab(ALL);
    assert_eq!(lab(&first.to_string()), first);
    let small = lab("");
    assert_eq!(small.name.as_str(), "x", "the file's name");
    assert_eq!(lab(&small.to_string()), small);
}

#[test]
fn a_container_publishes_as_a_forward_into_a_network() {
    let lab = lab(ALL);
    let network = lab.bridges[0].network().expect("of the host, with addresses");
    assert_eq!((network.name.as_str(), network.masquerade, network.chain.as_str()), ("docker0", true, "DOCKER-USER"));
    assert_eq!(network.subnets.iter().map(ToString::to_string).collect::<Vec<_>>(), ["172.17.0.0/16", "fd00:17::/64"]);
    let elsewhere = Bridge { namespace: Some("red".parse().expect("name")), ..lab.bridges[0].clone() };
    assert!(elsewhere.network().is_none(), "the bridge is not in the host");
    let publish = &lab.containers[0].publish;
    let texts: Vec<String> = publish.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["8080:80", "192.0.2.1:5353:53/udp", "[2001:db8::1]:8000-8010:9000-9010"]);
    let forward = publish[1].forward([172, 17, 0, 3].into());
    assert_eq!(
        (forward.listen.to_string(), forward.to.to_string()),
        ("192.0.2.1:5353/udp".into(), "172.17.0.3:53".into())
    );
}

#[test]
fn every_error_has_a_position() {
    let text = r#"naem = "x"
[[namespace]]
name = "red"
[[namespace]]
name = "red"
[[bridge]]
name = "br0"
kind = "cisco"
[[veth]]
ends = [{ namespace = "rde", name = "a", address = ["10.0.0.1"] }, { name = "a", bridge = "br1" }]
[[veth]]
ends = [{ name = "a" }]
[[veth]]
ends = [{ name = "a" }, { name = "a" }]
[[route]]
to = "10.0.0.0/8"
via = "fd00::1"
[[bridge]]
name = "ovs0"
kind = "ovs"
namespace = "red"
[[bridge]]
name = "bare"
masquerade = true
[[bridge]]
name = "v4"
address = ["10.0.0.1/24"]
[[container]]
name = "six"
bridge = "v4"
publish = ["[2001:db8::1]:80:80"]
[[container]]
name = "web"
publish = ["80", "8080-8081:80-89"]
[[container]]
name = "none"
network = "none"
publish = ["8080:80"]
"#;
    let problems = read(&source(text)).expect_err("mistakes");
    let short: String = problems
        .iter()
        .map(|problem| {
            let (line, column) = problem.location.as_ref().expect("a place").line_and_column();
            format!("{line}:{column} {} ({})\n", problem.what, problem.help)
        })
        .collect();
    expect![[r#"
        1:1 unknown key `naem` in a lab (did you mean `name`?)
        5:8 there are two namespaces `red` (give one of them another name; a container has a network namespace of its own name)
        8:8 `cisco` is no choice for `kind` (write `"linux"` or `"ovs"`)
        10:37 there is no namespace `rde` (did you mean `red`?)
        10:53 `10.0.0.1` has no prefix length (write the address with its prefix length, `192.168.15.1/24`)
        10:77 there is no bridge `br1` in the namespace of `a` (add it as `[[bridge]]`)
        12:8 a veth pair has two ends, not 1 (write two, `{ namespace = "red", name = "veth-red" }` each)
        14:18 there are two interfaces `a` in the host (give one of them another name)
        14:34 there are two interfaces `a` in the host (give one of them another name)
        16:6 the gateway `fd00::1` and the destination `10.0.0.0/8` are of different families (write both as IPv4 or both as IPv6)
        19:8 an Open vSwitch bridge must be in the host, where its daemon runs (leave `namespace` out, or write `kind = "linux"`)
        23:8 `masquerade` needs a bridge in the host with an address (give it an `address` and no `namespace`, or leave `masquerade` out)
        29:8 `[2001:db8::1]:80:80` cannot be forwarded to `six`, which has no address of this family (give the bridge an address of the same family)
        33:8 there is no bridge `docker0` for `web` (add it as `[[bridge]]`)
        34:12 `80` has only one of two ports (write the host's and the container's port, `8080:80`)
        34:18 `8080-8081` is 2 ports wide but `80-89` is 10 (make the two ranges equally wide, or give one target port for all)
        38:11 `publish` needs a container with `network = "bridge"` (leave `publish` out, or write `network = "bridge"`)
    "#]].assert_eq(&short);
}

#[test]
fn containers_get_the_next_free_address() {
    let lab = lab("[[bridge]]\nname = \"docker0\"\naddress = [\"172.17.0.1/29\"]\n\
         [[container]]\nname = \"a\"\n[[container]]\nname = \"b\"\naddress = \"172.17.0.3\"\n[[container]]\nname = \"c\"\n");
    let addresses: Vec<String> = plan::steps(&lab)
        .iter()
        .filter(|step| matches!(step, Step::Address(location, ..) if location.0.is_some()))
        .map(ToString::to_string)
        .collect();
    expect![[r#"
        [
            "address 172.17.0.2/29 of `eth0` in `a`",
            "address 172.17.0.3/29 of `eth0` in `b`",
            "address 172.17.0.4/29 of `eth0` in `c`",
        ]
    "#]]
    .assert_debug_eq(&addresses);
    let both = self::lab(
        "[[bridge]]\nname = \"docker0\"\naddress = [\"172.17.0.1/16\", \"fd00:17::1/64\"]\n\
         [[container]]\nname = \"a\"\n[[container]]\nname = \"b\"\naddress = \"fd00:17::9\"\n",
    );
    let given: Vec<String> = plan::steps(&both)
        .iter()
        .filter(|step| matches!(step, Step::Address(location, ..) | Step::Route(location, ..) if location.0.is_some()))
        .map(ToString::to_string)
        .collect();
    expect![[r#"
        address 172.17.0.2/16 of `eth0` in `a`
        address fd00:17::2/64 of `eth0` in `a`
        address 172.17.0.3/16 of `eth0` in `b`
        address fd00:17::9/64 of `eth0` in `b`
        route default via 172.17.0.1 in `a`
        route default via fd00:17::1 in `a`
        route default via 172.17.0.1 in `b`
        route default via fd00:17::1 in `b`
    "#]]
    .assert_eq(&(given.join("\n") + "\n"));
    let full = "[[bridge]]\nname = \"docker0\"\naddress = [\"172.17.0.1/30\"]\n\
                [[container]]\nname = \"a\"\n[[container]]\nname = \"b\"\n";
    let problems = read(&source(full)).expect_err("full");
    assert!(render_all(&problems).contains("no address is free in the subnet of `docker0`"));
}

#[test]
fn a_plan_makes_dependencies_first() {
    let steps = plan::steps(&lab(ALL));
    let words: Vec<String> = steps.iter().map(ToString::to_string).collect();
    expect![[r#"
        namespace `red`
        namespace `web`
        namespace `db`
        namespace `alone`
        container `same` on the host's network
        forwarding in `red`
        bridge `docker0` in the host
        Open vSwitch bridge `ovs0` in the host
        veth `veth-red` in `red` -- `veth-red-br` in the host
        veth `veth-web` in the host -- `eth0` in `web`
        veth `veth-db` in the host -- `eth0` in `db`
        port `veth-red-br` of `docker0` in the host
        port `veth-web` of `docker0` in the host
        port `veth-db` of the Open vSwitch bridge `ovs0`
        checksums by the kernel for `eth0` in `db`
        address 172.17.0.1/16 of `docker0` in the host
        address fd00:17::1/64 of `docker0` in the host
        address 10.9.0.1/24 of `ovs0` in the host
        address 192.168.15.1/24 of `veth-red` in `red`
        address 192.168.15.2/24 of `veth-red-br` in the host
        address 172.17.0.3/16 of `eth0` in `web`
        address fd00:17::2/64 of `eth0` in `web`
        address 10.9.0.2/24 of `eth0` in `db`
        `docker0` up in the host
        `ovs0` up in the host
        `veth-red` up in `red`
        `veth-red-br` up in the host
        `veth-web` up in the host
        `eth0` up in `web`
        `veth-db` up in the host
        `eth0` up in `db`
        route default via 192.168.15.2 dev `veth-red` in `red`
        route 10.0.0.0/8 via 192.168.15.1 in the host
        route default via 172.17.0.1 in `web`
        route default via fd00:17::1 in `web`
        route default via 10.9.0.1 in `db`
        rule set `lab-everything`: network docker0 172.17.0.0/16 fd00:17::/64 masquerade, 8080 -> 172.17.0.3:80, 8080 -> [fd00:17::2]:80, 192.0.2.1:5353/udp -> 172.17.0.3:53, [2001:db8::1]:8000-8010 -> [fd00:17::2]:9000-9010, 9000 -> 10.9.0.2:90
        process 1 of its own in `web`: sleep infinity
        process 1 of its own in `same`: sleep infinity
    "#]]
    .assert_eq(&(words.join("\n") + "\n"));
    for (index, step) in steps.iter().enumerate() {
        let later = steps.iter().skip(index);
        assert!(later.into_iter().all(|base| !step.depends_on(base)), "{step} comes before a step that it depends on");
    }
    // All steps but namespaces depend on another step. Routes of the host depend on its links.
    let based = |step: &&Step| steps.iter().any(|base| step.depends_on(base));
    let free = steps.iter().filter(|step| !based(step)).map(ToString::to_string).collect::<Vec<_>>();
    expect![[r#"
        [
            "namespace `red`",
            "namespace `web`",
            "namespace `db`",
            "namespace `alone`",
            "container `same` on the host's network",
            "bridge `docker0` in the host",
            "Open vSwitch bridge `ovs0` in the host",
            "rule set `lab-everything`: network docker0 172.17.0.0/16 fd00:17::/64 masquerade, 8080 -> 172.17.0.3:80, 8080 -> [fd00:17::2]:80, 192.0.2.1:5353/udp -> 172.17.0.3:53, [2001:db8::1]:8000-8010 -> [fd00:17::2]:9000-9010, 9000 -> 10.9.0.2:90",
            "process 1 of its own in `same`: sleep infinity",
        ]
    "#]]
    .assert_debug_eq(&free);
}

#[test]
fn a_step_is_stored_and_read_again() {
    for step in plan::steps(&lab(ALL)) {
        let text = serde_json::to_string(&step).expect("plain");
        assert_eq!(serde_json::from_str::<Step>(&text).expect(&text), step);
    }
}

#[test]
fn port_names_fit_an_interface_name() {
    for (container, length) in [("web", 8), ("ten-letter", 15), ("eleven-long", 13)] {
        let name = plan::port_name(&container.parse().expect("a name")).expect("fits");
        assert!(name.as_str().starts_with("veth-") && name.as_str().len() == length, "{name}");
    }
}
