//! Embeds the kernel programs, so that the agent is one file and its two halves always fit.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let object = object();
    println!("cargo::rerun-if-changed={}", object.display());
    let Some(out) = env::var_os("OUT_DIR") else {
        println!("cargo::error=cargo names no OUT_DIR");
        return ExitCode::FAILURE;
    };
    match fs::copy(&object, Path::new(&out).join("mesh-ebpf")) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            println!(
                "cargo::error=no kernel programs at {} ({error}). Build them: cargo xtask build-ebpf",
                object.display()
            );
            ExitCode::FAILURE
        }
    }
}

/// Where `cargo xtask build-ebpf` puts them, unless the builder says otherwise.
fn object() -> PathBuf {
    if let Some(object) = env::var_os("MESH_EBPF_OBJECT") {
        return object.into();
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    target.join("bpf/mesh-ebpf")
}
