use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use mesh_agent::admin::{AdminSocket, SocketError};

use crate::server::Server;

const REQUEST: &[u8] = b"GET /v1/log HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n";

/// Asks for the log filter; gives back all that comes.
fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    // Who is not admitted may be hung up on before the request is written.
    let _ = stream.write_all(REQUEST);
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(answer),
        Err(error) => Err(error),
        Ok(_) => Ok(answer),
    }
}

/// The same as another user: credentials belong to threads, as far as the kernel is concerned.
fn ask_as(uid: u32, socket: &Path) -> std::io::Result<String> {
    let socket = socket.to_owned();
    thread::spawn(move || {
        // SAFETY: changes the credentials of this thread only, which ends with this closure. glibc's wrapper would
        // change those of the whole process.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) };
        assert_eq!(changed, 0, "tests run as root");
        ask(&socket)
    })
    .join()
    .unwrap()
}

#[test]
fn only_root_is_answered() {
    let server = Server::start();
    let mode = fs::metadata(&server.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(ask(&server.socket).unwrap().starts_with("HTTP/1.1 200 OK"));

    let refused = ask_as(65_534, &server.socket).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);

    // Even where somebody opened the file to all.
    for directory in server.socket.ancestors().skip(1).take(2) {
        fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(&server.socket, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(ask_as(65_534, &server.socket).unwrap(), "");
    assert!(ask(&server.socket).unwrap().starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn a_socket_that_nobody_answers_is_replaced_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();

    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "what a crashed agent leaves behind");
    let first = AdminSocket::bind(&path).unwrap();
    assert!(matches!(AdminSocket::bind(&path), Err(SocketError::InUse(_))));
    drop(first);
    assert!(!path.exists());

    fs::write(&path, "precious").unwrap();
    assert!(matches!(AdminSocket::bind(&path), Err(SocketError::NotASocket(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}
