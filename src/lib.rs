//! NAT and port forwards on Linux as data.
//!
//! ```text
//! LISTEN/TARGET text, TOML ──config──▶ model ──compile──▶ program ──encode──▶ one netlink batch ──▶ kernel
//!                                      model ◀───lift──── program ◀──decode──── netlink dumps ◀──────┘
//!                                            with iptables program ──restore─▶ iptables-restore ───▶ kernel
//!                                                          program ◀───save─── iptables-save ◀───────┘
//! ```
//! The order of the rules in a rule set never matters. portfwd compiles a rule set to a few rules and large maps, and commits
//! them to the kernel in one transaction. It compares them with the live rules at any time, and can try them with real packets
//! in a throw-away network.
//!
//! # The rooms
//!
//! Each room uses only those below it.
//!
//! | room | job |
//! | --- | --- |
//! | [`cli`] | one file a command: parse, call the library, print |
//! | [`audit`] | lists the NAT rules of a host, whichever program made them, and finds their faults |
//! | [`lab`] | throw-away networks with probes that send real packets, and standing networks |
//! | [`engine`] | plan and commit: the only place where the desired state and the kernel meet |
//! | [`config`] | TOML to model, with a place for every error |
//! | [`store`] | the desired state on disk |
//! | [`ruleset`] | any host's rules in one normal form, and the simulator |
//! | [`iptables`] | the iptables backend, for kernels without nftables |
//! | [`nft`] | the nftables backend |
//! | [`sys`] | the operating system: netlink, routes, conntrack, sockets, sysctls, namespaces, processes |
//! | [`model`] | the nouns and their meaning; depends on no other room |
//!
//! # One forward, from the command line to the kernel
//!
//! `portfwd add 8080 172.17.0.3:80` runs these functions. Step 8 makes the map element, step 10 the bytes of the batch, and
//! step 12 sends them. A test checks the list.
//!
//! | step | file | function | called in step |
//! | --- | --- | --- | --- |
//! | 1 | `main.rs` | `main` | |
//! | 2 | `cli/mod.rs` | `main` | 1 |
//! | 3 | `cli/add.rs` | `run` | 2 |
//! | 4 | `engine/commit.rs` | `commit` | 3 |
//! | 5 | `engine/nft.rs` | `plan_partial` | 4 |
//! | 6 | `nft/compile/mod.rs` | `compile` | 5 |
//! | 7 | `nft/compile/forward.rs` | `maps_and_chains` | 6 |
//! | 8 | `nft/element.rs` | `elements` | 7 |
//! | 9 | `nft/diff.rs` | `diff` | 5 |
//! | 10 | `nft/encode.rs` | `encode` | 5 |
//! | 11 | `nft/transaction.rs` | `commit` | 5 |
//! | 12 | `sys/netlink/socket.rs` | `send` | 11 |
//!
//! With iptables, `engine/iptables.rs` takes the place of `engine/nft.rs`, and the rooms' files have the same names:
//! `iptables/compile/forward.rs`, `iptables/diff.rs`, and `iptables/restore.rs` for the text of iptables-restore.

pub mod audit;
pub mod cli;
pub mod config;
pub mod engine;
pub mod iptables;
pub mod lab;
pub mod model;
pub mod nft;
pub mod ruleset;
pub mod store;
pub mod sys;
