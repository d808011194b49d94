use std::time::Duration;

use serde_json::Value;

use crate::machine::Machine;
use crate::support::{PORTFWD, privileged};

const RED_BLUE: &str = "rules/lab/red-blue.toml";
const BRIDGE: &str = "rules/lab/bridge.toml";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns the output of `lab show --json`.
fn show_json(machine: &Machine, arguments: &[&str]) -> Value {
    let picture = json(&machine.ok(&[&["show", "--json"], arguments].concat()));
    assert_eq!(picture["version"], 1);
    picture
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Returns a namespace from the JSON output of `lab show`. The name `None` is the host.
fn namespace<'a>(picture: &'a Value, name: Option<&str>) -> &'a Value {
    let found = list(&picture["spaces"]).iter().find(|space| space["name"].as_str() == name);
    found.unwrap_or_else(|| panic!("no {name:?} in {picture}"))
}

fn link<'a>(space: &'a Value, name: &str) -> &'a Value {
    let found = list(&space["links"]).iter().find(|link| link["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {space}"))
}

fn names(space: &Value) -> Vec<&str> {
    list(&space["links"]).iter().filter_map(|link| link["name"].as_str()).collect()
}

fn missing(space: &Value) -> Vec<&str> {
    list(&space["missing"]).iter().filter_map(Value::as_str).collect()
}

/// Returns the output of `ip -j` in a namespace.
fn ip(machine: &Machine, name: &str, arguments: &[&str]) -> Value {
    json(&machine.stdout_of("ip", &[&["-n", name, "-j"], arguments].concat()))
}

/// Checks that the JSON of a namespace agrees with ip(8): links, addresses, routes of both families, neighbours.
fn expect_same_as_ip(machine: &Machine, space: &Value) {
    let name = space["name"].as_str().expect("not the host");
    let links = ip(machine, name, &["addr"]);
    let expected: Vec<(Value, Vec<String>)> = list(&links)
        .iter()
        .map(|link| {
            let address =
                |info: &Value| format!("{}/{}", info["local"].as_str().unwrap_or_default(), info["prefixlen"]);
            (link["ifname"].clone(), list(&link["addr_info"]).iter().map(address).collect())
        })
        .collect();
    let shown: Vec<(Value, Vec<String>)> = list(&space["links"])
        .iter()
        .map(|link| {
            let addresses = list(&link["addresses"]).iter().filter_map(Value::as_str).map(str::to_owned);
            (link["name"].clone(), addresses.collect())
        })
        .collect();
    assert_eq!(shown, expected, "{name}");
    let route = |route: &Value, to: &str, via: &str| {
        let to = route[to].as_str().unwrap_or_default().to_owned();
        (to, route[via].as_str().map(str::to_owned), route["dev"].as_str().map(str::to_owned))
    };
    let mut expected: Vec<_> = [["-4", "route"], ["-6", "route"]]
        .iter()
        .flat_map(|question| list(&ip(machine, name, question)).to_vec())
        // Newer kernels have the routes of ::1 in the local table, so the test ignores routes of `lo`.
        .filter(|found| found["dev"] != "lo")
        .map(|found| route(&found, "dst", "gateway"))
        .collect();
    let mut shown: Vec<_> = list(&space["routes"]).iter().map(|found| route(found, "to", "via")).collect();
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected, "{name}");
    let neighbour = |found: &Value, address: &str, mac: &str| {
        [&found[address], &found[mac], &found["dev"]].map(|value| value.as_str().unwrap_or_default().to_owned())
    };
    let mut expected: Vec<_> =
        list(&ip(machine, name, &["neigh"])).iter().map(|found| neighbour(found, "dst", "lladdr")).collect();
    let mut shown: Vec<_> = list(&space["neighbours"]).iter().map(|found| neighbour(found, "address", "mac")).collect();
    shown.sort();
    expected.sort();
    assert_eq!(shown, expected, "{name}");
}

