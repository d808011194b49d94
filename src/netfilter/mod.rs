//! What the backends need of the kernel besides their rules, one interface a file.

pub mod boot;
pub mod comment;
pub mod conntrack;
pub mod label;
pub mod link;
pub mod namespace;
pub mod netlink;
pub mod offload;
pub mod privilege;
pub mod process;
pub mod route;
pub mod sockets;
pub mod sysctl;
pub mod tracking;
