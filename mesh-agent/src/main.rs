//! `mesh-agent`: runs the agent of a node, or removes its traces.

fn main() {}
