//! Files change; agents are told what that changes, and nothing else.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::time::Instant;

use super::agent::Agent;
use super::fixture::{Fixture, pod, service};

const A: &str = "shop/a.shop.svc.cluster.local";
const B: &str = "shop/b.shop.svc.cluster.local";
const C: &str = "shop/c.shop.svc.cluster.local";

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_sends_what_it_changes() {
    let fixture = Fixture::start(&[("all.yaml", &(service("a", 1) + &service("b", 1)))]).await;
    let agent = Agent::connect(&fixture.uri());
    agent.has(2).await;
    agent.news();

    let edited = Instant::now();
    fixture.write("all.yaml", &(service("a", 2) + &service("b", 1)));
    agent.sees_port(A, 2).await;
    println!("from edit to agent: {:?}", edited.elapsed());
    assert_eq!(agent.news(), [A]);

    // As editors do it: a new file in place of the old one.
    fixture.write("all.yaml~", &(service("a", 2) + &service("b", 3)));
    std::fs::rename(fixture.path("all.yaml~"), fixture.path("all.yaml")).unwrap();
    agent.sees_port(B, 3).await;
    assert_eq!(agent.news(), [B]);

    std::fs::remove_file(fixture.path("all.yaml")).unwrap();
    agent.has(0).await;
    assert_eq!(agent.news(), [format!("-{A}"), format!("-{B}")]);
    assert!(fixture.metric("mesh_control_change_to_push_seconds_count").await >= 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_document_is_named_and_its_last_good_version_stays() {
    let fixture = Fixture::start(&[("all.yaml", &(service("a", 1) + &service("b", 1)))]).await;
    let agent = Agent::connect(&fixture.uri());
    agent.has(2).await;

    fixture.write("all.yaml", &(service("a", 70_000) + &service("b", 2)));
    agent.sees_port(B, 2).await;
    assert_eq!(agent.port(A), Some(1));
    let problems = fixture.problems(1).await;
    assert_eq!(problems[0]["line"], 10);
    assert_eq!(problems[0]["field"], "spec.ports[0].port");
    assert_eq!(problems[0]["resource"], "Service shop/a");
    assert_eq!(problems[0]["served_instead"], "the last good version is still served");
    assert_eq!(fixture.metric("mesh_control_problems{kind=\"refused\"}").await, 1.0);

    // Half of a file is no reason to forget the other half. What comes later shows that nothing was forgotten.
    fixture.write("all.yaml", "---\napiVersion: v1\nkind: Service\nmetadata: {na");
    let is_unreadable = |status: &serde_json::Value| {
        let problems = status["problems"].as_array().unwrap();
        problems.len() == 1 && problems[0]["resource"].is_null()
    };
    fixture.eventually("unreadable", || fixture.status(), is_unreadable).await;
    fixture.write("c.yaml", &service("c", 1));
    agent.sees_port(C, 1).await;
    assert_eq!((agent.port(A), agent.port(B)), (Some(1), Some(2)));

    fixture.write("all.yaml", &service("a", 4));
    agent.sees_port(A, 4).await;
    agent.has(2).await;
    fixture.problems(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_once_its_writer_closes_it() {
    let fixture = Fixture::start(&[("a.yaml", &service("a", 1))]).await;
    let agent = Agent::connect(&fixture.uri());
    agent.has(1).await;
    agent.news();

    // Truncated, then written in two parts; another file shows that the server is looking meanwhile.
    let mut file = std::fs::File::create(fixture.path("a.yaml")).unwrap();
    let text = service("a", 2);
    let (first, second) = text.split_at(text.find("spec").unwrap());
    file.write_all(first.as_bytes()).unwrap();
    fixture.write("b.yaml", &service("b", 1));
    agent.sees_port(B, 1).await;
    assert_eq!(agent.port(A), Some(1), "the service without its ports was not believed");
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    agent.sees_port(A, 2).await;
    assert_eq!(agent.news(), [A, B]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_config_map_is_followed() {
    let fixture = Fixture::start(&[]).await;
    let agent = Agent::connect(&fixture.uri());
    let version = |number: u32, text: &str| {
        std::fs::create_dir(fixture.path(&format!("..v{number}"))).unwrap();
        fixture.write(&format!("..v{number}/shop.yaml"), text);
        symlink(format!("..v{number}"), fixture.path("..data_tmp")).unwrap();
        std::fs::rename(fixture.path("..data_tmp"), fixture.path("..data")).unwrap();
    };
    version(1, &service("a", 1));
    symlink("..data/shop.yaml", fixture.path("shop.yaml")).unwrap();
    agent.sees_port(A, 1).await;
    version(2, &(service("a", 2) + &service("b", 1)));
    std::fs::remove_dir_all(fixture.path("..v1")).unwrap();
    agent.sees_port(A, 2).await;
    agent.has(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pod_of_a_thousand_is_one_resource() {
    let services: String = (0..100)
        .map(|number| {
            let service = service(&format!("s{number}"), 80);
            service.replace("spec:\n", &format!("spec:\n  selector: {{app: p{number}}}\n"))
        })
        .collect();
    let address = |number: usize| format!("10.1.{}.{}", number / 250, number % 250 + 1);
    let pods = |from: usize| -> String {
        (from..from + 100).map(|number| pod(&format!("p{number}"), &address(number), true)).collect()
    };
    let fixture = Fixture::start(&[("services.yaml", &services)]).await;
    for batch in 0..10 {
        fixture.write(&format!("pods-{batch}.yaml"), &pods(batch * 100));
    }
    let agent = Agent::connect(&fixture.uri());
    agent.has(1_100).await;
    agent.news();

    let changed = pods(500).replace(&pod("p507", &address(507), true), &pod("p507", &address(507), false));
    fixture.write("pods-5.yaml", &changed);
    agent.eventually("the unready pod", |told| (!told.log.is_empty()).then_some(())).await;
    assert_eq!(agent.news(), ["Kubernetes//Pod/shop/p507"]);
    let status = fixture.status().await;
    assert_eq!((&status["served"]["workloads"], &status["served"]["services"]), (&1_000.into(), &100.into()));
}