/// Waits until every link that is up has a link-local address. The kernel adds the address shortly after the link comes
/// up.
fn wait_for_addresses(machine: &Machine) {
    for _ in 0..100 {
        let picture = show_json(machine, &[]);
        let mut links = list(&picture["spaces"]).iter().flat_map(|space| list(&space["links"]));
        let is_done =
            |link: &Value| link["state"] != "up" || link["mac"].is_null() || link.to_string().contains("fe80");
        if links.all(is_done) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("some links have no link-local address: {}", show_json(machine, &[]));
}

#[test]
fn each_namespace_is_shown_with_its_own_arp_table() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let text = std::fs::read_to_string(crate::support::root().join(RED_BLUE)).expect("readable");
    let both = text.replace("192.168.15.1/24\"", "192.168.15.1/24\", \"fd00:15::1/64\"");
    let both = both.replace("192.168.15.2/24\"", "192.168.15.2/24\", \"fd00:15::2/64\"");
    machine.ok(&["up", &machine.file(&format!("name = \"rb\"\n{both}"))]);
    assert!(machine.pings("red", "192.168.15.2") && machine.pings("red", "fd00:15::2"));
    assert!(!machine.pings("blue", "192.168.15.77"), "no namespace has this address");
    wait_for_addresses(&machine);
    let picture = show_json(&machine, &["rb"]);
    assert_eq!((&picture["lab"], list(&picture["spaces"]).len()), (&"rb".into(), 2), "{picture}");
    for (name, other, there) in [("red", "blue", "2"), ("blue", "red", "1")] {
        let (here, other_side) = (namespace(&picture, Some(name)), namespace(&picture, Some(other)));
        expect_same_as_ip(&machine, here);
        let end = link(here, &format!("veth-{name}"));
        assert_eq!(end["peer"]["link"], serde_json::json!({"namespace": other, "name": format!("veth-{other}")}));
        let mac = &link(other_side, &format!("veth-{other}"))["mac"];
        for address in [format!("192.168.15.{there}"), format!("fd00:15::{there}")] {
            let known = list(&here["neighbours"]).iter().find(|known| known["address"] == address.as_str());
            let known = known.unwrap_or_else(|| panic!("{name} does not know {address}: {here}"));
            assert_eq!(&known["mac"], mac);
            let state = known["state"].as_str().unwrap_or_default();
            assert!(["REACHABLE", "STALE", "DELAY", "PROBE"].contains(&state), "{known}");
        }
    }
    let text = machine.ok(&["show"]);
    let unresolved = text.lines().find(|line| line.contains("192.168.15.77")).unwrap_or_default();
    assert!(
        unresolved.contains(" - ") && (unresolved.ends_with("FAILED") || unresolved.ends_with("INCOMPLETE")),
        "{text}"
    );
}

#[test]
fn show_lists_only_bridge_ports_and_the_uplink_of_the_host() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let script = "ip link add out type veth peer name beyond && ip addr add 203.0.113.2/24 dev out && ip link set out up && \
                 ip link set beyond up && ip route add default via 203.0.113.1 && ip link add other type bridge && \
                 ip netns add elsewhere";
    machine.stdout_of("sh", &["-c", script]);
    machine.ok(&["up", BRIDGE]);
    // `show` includes a foreign port of the bridge, whatever its name and its peer.
    let script = "ip link add odd type veth peer name far && ip link set odd name \"$(printf 'o\\033<&d')\" && \
                 ip link set \"$(printf 'o\\033<&d')\" master v-net-0 && ip link set far netns elsewhere";
    machine.stdout_of("sh", &["-c", script]);
    wait_for_addresses(&machine);
    let picture = show_json(&machine, &[]);
    let host = namespace(&picture, None);
    let odd = "o\u{1b}<&d";
    let ports: Vec<String> = ["red", "blue", "orange", "gray"].map(|name| format!("veth-{name}-br")).to_vec();
    let mut expected: Vec<&str> = ports.iter().map(String::as_str).chain(["out", "v-net-0", odd]).collect();
    let mut found = names(host);
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(link(host, odd)["peer"], "elsewhere");
    assert_eq!(link(host, "out")["bridge"], Value::Null);
    // The veth ends have the same interface index in each namespace. The index alone does not identify the peer.
    for (index, name) in ["red", "blue", "orange", "gray"].into_iter().enumerate() {
        let port = link(host, &format!("veth-{name}-br"));
        assert_eq!((&port["bridge"], &port["state"]), (&"v-net-0".into(), &"up".into()));
        assert_eq!(port["peer"]["link"], serde_json::json!({"namespace": name, "name": format!("veth-{name}")}));
        let inside = namespace(&picture, Some(name));
        expect_same_as_ip(&machine, inside);
        let end = link(inside, &format!("veth-{name}"));
        assert_eq!(end["peer"]["link"], serde_json::json!({"namespace": null, "name": format!("veth-{name}-br")}));
        assert_eq!(end["addresses"][0], format!("192.168.15.{}/24", index + 1));
        assert!(list(&inside["missing"]).is_empty());
    }
    let text = machine.ok(&["show"]);
    assert!(text.starts_with("host\n") && text.contains("o\\u{1b}<&d") && !text.contains('\u{1b}'), "{text}");
    assert!(text.lines().all(|line| line.chars().count() < 120 && line == line.trim_end()), "{text}");
    let drawn = machine.ok(&["show", "--svg", "-"]);
    let document = roxmltree::Document::parse(&drawn).expect("XML");
    assert_eq!(document.descendants().filter(|node| node.has_tag_name("path")).count(), 4);
}

