//! The routing table of the namespace, over rtnetlink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::stream::StreamExt;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::{Handle, RouteMessageBuilder, new_connection};

use crate::model::IfName;

/// The interface that packets to `address` leave by; `None` where no route leads there.
///
/// # Errors
/// Where the kernel cannot be asked.
pub fn interface_to(address: IpAddr) -> io::Result<Option<IfName>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let guard = runtime.enter();
    let (connection, handle, _) = new_connection()?;
    drop(guard);
    runtime.spawn(connection);
    runtime.block_on(async {
        match ask(&handle, address).await {
            Ok(found) => Ok(found),
            Err(rtnetlink::Error::NetlinkError(message)) => match message.to_io() {
                error if is_no_route(&error) => Ok(None),
                error => Err(error),
            },
            Err(error) => Err(io::Error::other(error)),
        }
    })
}

fn is_no_route(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NetworkUnreachable, io::ErrorKind::HostUnreachable, io::ErrorKind::NotFound];
    kinds.contains(&error.kind())
}

async fn ask(handle: &Handle, address: IpAddr) -> Result<Option<IfName>, rtnetlink::Error> {
    let question = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build(),
    };
    let Some(route) = handle.route().get(question).execute().next().await.transpose()? else { return Ok(None) };
    let index = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let Some(index) = index else { return Ok(None) };
    let link = handle.link().get().match_index(index).execute().next().await.transpose()?;
    let name = link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    });
    Ok(name)
}
