//! `portfwd try`
use super::*;
/// Try
#[derive(Debug, clap::Args)]
pub struct TryArgs {}
pub fn run(_args: &TryArgs, _global: &Global, _output: &mut Output<'_>) -> anyhow::Result<u8> {
    Ok(0)
}