#[test]
fn missing_objects_are_shown_in_their_namespace() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", BRIDGE]);
    machine.stdout_of("ip", &["netns", "del", "blue"]);
    machine.stdout_of("ip", &["-n", "gray", "link", "del", "veth-gray"]);
    machine.stdout_of("ip", &["-n", "red", "route", "del", "default"]);
    machine.stdout_of("ip", &["-n", "orange", "link", "set", "veth-orange", "down"]);
    let picture = show_json(&machine, &[]);
    assert_eq!(missing(namespace(&picture, Some("red"))), ["route default via 192.168.15.5 in `red`"]);
    let blue = namespace(&picture, Some("blue"));
    assert_eq!((&blue["here"], names(blue).len()), (&false.into(), 0));
    assert!(missing(blue).contains(&"namespace `blue`"), "{blue}");
    let gray = namespace(&picture, Some("gray"));
    assert_eq!((&gray["here"], names(gray)), (&true.into(), vec!["lo"]));
    assert!(missing(gray).contains(&"veth `veth-gray` in `gray` -- `veth-gray-br` in the host"), "{gray}");
    let orange = namespace(&picture, Some("orange"));
    assert_eq!(link(orange, "veth-orange")["state"], "down");
    assert_eq!(link(namespace(&picture, None), "veth-orange-br")["state"], "no-carrier");
    assert!(missing(orange).contains(&"`veth-orange` up in `orange`"), "{orange}");
    let text = machine.ok(&["show"]);
    assert!(text.contains("\nnamespace blue: missing\n  missing: namespace `blue`\n"), "{text}");
    // The kernel deletes a namespace some time after the removal of its name. Until then, the veth peer in the host
    // exists.
    let wait_until_gone =
        "for n in $(seq 200); do ip link show veth-blue-br >/dev/null 2>&1 || exit 0; sleep 0.05; done; exit 1";
    machine.stdout_of("sh", &["-c", wait_until_gone]);
    machine.ok(&["up", BRIDGE]);
    assert!(!machine.ok(&["show"]).contains("missing"));
    // If the bridge is deleted, `show` reports the bridge and its ports as missing.
    machine.stdout_of("ip", &["link", "del", "v-net-0"]);
    let picture = show_json(&machine, &[]);
    let host = namespace(&picture, None);
    assert!(missing(host).contains(&"bridge `v-net-0` in the host"), "{host}");
    assert!(missing(host).contains(&"port `veth-red-br` of `v-net-0` in the host"), "{host}");
}

#[test]
fn a_deleted_host_namespace_is_shown_as_missing() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.stdout_of("ip", &["netns", "add", "host"]);
    let said = machine.run(PORTFWD, &["--netns", "host", "lab", "up", BRIDGE]);
    assert_eq!(said.code, 0, "{said:?}");
    let picture = show_json(&machine, &[]);
    assert_eq!(picture["host"], "host");
    assert_eq!(names(namespace(&picture, None)).len(), 5, "{picture}");
    assert_eq!(
        machine.stdout_of("ip", &["-br", "link"]).lines().count(),
        1,
        "no new interface in the caller's namespace"
    );
    machine.stdout_of("ip", &["netns", "del", "host"]);
    let picture = show_json(&machine, &[]);
    let host = namespace(&picture, None);
    assert_eq!((&host["here"], names(host).len()), (&false.into(), 0), "{host}");
    assert!(missing(host).contains(&"bridge `v-net-0` in the host"), "{host}");
    assert_eq!(namespace(&picture, Some("red"))["here"], true);
    assert!(machine.ok(&["show"]).starts_with("host: missing\n"));
}

