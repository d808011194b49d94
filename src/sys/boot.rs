//! Which boot this is.

use std::fs;
use std::io;
use std::sync::OnceLock;

static ID: OnceLock<String> = OnceLock::new();

/// A word that no other boot has, see random(4): 36 characters. It is read once.
///
/// # Errors
/// Where `/proc` does not show it.
pub fn id() -> io::Result<&'static str> {
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(ID.get_or_init(|| id.trim().to_owned()))
}
