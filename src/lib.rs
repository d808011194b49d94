//! NAT and port forwards on Linux as data.
//!
//! ```text
//! LISTEN/TARGET text, TOML ──config──▶ model ──compile──▶ program ──encode──▶ one netlink batch ──▶ kernel
//!                                      model ◀───lift──── program ◀──decode──── netlink dumps ◀──────┘
//!                                            with iptables program ──restore─▶ iptables-restore ───▶ kernel
//!                                                          program ◀───save─── iptables-save ◀───────┘
//! ```
//! A rule set is a set: its order never matters. It is compiled to a few rules and large maps, committed to the kernel as
//! one transaction, compared with the live kernel at any time, and can be tried with real packets in a throw-away network.
//!
//! To follow one forward, `portfwd add 8080 172.17.0.3:80`, read in this order: [`cli`] (`add.rs`),
//! [`model::forward`], [`nft::compile`] (`forward.rs`), [`nft::element`], [`nft::encode`]. With iptables the last three are
//! [`iptables::compile`] (`forward.rs`), [`iptables::rule`], [`iptables::restore`].
//!
//! The rooms in the order in which data walks through them; each uses only those below it:
//!
//! | room | job |
//! | --- | --- |
//! | [`cli`] | a command a file: parse, call the library, print |
//! | [`audit`] | all NAT on a host, whoever made it, in one normal form; what is wrong with it |
//! | [`lab`] | throw-away networks, and probes with real packets; standing networks |
//! | [`engine`] | plan and commit: the only place where state and kernel meet |
//! | [`config`] | TOML to model, with places for errors |
//! | [`store`] | durable state |
//! | [`iptables`] | the iptables backend, for where nftables is missing |
//! | [`nft`] | the nftables backend |
//! | [`sys`] | the operating system: netlink, routes, conntrack, sockets, sysctls, namespaces, processes |
//! | [`model`] | the nouns and their meaning; knows nothing of the rest |

pub mod audit;
pub mod cli;
pub mod config;
pub mod engine;
pub mod iptables;
pub mod lab;
pub mod model;
pub mod nft;
pub mod store;
pub mod sys;