#[test]
fn containers_are_shown_with_their_networks_and_processes() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    let containers = machine.file(
        "name = \"docker\"\n[[bridge]]\nname = \"docker0\"\naddress = [\"172.17.0.1/16\"]\n\
         [[container]]\nname = \"web\"\n[[container]]\nname = \"alone\"\nnetwork = \"none\"\n\
         [[container]]\nname = \"same\"\nnetwork = \"host\"\n",
    );
    machine.ok(&["up", &containers]);
    // The container runs process 1 of a new pid namespace. `unshare` waits for this process outside of the pid
    // namespace.
    machine.stdout_of("sh", &["-c", "ip netns exec web unshare --pid --fork sleep 3599 >/dev/null 2>&1 & sleep 0.3"]);
    let picture = show_json(&machine, &[&containers]);
    let (host, web) = (namespace(&picture, None), namespace(&picture, Some("web")));
    assert_eq!((&host["containers"], &host["network"]), (&serde_json::json!(["same"]), &Value::Null));
    assert_eq!((&web["network"], &web["publish"]), (&"bridge".into(), &serde_json::json!([])));
    assert_eq!(link(host, "veth-web")["bridge"], "docker0");
    assert_eq!(
        web["routes"][0],
        serde_json::json!({"to": "default", "kind": "unicast", "via": "172.17.0.1", "dev": "eth0", "src": null})
    );
    let processes: Vec<_> = list(&web["processes"]).iter().map(|one| (&one["name"], one["inside"].as_u64())).collect();
    assert_eq!(processes, [(&"unshare".into(), None), (&"sleep".into(), Some(1))]);
    machine.stdout_of("kill", &["-9", &web["processes"][1]["pid"].to_string()]);
    let alone = namespace(&picture, Some("alone"));
    assert_eq!((&alone["network"], names(alone), list(&alone["routes"]).len()), (&"none".into(), vec!["lo"], 0));
    let text = machine.ok(&["show"]);
    for line in [
        "host\n  container same (network host)\n",
        "\ncontainer web (network bridge)\n",
        "\ncontainer alone (network none)\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn a_drawing_goes_into_a_file_and_is_reproducible() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    machine.ok(&["up", BRIDGE]);
    let path = machine.directory.path().join("bridge.svg");
    let file = path.to_string_lossy();
    assert_eq!(machine.ok(&["show", "bridge", "--svg", &file]), "");
    let drawn = std::fs::read_to_string(&path).expect("written");
    assert!(roxmltree::Document::parse(&drawn).is_ok(), "{drawn}");
    for text in ["bridge v-net-0", "192.168.15.5/24", "veth-gray-br", "namespace gray", "192.168.15.4/24"] {
        assert!(drawn.contains(text), "{text} in {drawn}");
    }
    // A new lab has other MAC addresses, but its drawing is the same.
    machine.ok(&["down"]);
    machine.ok(&["up", BRIDGE]);
    wait_for_addresses(&machine);
    assert_eq!(machine.ok(&["show", "--svg", "-"]), drawn);
    let said = machine.lab(&["show", "--svg", &format!("{file}/x")]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("cannot write"), "{said:?}");
    let said = machine.lab(&["show", "--svg", "-", "--json"]);
    assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{said:?}");
    let both = json(&machine.ok(&["show", "--svg", &file, "--json"]));
    assert_eq!(both["lab"], "bridge");
}

#[test]
fn show_reports_unknown_and_ambiguous_labs() {
    if !privileged() {
        return;
    }
    let machine = Machine::new();
    assert_eq!(machine.lab(&["show"]).code, 1, "there is no lab");
    machine.ok(&["up", RED_BLUE]);
    let said = machine.lab(&["show", "green"]);
    assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{said:?}");
    assert!(said.stderr.contains("there is no lab `green`"), "{said:?}");
    machine.ok(&["up", &machine.file("name = \"second\"\n[[namespace]]\nname = \"green\"\n")]);
    let said = machine.lab(&["show"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.stderr.contains("red-blue, second"), "{said:?}");
    assert!(machine.ok(&["show", RED_BLUE]).starts_with("namespace red\n"));
    assert!(machine.ok(&["show", "second"]).starts_with("namespace green\n"));
    // Without root, `show` reports the missing privilege and no missing objects.
    let nobody =
        ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", PORTFWD, "lab", "show", "second"];
    let said = machine.run("setpriv", &nobody);
    assert_eq!((said.code, said.stdout.as_str()), (5, ""), "{said:?}");
}
