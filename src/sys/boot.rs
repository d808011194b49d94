//! The id of the current boot.

use std::fs;
use std::io;
use std::sync::OnceLock;

static ID: OnceLock<String> = OnceLock::new();

/// Returns the boot id of random(4), a UUID of 36 characters. Reads the file only once.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn id() -> io::Result<&'static str> {
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(ID.get_or_init(|| id.trim().to_owned()))
}
