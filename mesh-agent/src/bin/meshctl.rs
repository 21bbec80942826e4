//! `meshctl`: shows what the agent of this node knows and does.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_agent::meshctl::main()
}
