//! The routing table of the namespace, over rtnetlink.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::stream::StreamExt;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::{Handle, RouteMessageBuilder, new_connection};

use crate::model::IfName;

/// The interfaces that packets to each of `addresses` leave by; `None` where none leave.
///
/// # Errors
/// Where the kernel cannot be asked about an address.
pub fn interfaces_to(
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Result<BTreeMap<IpAddr, Option<IfName>>, (IpAddr, io::Error)> {
    let mut addresses = addresses.into_iter().peekable();
    let Some(first) = addresses.peek().copied() else { return Ok(BTreeMap::new()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(|error| (first, error))?;
    let guard = runtime.enter();
    let (connection, handle, _) = new_connection().map_err(|error| (first, error))?;
    drop(guard);
    runtime.spawn(connection);
    runtime.block_on(async {
        let mut names: HashMap<u32, Option<IfName>> = HashMap::new();
        let mut found = BTreeMap::new();
        for address in addresses {
            let way = way_to(&handle, &mut names, address).await.map_err(|error| (address, error))?;
            found.insert(address, way);
        }
        Ok(found)
    })
}

async fn way_to(
    handle: &Handle,
    names: &mut HashMap<u32, Option<IfName>>,
    address: IpAddr,
) -> io::Result<Option<IfName>> {
    let index = match index_to(handle, address).await {
        Ok(index) => index,
        Err(rtnetlink::Error::NetlinkError(message)) if leads_nowhere(&message.to_io()) => None,
        Err(rtnetlink::Error::NetlinkError(message)) => return Err(message.to_io()),
        Err(error) => return Err(io::Error::other(error)),
    };
    let Some(index) = index else { return Ok(None) };
    if let Some(name) = names.get(&index) {
        return Ok(name.clone());
    }
    let name = name_of(handle, index).await.map_err(io::Error::other)?;
    names.insert(index, name.clone());
    Ok(name)
}

/// What the kernel answers where no route leads anywhere: none, an `unreachable` one, a `blackhole` (EINVAL), a `prohibit`
/// (EACCES). Source: `fib_props` in net/ipv4/fib_semantics.c.
fn leads_nowhere(error: &io::Error) -> bool {
    use io::ErrorKind;
    let kinds = [
        ErrorKind::NetworkUnreachable,
        ErrorKind::HostUnreachable,
        ErrorKind::NotFound,
        ErrorKind::InvalidInput,
        ErrorKind::PermissionDenied,
    ];
    kinds.contains(&error.kind())
}

async fn index_to(handle: &Handle, address: IpAddr) -> Result<Option<u32>, rtnetlink::Error> {
    let question = match address {
        IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
        IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build(),
    };
    let route = answer(handle.route().get(question).execute().next().await)?;
    Ok(route.attributes.into_iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(index),
        _ => None,
    }))
}

async fn name_of(handle: &Handle, index: u32) -> Result<Option<IfName>, rtnetlink::Error> {
    let link = answer(handle.link().get().match_index(index).execute().next().await)?;
    Ok(link.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => name.parse().ok(),
        _ => None,
    }))
}

/// No answer at all is none that says no: the kernel could not be heard.
fn answer<T>(answer: Option<Result<T, rtnetlink::Error>>) -> Result<T, rtnetlink::Error> {
    answer.unwrap_or(Err(rtnetlink::Error::RequestFailed))
}
