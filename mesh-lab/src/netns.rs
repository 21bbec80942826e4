//! Network namespaces, where `ip netns` shows them, and doing things inside of them.
//!
//! Only threads are moved, never the process, and only threads made for it: a thread that has entered a namespace stays there until
//! it ends, so no later work can land in the wrong network by accident. Nothing is remounted: unlike under `ip netns exec`, programs
//! keep the /sys of the machine and with it bpffs and cgroup2.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};

/// Where iproute2 keeps named namespaces.
const DIRECTORY: &str = "/run/netns";
const NO_PATH: Option<&CStr> = None;
const LISTEN_BACKLOG: i32 = 1024;

/// A named network namespace.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// Makes a new namespace and gives it a name.
    ///
    /// # Errors
    /// When the name is taken, or this process is not privileged.
    pub fn create(name: &str) -> io::Result<Self> {
        share_directory()?;
        let path = path(name);
        OpenOptions::new().write(true).create_new(true).open(&path)?;
        let bound = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // Not /proc/self, which is the process's first thread and its namespace.
            mount(Some("/proc/thread-self/ns/net"), &path, NO_PATH, MsFlags::MS_BIND, NO_PATH)
        });
        if let Err(error) = bound {
            std::fs::remove_file(&path)?;
            return Err(error.into());
        }
        Self::open(name)
    }

    /// Opens the namespace of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(name: &str) -> io::Result<Self> {
        Ok(Self { name: name.to_owned(), file: File::open(path(name))? })
    }

    /// Whether a namespace has this name.
    #[must_use]
    pub fn exists(name: &str) -> bool {
        path(name).exists()
    }

    /// Takes the name away. The kernel removes the namespace with all its devices when nothing uses it any more.
    ///
    /// # Errors
    /// When the name cannot be removed; that there is none is no error.
    pub fn remove(name: &str) -> io::Result<()> {
        let path = path(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // A crash between making the file and mounting the namespace on it leaves a plain file: EINVAL.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, for `nsenter --net=`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        path(&self.name)
    }

    /// Moves the calling thread into the namespace, for good. Threads and processes it starts later are born there.
    ///
    /// # Errors
    /// When this process is not privileged.
    pub fn enter(&self) -> io::Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// Runs a closure on a thread in the namespace and waits for it. A panic of the closure goes on in the caller.
    ///
    /// # Errors
    /// When the thread cannot enter the namespace; the closure has not run then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        on_thread(|| self.enter().map(|()| work()))
    }

    /// Runs a future on a current-thread Tokio runtime in the namespace and waits for it. The closure makes the future on that thread.
    ///
    /// # Errors
    /// As [`Namespace::run`], or when no runtime can be made.
    pub fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> io::Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(async { work().await }))
        })?
    }

    /// Starts a thread in the namespace.
    ///
    /// # Errors
    /// When there can be no such thread.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<T>> {
        // The thread is born in the namespace of the one that starts it.
        self.run(|| thread::Builder::new().name(name.to_owned()).spawn(work))?
    }

    /// A TCP listener in the namespace. IPv6 listeners take IPv6 only, so that `0.0.0.0` and `::` can stand side by side.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn tcp_listener(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.run(|| listen(address))?
    }

    /// A UDP socket in the namespace.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn udp_socket(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.run(|| UdpSocket::bind(address))?
    }

    /// An unconnected TCP socket in the namespace, to be used from any Tokio runtime.
    ///
    /// # Errors
    /// When there can be no such socket.
    pub fn tokio_tcp_socket(&self, family_of: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
        let socket = self.run(|| {
            Socket::new(Domain::for_address(family_of), Type::STREAM.nonblocking(), Some(Protocol::TCP))
        })??;
        Ok(tokio::net::TcpSocket::from_std_stream(socket.into()))
    }

    /// Connects from the namespace, for use in the caller's Tokio runtime.
    ///
    /// # Errors
    /// When the connection cannot be made.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        self.tokio_tcp_socket(address)?.connect(address).await
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A non-blocking listener of the calling thread's namespace.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// A non-blocking UDP socket of the calling thread's namespace.
pub(crate) fn datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    match thread::scope(|scope| scope.spawn(work).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Makes the directory a shared mount, as `ip netns add` does and under the same lock. Without it, the first `ip netns add` of
/// somebody else would mount the directory over itself and hide our mounts beneath, where they cannot be removed.
fn share_directory() -> io::Result<()> {
    std::fs::create_dir_all(DIRECTORY)?;
    let lock = File::open(DIRECTORY)?;
    lock.lock()?;
    let share = || mount(NO_PATH, DIRECTORY, NO_PATH, MsFlags::MS_SHARED | MsFlags::MS_REC, NO_PATH);
    match share() {
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, NO_PATH, MsFlags::MS_BIND | MsFlags::MS_REC, NO_PATH)?;
            Ok(share()?)
        }
        result => Ok(result?),
    }
}
