//! The interfaces of the namespace, over rtnetlink.

use std::collections::BTreeSet;
use std::io;

use futures_util::stream::TryStreamExt;
use rtnetlink::new_connection;
use rtnetlink::packet_route::link::{InfoPortKind, LinkAttribute, LinkInfo};

use crate::model::IfName;

/// The interfaces that packets are routed by: all but the loopback interface and the ports of bridges, whose packets arrive
/// at the bridge.
///
/// # Errors
/// Where the kernel cannot be asked.
pub fn interfaces() -> io::Result<BTreeSet<IfName>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let guard = runtime.enter();
    let (connection, handle, _) = new_connection()?;
    drop(guard);
    let talk = runtime.spawn(connection);
    let links = runtime.block_on(handle.link().get().execute().try_collect::<Vec<_>>()).map_err(io::Error::other)?;
    // Where the kernel cannot be heard any more the answer ends like one that is whole.
    if talk.is_finished() {
        return Err(io::Error::other("the kernel could not be heard to the end"));
    }
    let named = links.iter().filter(|link| !is_bridge_port(&link.attributes)).filter_map(|link| name(&link.attributes));
    Ok(named.filter(|name| name.as_str() != "lo").collect())
}

fn name(attributes: &[LinkAttribute]) -> Option<IfName> {
    attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => IfName::try_from(name.clone()).ok(),
        _ => None,
    })
}

fn is_bridge_port(attributes: &[LinkAttribute]) -> bool {
    attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::PortKind(InfoPortKind::Bridge)),
        _ => false,
    })
}
