use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

fn service(name: &str, port: u32) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

/// A directory of manifests and what reading it said.
struct Fixture {
    root: TempDir,
    directory: Directory,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::new([root.path().to_owned()]);
        Self { root, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// The changes since the last look, such as `+Service default/a`, and the problems there are.
    fn scan(&mut self) -> (Vec<String>, Vec<String>) {
        let scan = self.directory.scan(|_| false);
        let changes = scan.changes.iter().map(|change| match change {
            Change::Upsert(resource) => format!("+{}", resource.key()),
            Change::Remove(key) => format!("-{key}"),
        });
        let root = format!("{}/", self.root.path().display());
        let problems = scan.report.unwrap_or_default().problems;
        let problems = problems.iter().map(|problem| problem.to_string().replace(&root, ""));
        (changes.collect(), problems.collect())
    }

    fn changes(&mut self) -> Vec<String> {
        self.scan().0
    }
}

#[test]
fn only_what_changed_is_said() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &(service("a", 1) + &service("b", 1)));
    fixture.write("deeper/c.yml", &service("c", 1));
    fixture.write("notes.txt", "not a manifest");
    fixture.write(".hidden.yaml", "kind: [");
    assert_eq!(
        fixture.scan(),
        (["a", "b", "c"].map(|name| format!("+Service default/{name}")).to_vec(), vec![])
    );
    assert_eq!(fixture.scan(), (vec![], vec![]));

    fixture.write("a.yaml", &(service("b", 2) + &service("a", 1)));
    assert_eq!(fixture.changes(), ["+Service default/b"]);
    fs::remove_file(fixture.path("deeper/c.yml")).unwrap();
    assert_eq!(fixture.changes(), ["-Service default/c"]);
    fs::rename(fixture.path("a.yaml"), fixture.path("d.yaml")).unwrap();
    assert!(fixture.changes().is_empty(), "a resource that moves to another file does not change");
}

#[test]
fn the_last_good_version_of_a_resource_stays() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &(service("a", 1) + &service("b", 1)));
    fixture.scan();

    fixture.write("a.yaml", &(service("a", 0) + &service("b", 2)));
    let (changes, problems) = fixture.scan();
    assert_eq!(changes, ["+Service default/b"]);
    assert_eq!(
        problems,
        [
            "a.yaml:5: Service default/a: spec.ports[0].port: expected a port between 1 and 65535, found 0 (the last good version is still served)"
        ]
    );

    // Which resource this was cannot be told any more: nothing goes.
    fixture.write("a.yaml", "---\nkind: Serv");
    let (changes, problems) = fixture.scan();
    assert!(changes.is_empty(), "{changes:?}");
    assert!(problems[0].ends_with("(the last good version is still served)"), "{problems:?}");

    fixture.write("a.yaml", &service("a", 3));
    let (changes, problems) = fixture.scan();
    assert_eq!(changes, ["+Service default/a", "-Service default/b"]);
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn a_file_that_is_no_text_keeps_what_it_gave() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("a", 1));
    fixture.scan();
    fs::write(fixture.path("a.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let (changes, problems) = fixture.scan();
    assert!(changes.is_empty());
    assert!(problems[0].starts_with("a.yaml: is not UTF-8 text"), "{problems:?}");
}

#[test]
fn the_first_file_owns_a_resource_and_the_next_takes_over() {
    let mut fixture = Fixture::new();
    fixture.write("b.yaml", &service("a", 1));
    fixture.scan();
    fixture.write("a.yaml", &("# comment\n".to_owned() + &service("a", 2)));
    let (changes, problems) = fixture.scan();
    assert!(changes.is_empty(), "{changes:?}");
    let root = fixture.root.path().display();
    assert_eq!(
        problems.iter().map(|problem| problem.replace(&format!("{root}/"), "")).collect::<Vec<_>>(),
        ["a.yaml:3: Service default/a: is defined in b.yaml:2 already: this one is not used"]
    );
    fs::remove_file(fixture.path("b.yaml")).unwrap();
    assert_eq!(fixture.scan(), (vec!["+Service default/a".to_owned()], vec![]));
}

#[test]
fn a_mounted_config_map_is_swapped_at_once() {
    // ..data -> ..v1, shop.yaml -> ..data/shop.yaml: an update makes ..v2 and renames a new link over ..data.
    let mut fixture = Fixture::new();
    fixture.write("..v1/shop.yaml", &service("a", 1));
    symlink("..v1", fixture.path("..data")).unwrap();
    symlink("..data/shop.yaml", fixture.path("shop.yaml")).unwrap();
    assert_eq!(fixture.changes(), ["+Service default/a"]);

    fixture.write("..v2/shop.yaml", &(service("a", 1) + &service("b", 1)));
    symlink("..v2", fixture.path("..data_tmp")).unwrap();
    fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
    fs::remove_dir_all(fixture.path("..v1")).unwrap();
    assert_eq!(fixture.scan(), (vec!["+Service default/b".to_owned()], vec![]));
}

#[test]
fn a_directory_that_cannot_be_read_takes_nothing_away() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("a", 1));
    assert!(fixture.directory.scan(|_| false).report.unwrap().unread.is_empty());
    let away = fixture.root.path().with_extension("away");
    fs::rename(fixture.root.path(), &away).unwrap();
    let scan = fixture.directory.scan(|_| false);
    assert!(scan.changes.is_empty());
    let report = scan.report.unwrap();
    assert_eq!(report.problems.len(), 1);
    assert!(report.unread.is_empty(), "it has been read once");
    fs::rename(&away, fixture.root.path()).unwrap();
    assert_eq!(fixture.scan(), (vec![], vec![]));
}

#[test]
fn a_directory_that_was_never_there_is_unread() {
    let root = tempfile::tempdir().unwrap();
    let missing = root.path().join("later");
    let mut directory = Directory::new([missing.clone()]);
    assert_eq!(directory.scan(|_| false).report.unwrap().unread, std::slice::from_ref(&missing));
    fs::create_dir(&missing).unwrap();
    assert!(directory.scan(|_| false).report.unwrap().unread.is_empty());
}

#[test]
fn a_file_being_written_is_left_alone() {
    let mut fixture = Fixture::new();
    fixture.write("a.yaml", &service("a", 1));
    fixture.scan();
    fixture.write("a.yaml", "");
    let scan = fixture.directory.scan(|path| path.ends_with("a.yaml"));
    assert!(scan.changes.is_empty() && scan.report.is_none());
    fixture.write("a.yaml", &service("a", 2));
    assert_eq!(fixture.changes(), ["+Service default/a"]);
}

#[test]
fn links_in_a_circle_end() {
    let mut fixture = Fixture::new();
    fixture.write("sub/a.yaml", &service("a", 1));
    symlink("..", fixture.path("sub/loop")).unwrap();
    let (changes, _) = fixture.scan();
    assert_eq!(changes, ["+Service default/a"]);
}
