//! The operating system: netlink, conntrack, sysctls, namespaces and processes. One kernel interface a file.

pub mod boot;
pub mod conntrack;
pub(crate) mod ffi;
pub mod namespace;
pub mod netlink;
pub mod offload;
pub mod privilege;
pub mod process;
pub mod rtnetlink;
pub mod sandbox;
pub mod sockets;
pub mod ssh;
pub mod sysctl;
pub mod tracking;
