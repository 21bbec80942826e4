//! Random and mutated manifests: none brings the server down, and none takes away what was good.
//!
//! `MESH_FUZZ_INPUTS` and `MESH_FUZZ_SEED` choose how many and which. A failure names the seed of its input.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use fastrand::Rng;

use super::directory::ManifestFile;
use super::document::Manifest;
use crate::source::Change;
use crate::translate::{Mesh, Translator};

/// Together with the inputs of `mesh-xds` half a million.
const INPUTS: u64 = 250_000;
const SEED: u64 = 3;

/// One of each kind, small: a mutation should hit something that matters.
const SEEDS: [&str; 9] = [
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n",
    "apiVersion: v1\nkind: Node\nmetadata: {name: n1, labels: {topology.kubernetes.io/zone: z}}\n",
    "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: w}, annotations: {traffic.sidecar.istio.io/excludeOutboundIPRanges: '10.0.0.0/8'}}\nspec: {nodeName: n1, containers: [{name: c, ports: [{name: h, containerPort: 80}]}]}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}\n",
    "apiVersion: v1\nkind: Service\nmetadata: {name: w, namespace: shop}\nspec: {selector: {app: w}, clusterIP: 10.96.0.1, ports: [{name: a, port: 80, targetPort: h}, {name: b, port: 81}]}\n",
    "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: w}}\naddressType: IPv4\nports: [{name: a, port: 1}]\nendpoints: [{addresses: [10.0.0.1]}, {addresses: [192.0.2.1], conditions: {ready: false}}]\n",
    "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: shop}\nspec:\n  hosts: [a.example.com]\n  resolution: STATIC\n  ports: [{number: 443, name: t}]\n  endpoints:\n  - address: 192.0.2.1\n",
    "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: v, namespace: shop, labels: {app: w}}\nspec: {address: 192.0.2.9, weight: 2}\n",
    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec:\n  selector: {matchLabels: {app: w}}\n  action: DENY\n  rules:\n  - from: [{source: {principals: ['*'], ipBlocks: [10.0.0.0/8]}}]\n    to: [{operation: {notPorts: ['80']}}]\n    when: [{key: destination.ip, values: ['fd00::/8']}]\n",
    "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {name: b, namespace: shop}\nspec: {selector: {matchLabels: {app: w}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}}}\n",
];

/// Pieces with a meaning in YAML or in manifests.
const TOKENS: [&str; 24] = [
    "---\n",
    "...\n",
    ": ",
    "- ",
    "\n",
    "  ",
    "\t",
    "{",
    "}",
    "[",
    "]",
    "'",
    "\"",
    "#",
    "&a ",
    "*a",
    "<<: ",
    "|\n",
    "null",
    "true",
    "-1",
    "99999999999",
    "kind: List\nitems:\n- ",
    "\u{0}",
];

#[test]
fn no_input_does_harm() {
    let setting = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (inputs, seed) = (setting("MESH_FUZZ_INPUTS", INPUTS), setting("MESH_FUZZ_SEED", SEED));
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    thread::scope(|scope| {
        for lane in 0..threads {
            scope.spawn(move || {
                let files = SEEDS.map(good_file);
                for number in (lane..inputs).step_by(usize::try_from(threads).unwrap()) {
                    let seed = seed.wrapping_add(number);
                    let outcome =
                        catch_unwind(AssertUnwindSafe(|| try_input(&files, &mut Rng::with_seed(seed))));
                    assert!(
                        outcome.is_ok(),
                        "input {number} with MESH_FUZZ_SEED={seed} and MESH_FUZZ_INPUTS=1"
                    );
                }
            });
        }
    });
}

/// A file that was read when it was good.
fn good_file(text: &str) -> ManifestFile {
    let mut file = ManifestFile::default();
    let good = Manifest::parse(Path::new("f.yaml"), text);
    assert!(good.problems.is_empty(), "{:?}", good.problems);
    file.adopt(good);
    file
}

fn try_input(files: &[ManifestFile], rng: &mut Rng) {
    // A file that gave a good resource...
    let chosen = rng.usize(0..SEEDS.len());
    let (first, second) = (SEEDS[chosen], rng.choice(SEEDS).unwrap());
    let mut file = files[chosen].clone();
    let before = file.resources.clone();

    // ...is overwritten with something else.
    let text = match rng.u8(0..10) {
        0..=3 => random_text(rng),
        4 => mutate(&format!("{first}---\n{second}"), rng),
        _ => mutate(first, rng),
    };
    let manifest = Manifest::parse(Path::new("f.yaml"), &text);
    let (refused, unidentified) = (manifest.refused.clone(), manifest.unidentified);
    file.adopt(manifest);
    for (key, given) in &before {
        let present = file.resources.get(key);
        if unidentified || refused.contains(key) {
            assert!(present.is_some(), "{key} was good and is gone: {text:?}");
        }
        if refused.contains(key) {
            assert!(present.is_some_and(|kept| kept.resource == given.resource || !unidentified));
        }
    }
    // To YAML a carriage return alone breaks a line, too.
    let lines = text.matches(['\n', '\r']).count() as u64 + 1;
    for problem in &file.problems {
        assert!((1..=lines).contains(&problem.lines().1), "{problem:?} {text:?}");
    }

    // What was accepted can be translated, and taken back.
    let mut translator = Translator::new(Mesh::default());
    let resources: BTreeMap<_, _> =
        file.resources.into_iter().map(|(key, given)| (key, given.resource)).collect();
    translator.apply(resources.values().cloned().map(Change::Upsert));
    translator.apply(resources.into_keys().map(Change::Remove));
    assert_eq!(translator.served(), Default::default());
}

fn random_text(rng: &mut Rng) -> String {
    let mut bytes = vec![0; rng.usize(0..64)];
    rng.fill(&mut bytes);
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    for _ in 0..rng.usize(0..8) {
        text.push_str(rng.choice(TOKENS).unwrap());
    }
    text
}

fn mutate(text: &str, rng: &mut Rng) -> String {
    let mut characters: Vec<char> = text.chars().collect();
    for _ in 0..rng.usize(1..4) {
        let at = rng.usize(0..=characters.len());
        let upto = (at + rng.usize(0..12)).min(characters.len());
        match rng.u8(0..6) {
            // Half a file.
            0 => characters.truncate(at),
            1 => drop(characters.drain(at..upto)),
            2 => {
                let piece: Vec<char> = characters[at..upto].to_vec();
                let to = rng.usize(0..=characters.len());
                characters.splice(to..to, piece);
            }
            3 if at < characters.len() => characters[at] = rng.char(..),
            4 if at < characters.len() => characters[at] = char::from(rng.u8(b'0'..=b'9')),
            _ => drop(characters.splice(at..at, rng.choice(TOKENS).unwrap().chars())),
        }
    }
    characters.into_iter().collect()
}
