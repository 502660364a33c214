//! How large a query and a tree may be.
//!
//! Nothing real comes near these bounds. They exist so that no input can exhaust the stack or run without end: what
//! exceeds one is an error that says so.

use crate::Error;
use crate::tree::too_many_nodes;

/// The longest query text, in bytes.
pub const MAX_QUERY_BYTES: usize = 64 * 1024;

/// The most fragments in one selector, aliases expanded.
pub const MAX_FRAGMENTS: usize = 4096;

/// How deep groups, or fragments made of fragments, may be nested.
pub const MAX_NESTING: usize = 64;

/// How many levels a tree may have.
pub const MAX_DEPTH: usize = 4096;

/// The most nodes visited in one walk. A shared node counts once per path to it.
pub const MAX_NODES: usize = 1 << 26;

/// The most names collected for one shared node; there can be exponentially many.
pub const MAX_NAMES: usize = 64;

/// Checks how many nodes were visited in all, where a walk was cut into [parts](crate::QuerySet::parts).
///
/// # Errors
/// If there were more than [`MAX_NODES`].
pub fn check_nodes(visited: usize) -> Result<(), Error> {
    if visited > MAX_NODES { Err(too_many_nodes()) } else { Ok(()) }
}
