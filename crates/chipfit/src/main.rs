//! The `chipfit` command.
fn main() {}
