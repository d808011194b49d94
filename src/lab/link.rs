//! Links, addresses and routes of a namespace, over rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use futures_util::stream::StreamExt;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};
use tokio::runtime::Runtime;

use super::{LabError, Netns};

/// The links of the namespace that the thread was in when it was opened.
pub struct Links {
    pub(super) runtime: Runtime,
    pub(super) handle: Handle,
}

/// The kernel's word for what failed.
pub(super) fn plain(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn failed(what: String) -> impl FnOnce(rtnetlink::Error) -> LabError {
    move |error| LabError::Link(what, plain(error))
}

impl Links {
    /// Opens the conversation.
    ///
    /// # Errors
    /// Where no socket can be had.
    pub fn open() -> Result<Self, LabError> {
        let open = || -> io::Result<Self> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            let guard = runtime.enter();
            let (connection, handle, _) = new_connection()?;
            drop(guard);
            runtime.spawn(connection);
            Ok(Self { runtime, handle })
        };
        open().map_err(|error| LabError::Io("opening rtnetlink", error))
    }

    /// Makes a bridge and brings it up.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn bridge(&self, name: &str) -> Result<(), LabError> {
        let add = self.handle.link().add(LinkBridge::new(name).build()).execute();
        self.runtime.block_on(add).map_err(failed(format!("the bridge `{name}`")))?;
        self.up(name)
    }

    /// Makes a pair of links: `name` here, `peer` in another namespace. Both are down.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn veth(&self, name: &str, peer: &str, there: &Netns) -> Result<(), LabError> {
        let what = || format!("the link `{name}`");
        // The peer is made under a name that nothing here has, and gets its own on the other side.
        let passing = "pf-passing";
        let add = self.handle.link().add(LinkVeth::new(name, passing).build()).execute();
        self.runtime.block_on(add).map_err(failed(what()))?;
        let index = self.index(passing)?;
        let fd = there.as_fd().as_raw_fd();
        let message = LinkUnspec::new_with_index(index).name(peer).setns_by_fd(fd).build();
        self.runtime.block_on(self.handle.link().set(message).execute()).map_err(failed(what()))
    }

    /// Puts a link into a bridge and brings it up.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn join(&self, name: &str, bridge: &str) -> Result<(), LabError> {
        let (link, bridge) = (self.index(name)?, self.index(bridge)?);
        let message = LinkUnspec::new_with_index(link).controller(bridge).up().build();
        let set = self.handle.link().set(message).execute();
        self.runtime.block_on(set).map_err(failed(format!("the bridge port `{name}`")))
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn up(&self, name: &str) -> Result<(), LabError> {
        let message = LinkUnspec::new_with_index(self.index(name)?).up().build();
        let set = self.handle.link().set(message).execute();
        self.runtime.block_on(set).map_err(failed(format!("the link `{name}`")))
    }

    /// Gives a link an address; one that it has already is fine.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<(), LabError> {
        let add = self.handle.address().add(self.index(name)?, address, prefix).replace().execute();
        self.runtime.block_on(add).map_err(failed(format!("the address {address}/{prefix} of `{name}`")))
    }

    /// Routes a prefix to a gateway; of length 0 everything.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn route(&self, to: IpAddr, prefix: u8, gateway: IpAddr) -> Result<(), LabError> {
        let message = match (to, gateway) {
            (IpAddr::V4(to), IpAddr::V4(gateway)) => {
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, prefix).gateway(gateway).build()
            }
            (IpAddr::V6(to), IpAddr::V6(gateway)) => {
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, prefix).gateway(gateway).build()
            }
            _ => return Err(LabError::Topology(format!("{to} cannot be reached through {gateway}"))),
        };
        let add = self.handle.route().add(message).replace().execute();
        self.runtime.block_on(add).map_err(failed(format!("the route to {to}/{prefix}")))
    }

    fn index(&self, name: &str) -> Result<u32, LabError> {
        let found = self.runtime.block_on(async {
            let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
            links.next().await
        });
        match found {
            Some(Ok(link)) => Ok(link.header.index),
            Some(Err(error)) => Err(failed(format!("the link `{name}`"))(error)),
            None => Err(LabError::Link(format!("the link `{name}`"), io::ErrorKind::NotFound.into())),
        }
    }
}
