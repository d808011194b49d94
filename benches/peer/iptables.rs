//! In the words of iptables-save(8): a rule for each forward.

use std::fmt::Write as _;

use super::target;

/// One rule a forward in one chain of table nat, as others write them.
pub fn rules(count: u32) -> String {
    let mut text = "*nat\n:RIVAL - [0:0]\n-A PREROUTING -m addrtype --dst-type LOCAL -j RIVAL\n".to_owned();
    for n in 1..=count {
        let written = writeln!(text, "-A RIVAL -p tcp --dport {n} -j DNAT --to-destination {}:80", target(n));
        written.expect("text grows");
    }
    text + "COMMIT\n"
}

/// The arguments of iptables for one more of them, or, with `-D`, for one less.
pub fn rule(job: &str, n: u32) -> Vec<String> {
    let to = format!("{}:80", target(n));
    let port = n.to_string();
    let words = ["-w", "-t", "nat", job, "RIVAL", "-p", "tcp", "--dport", &port, "-j", "DNAT", "--to-destination", &to];
    words.map(str::to_owned).into()
}

/// Docker's layout on one bridge with one container: a rule for each port in table nat, and the bridge's in table filter.
pub fn docker(count: u32) -> String {
    let mut text = String::from(
        "*filter\n:FORWARD DROP [0:0]\n:DOCKER - [0:0]\n\
         -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -o docker0 -j DOCKER\n\
         -A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -j ACCEPT\nCOMMIT\n\
         *nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n:DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n",
    );
    for port in 1..=count {
        let rule =
            format!("-A DOCKER ! -i docker0 -p tcp -m tcp --dport {port} -j DNAT --to-destination 172.17.0.2:80");
        text += &(rule + "\n");
    }
    text + "COMMIT\n"
}
