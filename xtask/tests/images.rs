//! The images are built from nothing: what their last stage holds must be enough to run.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::{path::Path, process::Command};

#[test]
fn a_program_runs_with_nothing_but_what_was_collected_for_its_image() {
    let collect = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/images/collect");
    let image = tempfile::tempdir().unwrap();
    let collected =
        Command::new(collect).arg(image.path()).arg(env!("CARGO_BIN_EXE_xtask")).status().unwrap();
    assert!(collected.success());

    let output = Command::new("chroot").arg(image.path()).args(["/usr/bin/xtask", "help"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("Usage: cargo xtask"));
}
