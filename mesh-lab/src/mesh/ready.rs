//! Waiting for a program to say that it is ready.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::process::Process;

/// How long an agent or a control server may take to become ready.
const READY: Duration = Duration::from_secs(20);
/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(10);

/// Asks until the answer is yes; else returns the last answer and the program's log.
pub(super) fn wait_until_ready(
    process: &mut Process,
    mut ask: impl FnMut() -> Option<Result<(), String>>,
) -> Result<(), (String, String)> {
    let end = Instant::now() + READY;
    loop {
        let answer = match ask() {
            Some(Ok(())) => return Ok(()),
            Some(Err(answer)) => answer,
            None => "cannot be asked".to_owned(),
        };
        if let Ok(Some(status)) = process.try_wait() {
            return Err((format!("ended ({status})"), process.log()));
        }
        if Instant::now() > end {
            return Err((answer, process.log()));
        }
        std::thread::sleep(POLL);
    }
}

/// Asks the program that serves HTTP on this port of this namespace whether it is ready.
pub(super) fn ready(port: u16) -> Result<(), String> {
    let ask = || -> io::Result<String> {
        let address = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
}
