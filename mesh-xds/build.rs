//! Compiles the .proto files in pure Rust (protox), so that building needs no `protoc`.

use std::error::Error;
use std::path::Path;

const FILES: &[&str] = &[
    "envoy/discovery.proto",
    "istio/workload.proto",
    "istio/security.proto",
    "istio/certificate.proto",
    "mesh/balancing.proto",
    "mesh/discovery.proto",
    "mesh/redirection.proto",
    "mesh/security.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, [Path::new("proto")])?;

    let mut prost = tonic_prost_build::Config::new();
    prost
        // The type URL of a message comes from its own definition.
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        // One allocation for a resource, shared by every client it is sent to.
        .extern_path(".google.protobuf.Any", "crate::proto::Any")
        .bytes(["."])
        // Equal messages have equal bytes, whatever the order they were built in.
        .btree_map(["."])
        .include_file("packages.rs");
    tonic_prost_build::configure().compile_fds_with_config(descriptors, prost)?;
    Ok(())
}
