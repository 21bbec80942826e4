#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use super::{Image, Product, archive, root::Root};

/// An image with this very test program in it.
fn image() -> Image {
    Image {
        programs: vec![std::env::current_exe().unwrap()],
        links: vec!["again".into()],
        entrypoint: vec!["/usr/bin/again"],
        ..Image::mesh_agent(Path::new("unused"))
    }
}

#[test]
fn a_program_runs_with_nothing_but_what_its_image_holds() {
    let folder = tempfile::tempdir().unwrap();
    image().root().unwrap().unpack(folder.path()).unwrap();
    let output =
        Command::new("chroot").arg(folder.path()).args(["/usr/bin/again", "--list"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("a_program_runs_with_nothing_but"));
}

#[test]
fn an_image_holds_its_programs_and_libraries_and_no_shell() {
    let root = image().root().unwrap();
    let files: Vec<&Path> = root.entries().map(|(path, _)| path).collect();
    assert!(files.contains(&Path::new("usr/bin/again")));
    assert!(files.iter().any(|path| path.ends_with("libc.so.6")), "{files:?}");
    assert!(files.iter().any(|path| path.to_string_lossy().contains("/ld-linux")), "{files:?}");
    assert_eq!(files.iter().filter(|path| path.starts_with("usr/bin")).count(), 3, "{files:?}");
}

#[test]
fn an_archive_is_a_layout_whose_digests_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.tar");
    let written = archive::write(&image(), &path).unwrap();
    let files = unpacked(&path);
    assert_eq!(json_of(&files, "oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }));

    let index = json_of(&files, "index.json");
    let entry = &index["manifests"][0];
    assert_eq!(entry["digest"], written.digest);
    let name = format!("docker.io/library/mesh-agent:{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(entry["annotations"]["io.containerd.image.name"], name);

    let manifest: Value = serde_json::from_slice(&blob(&files, entry)).unwrap();
    let settings: Value = serde_json::from_slice(&blob(&files, &manifest["config"])).unwrap();
    assert_eq!(settings["config"]["Entrypoint"], json!(["/usr/bin/again"]));
    assert_eq!(settings["config"]["User"], "0:0");
    let mut layer = Vec::new();
    GzDecoder::new(blob(&files, &manifest["layers"][0]).as_slice()).read_to_end(&mut layer).unwrap();
    assert_eq!(settings["rootfs"]["diff_ids"][0], archive::digest(&layer));
    let layer: Vec<PathBuf> = tar::Archive::new(layer.as_slice())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().into_owned())
        .collect();
    assert!(layer.contains(&"etc/nsswitch.conf".into()), "{layer:?}");
}

#[test]
fn the_same_programs_make_the_same_archive() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| {
        let path = folder.path().join(name);
        archive::write(&image(), &path).unwrap();
        fs::read(path).unwrap()
    });
    assert!(one == other);
}

#[test]
fn the_dockerfiles_run_the_images_as_the_archives_do() {
    for (product, name) in [(Product::Agent, "mesh-agent"), (Product::Control, "mesh-control")] {
        let image = Image::product(product, Path::new("unused")).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../deploy/images/{name}.Dockerfile"));
        let text = fs::read_to_string(path).unwrap();
        let last_stage = text.rsplit_once("FROM scratch").unwrap().1;
        let said = |instruction: &str| {
            let line = last_stage.lines().find_map(|line| line.strip_prefix(instruction));
            line.unwrap_or_default().trim().to_owned()
        };
        let list = |items: &[&str]| if items.is_empty() { String::new() } else { json!(items).to_string() };
        assert_eq!(said("USER"), image.user);
        assert_eq!(said("ENV"), "PATH=/usr/bin");
        assert_eq!(said("ENTRYPOINT"), list(&image.entrypoint));
        assert_eq!(said("CMD"), list(&image.command));
        let ports: Vec<String> = image.ports.iter().map(u16::to_string).collect();
        assert_eq!(said("EXPOSE"), ports.join(" "));
    }
}

#[test]
fn a_static_program_brings_no_library() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("static.c");
    let program = folder.path().join("static");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let built = Command::new("cc").args(["-static", "-o"]).arg(&program).arg(&source).status().unwrap();
    assert!(built.success());
    let root = Root::collect(&[program]).unwrap();
    assert!(root.entries().all(|(path, _)| !path.to_string_lossy().contains("libc")));
}

fn unpacked(archive: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut archive = tar::Archive::new(fs::File::open(archive).unwrap());
    let read = |entry: std::io::Result<tar::Entry<'_, fs::File>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().into_owned(), content)
    };
    archive.entries().unwrap().map(read).collect()
}

fn json_of(files: &BTreeMap<PathBuf, Vec<u8>>, path: &str) -> Value {
    serde_json::from_slice(&files[Path::new(path)]).unwrap()
}

/// The blob that a descriptor names, which is as long as it says and has the digest it says.
fn blob(files: &BTreeMap<PathBuf, Vec<u8>>, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap();
    let content = &files[&Path::new("blobs").join(digest.replace(':', "/"))];
    assert_eq!(archive::digest(content), digest);
    assert_eq!(descriptor["size"], content.len());
    content.clone()
}
