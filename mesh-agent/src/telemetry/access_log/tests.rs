use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};

use super::super::record::ResponseFlag;
use super::super::testing::{record, tunnelled};
use super::*;

fn ended(record: ConnectionRecord, end: ConnectionEnd) -> Ended {
    record.traffic.add_sent(120);
    record.traffic.add_received(4500);
    Ended { record: Arc::new(record), end, duration: Duration::from_micros(12_345) }
}

fn written(ended: &Ended, format: AccessLogFormat) -> String {
    let mut bytes = Vec::new();
    Line::of(ended).write(format, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn a_line_of_text_says_who_where_and_how_much() {
    let line = written(&ended(tunnelled(1), ConnectionEnd::default()), AccessLogFormat::Text);
    assert_eq!(
        line,
        "time=1970-01-01T01:00:00.012345Z direction=outbound \
         src.addr=10.0.1.1:40000 src.workload=client-1 src.namespace=shop \
         src.identity=spiffe://cluster.local/ns/shop/sa/client \
         dst.addr=10.0.2.1:8080 dst.workload=web-1 dst.namespace=shop \
         dst.identity=spiffe://cluster.local/ns/shop/sa/web \
         dst.original_addr=10.96.0.1:80 dst.service=web.shop.svc.cluster.local \
         transport=hbone security=mutual_tls bytes_sent=4500 bytes_recv=120 duration_ms=12.345 attempts=1 response_flags=-\n"
    );
}

#[test]
fn a_line_of_json_says_the_same() {
    let line = written(&ended(tunnelled(1), ConnectionEnd::default()), AccessLogFormat::Json);
    assert_eq!(
        line,
        concat!(
            r#"{"time":"1970-01-01T01:00:00.012345Z","direction":"outbound","#,
            r#""src.addr":"10.0.1.1:40000","src.workload":"client-1","src.namespace":"shop","#,
            r#""src.identity":"spiffe://cluster.local/ns/shop/sa/client","#,
            r#""dst.addr":"10.0.2.1:8080","dst.workload":"web-1","dst.namespace":"shop","#,
            r#""dst.identity":"spiffe://cluster.local/ns/shop/sa/web","#,
            r#""dst.original_addr":"10.96.0.1:80","dst.service":"web.shop.svc.cluster.local","#,
            r#""transport":"hbone","security":"mutual_tls","#,
            r#""bytes_sent":4500,"bytes_recv":120,"duration_ms":12.345,"attempts":1,"response_flags":"-"}"#,
            "\n"
        )
    );
}

#[test]
fn what_is_unknown_is_left_out_and_an_error_is_quoted() {
    let mut refused = record(1);
    refused.source.workload = None;
    refused.source.address = "[::ffff:192.0.2.7]:1234".parse().unwrap();
    refused.original_destination = "[fd00::1]:80".parse().unwrap();
    refused.destination = None;
    refused.service = None;
    refused.attempts = 0;
    let end = ConnectionEnd { flag: ResponseFlag::NoRoute, detail: Some("no \"port\" 80\nforged=1".into()) };
    assert_eq!(
        written(&ended(refused, end), AccessLogFormat::Text),
        "time=1970-01-01T01:00:00.012345Z direction=outbound src.addr=192.0.2.7:1234 \
         dst.original_addr=[fd00::1]:80 transport=plain security=none bytes_sent=4500 bytes_recv=120 duration_ms=12.345 attempts=0 \
         response_flags=NR error=\"no \\\"port\\\" 80\\nforged=1\"\n"
    );
}

#[test]
fn an_address_is_no_identity_and_a_refusal_says_who_asked() {
    let mut denied = tunnelled(1);
    denied.direction = crate::telemetry::Direction::Inbound;
    denied.service = None;
    if let Some(destination) = &mut denied.destination {
        destination.identity = None;
        denied.original_destination = destination.address;
    }
    let end = ConnectionEnd {
        flag: ResponseFlag::Denied,
        detail: Some("denied by AuthorizationPolicy shop/web-allow: no rule matches".into()),
    };
    let line: serde_json::Value =
        serde_json::from_str(&written(&ended(denied, end), AccessLogFormat::Json)).unwrap();
    assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/shop/sa/client");
    assert_eq!((line.get("dst.identity"), &line["dst.workload"]), (None, &"web-1".into()));
    assert_eq!(line["response_flags"], "UAEX");
    assert_eq!(line["error"], "denied by AuthorizationPolicy shop/web-allow: no rule matches");
}

/// Accepts nothing until it is told to.
struct Gate {
    open: Receiver<()>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The sender gone means open for ever.
        let _ = self.open.recv();
        self.written.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_reader_costs_lines_and_never_time() {
    let (open, gate) = mpsc::channel();
    let written = Arc::new(Mutex::new(Vec::new()));
    let options = AccessLogOptions { queue: 10, ..AccessLogOptions::default() };
    let log = AccessLog::write_to(Gate { open: gate, written: Arc::clone(&written) }, &options).unwrap();
    let record = Arc::new(record(1));
    let log = Arc::new(log);
    let (done, all_handed_over) = mpsc::channel();
    let worker = Arc::clone(&log);
    thread::spawn(move || {
        for _ in 0..10_000 {
            worker.ended(&record, &ConnectionEnd::default());
        }
        done.send(()).unwrap();
    });
    all_handed_over.recv_timeout(Duration::from_secs(20)).expect("nobody waits for the reader");
    assert!(!log.flush(Duration::from_millis(20)), "nothing can have been written");
    drop(open);
    assert!(log.flush(Duration::from_secs(10)));
    let lines = written.lock().unwrap().iter().filter(|byte| **byte == b'\n').count();
    assert!(lines >= 10, "{lines} lines written");
    assert_eq!(u64::try_from(lines).unwrap() + log.dropped(), 10_000);
}

struct FullDisk;

impl Write for FullDisk {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_counted() {
    let log = AccessLog::write_to(FullDisk, &AccessLogOptions::default()).unwrap();
    let record = Arc::new(record(1));
    for _ in 0..100 {
        log.ended(&record, &ConnectionEnd::default());
    }
    assert!(log.flush(Duration::from_secs(10)));
    assert_eq!(log.dropped(), 100);
}

#[test]
fn lines_are_added_to_the_end_of_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let options =
        AccessLogOptions { target: AccessLogTarget::File(path.clone()), ..AccessLogOptions::default() };
    for _ in 0..2 {
        let log = AccessLog::start(&options).unwrap();
        log.ended(&Arc::new(record(1)), &ConnectionEnd::default());
        assert!(log.flush(Duration::from_secs(10)));
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);

    let missing = AccessLogTarget::File(directory.path().join("missing/access.log"));
    let error = AccessLog::start(&AccessLogOptions { target: missing, ..options }).unwrap_err();
    assert!(error.to_string().contains("missing/access.log"), "{error}");
}
