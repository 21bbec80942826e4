use mesh_xds::proto::Any;

use super::*;

fn resource(name: &str, version: &str) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any { type_url: "t".to_owned(), value: name.as_bytes().to_vec().into() }),
        ..Default::default()
    }
}

fn put(resource: Resource) -> (Key, Option<Bytes>) {
    (key(&resource), Some(resource.encode_to_vec().into()))
}

fn gone(name: &str) -> (Key, Option<Bytes>) {
    (("t".into(), name.into()), None)
}

fn load(cache: &Cache) -> Result<Vec<Resource>, CacheError> {
    let mut resources = Vec::new();
    cache.load(|resource| resources.push(resource))?;
    Ok(resources)
}

fn policies(cache: &Cache) -> Policies {
    cache.load(drop).unwrap()
}

fn versions(cache: &Cache) -> Vec<(String, String)> {
    let mut all: Vec<_> = load(cache).unwrap().into_iter().map(|r| (r.name, r.version)).collect();
    all.sort();
    all
}

fn pair(name: &str, version: &str) -> (String, String) {
    (name.to_owned(), version.to_owned())
}

#[test]
fn changes_accumulate_over_files() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    assert!(load(&cache).unwrap().is_empty());
    cache.merge(&Changes::from([put(resource("a", "1")), put(resource("b", "1"))])).unwrap();
    cache.merge(&Changes::from([put(resource("b", "2")), put(resource("c", "2")), gone("a")])).unwrap();
    assert_eq!(versions(&cache), [pair("b", "2"), pair("c", "2")]);
    let changed = load(&cache).unwrap().into_iter().find(|resource| resource.name == "b");
    assert_eq!(&*changed.unwrap().resource.unwrap().value, b"b");
}

#[test]
fn any_damage_is_found_and_the_file_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    cache.merge(&Changes::from([put(resource("a", "1")), put(resource("b", "1"))])).unwrap();
    let good = fs::read(cache.path()).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(cache.path(), &bad).unwrap();
        assert!(load(&cache).is_err(), "byte {at} changed unnoticed");
        assert!(cache.merge(&Changes::from([put(resource("c", "1"))])).is_err());
        assert_eq!(fs::read(cache.path()).unwrap(), bad);
    }
    for length in 0..good.len() {
        fs::write(cache.path(), &good[..length]).unwrap();
        assert!(matches!(load(&cache), Err(CacheError::Damaged { .. })), "cut to {length} unnoticed");
    }
    cache.clear().unwrap();
    cache.merge(&Changes::from([put(resource("c", "1"))])).unwrap();
    assert_eq!(versions(&cache), [pair("c", "1")]);
}

#[tokio::test]
async fn the_writer_brings_everything_to_disk_before_it_stops() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    let writer = CacheWriter::new(cache.clone());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(writer.clone().run(async { drop(stopped.await) }, || panic!("not damaged")));
    for version in 0..50 {
        writer.put(&"t".into(), "a".into(), &resource("a", &version.to_string()));
        tokio::task::yield_now().await;
    }
    writer.put(&"t".into(), "b".into(), &resource("b", "1"));
    writer.remove(&"t".into(), &"b".into());
    stop.send(()).unwrap();
    task.await.unwrap();
    assert_eq!(versions(&cache), [pair("a", "49")]);
}

#[tokio::test]
async fn the_writer_says_when_the_state_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    fs::write(cache.path(), b"rubbish").unwrap();
    let writer = CacheWriter::new(cache.clone());
    let (lost, mut told) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(writer.clone().run(std::future::pending(), move || lost.send(()).unwrap()));
    writer.put(&"t".into(), "a".into(), &resource("a", "1"));
    told.recv().await.unwrap();
    assert!(load(&cache).unwrap().is_empty());
    task.abort();
}

#[test]
fn a_file_from_before_there_were_policies_is_read_and_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    cache.merge(&Changes::from([put(resource("a", "1"))])).unwrap();
    assert_eq!(policies(&cache), Policies::Complete);

    let mut old = fs::read(cache.path()).unwrap();
    old[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let end = old.len() - 4;
    let mut sum = Hasher::new();
    sum.update(&old[..end]);
    old[end..].copy_from_slice(&sum.finalize().to_le_bytes());
    fs::write(cache.path(), &old).unwrap();
    assert_eq!(versions(&cache), [pair("a", "1")]);
    assert_eq!(policies(&cache), Policies::Unknown);

    cache.merge(&Changes::from([put(resource("b", "1"))])).unwrap();
    assert_eq!(versions(&cache), [pair("a", "1"), pair("b", "1")]);
    assert_eq!(policies(&cache), Policies::Complete);
}

#[tokio::test]
async fn the_writer_writes_nothing_while_it_is_held() {
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::new(directory.path());
    for released in [false, true] {
        let writer = CacheWriter::new(cache.clone());
        writer.hold();
        writer.put(&"t".into(), "a".into(), &resource("a", "1"));
        if released {
            writer.release();
        }
        writer.run(std::future::ready(()), || panic!("not damaged")).await;
        assert_eq!(cache.path().exists(), released);
    }
}
