//! The program `fastforward`.
fn main() {}
