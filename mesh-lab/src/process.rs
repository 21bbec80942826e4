//! Programs that run in a machine of a lab.
//!
//! A program is born in its machine's namespaces and cgroup, as the leader of a process group. It dies with its [`Process`] handle,
//! with its lab, and, should this process be killed, with this process; only [`Program::detached`] ones outlive the last two.

mod spawner;

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::cgroup;
use crate::lab::Registry;
use crate::machine::Machine;
use crate::state::ProcessId;

/// How long [`Program::output`] waits for the program's end, unless told otherwise.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of each stream [`Program::output`] takes; a program that writes more gets SIGPIPE.
const OUTPUT_MAX: u64 = 64 << 20;
/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(2);

/// What went wrong with a program.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It cannot be started.
    #[error("{machine}: cannot start {program}")]
    Start {
        /// The machine.
        machine: String,
        /// The program.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// It has not done in time what was waited for.
    #[error("{program} (process {pid}): {what} within {after:?}\n{said}")]
    Timeout {
        /// The program.
        program: String,
        /// Its process id.
        pid: u32,
        /// What did not happen.
        what: String,
        /// How long it had.
        after: Duration,
        /// What it has said until then.
        said: String,
    },
    /// It ended before it did what was waited for.
    #[error("{program} ended ({status}) before {what}\n{said}")]
    Ended {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What was waited for.
        what: String,
        /// What it has said until then.
        said: String,
    },
    /// The system refuses to look at it, or to show its log.
    #[error("cannot watch {program}")]
    Watch {
        /// The program.
        program: String,
        /// What the system says.
        source: io::Error,
    },
}

/// What a program that has ended leaves behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A program to be run in a machine: [`std::process::Command`], with a place.
#[derive(Debug)]
pub struct Program {
    command: Command,
    machine: String,
    registry: Arc<Registry>,
    log: PathBuf,
    timeout: Duration,
    detached: bool,
    place: Place,
}

impl Program {
    /// Makes a command run in a machine.
    pub(crate) fn new(
        machine: &Machine,
        registry: &Arc<Registry>,
        mut command: Command,
    ) -> Result<Self, ProcessError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let started = |source| ProcessError::Start {
            machine: machine.name().to_owned(),
            program: program.clone(),
            source,
        };
        let place = Place {
            network: machine.namespace_file().map_err(started)?,
            mounts: machine.mounts_file().map_err(started)?,
            cgroup: machine.cgroup_entrance().map_err(started)?,
        };
        command.process_group(0).stdin(Stdio::null());
        let log = registry.next_log(machine.name(), &program);
        Ok(Self {
            command,
            machine: machine.name().to_owned(),
            registry: Arc::clone(registry),
            log,
            timeout: OUTPUT_TIMEOUT,
            detached: false,
            place,
        })
    }

    /// Runs it in another cgroup than its machine's: one below that, which is made.
    ///
    /// # Errors
    /// When the cgroup cannot be made.
    pub(crate) fn cgroup(mut self, path: &Path) -> Result<Self, ProcessError> {
        let entrance = cgroup::create(path).and_then(|()| cgroup::entrance(path));
        self.place.cgroup = Some(entrance.map_err(|source| self.refused(source))?);
        Ok(self)
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, value: impl AsRef<OsStr>) -> Self {
        self.command.arg(value);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, values: impl IntoIterator<Item = S>) -> Self {
        self.command.args(values);
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Sets the directory it starts in.
    #[must_use]
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Gives it something to read, instead of nothing.
    #[must_use]
    pub fn stdin(mut self, from: impl Into<Stdio>) -> Self {
        self.command.stdin(from);
        self
    }

    /// The file that [`Program::spawn`] appends its output to, instead of one in the lab's own directory, which goes with the lab.
    #[must_use]
    pub fn log_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = path.into();
        self
    }

    /// How long [`Program::output`] waits; 30 seconds unless told otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets it outlive its handle and this process: only the end of the lab ends it. For labs that are kept.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Starts it, with its output in a log file.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(mut self) -> Result<Process, ProcessError> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .and_then(|log| Ok((log.try_clone()?, log)));
        let (stdout, stderr) = log.map_err(|source| self.refused(source))?;
        self.command.stdout(stdout).stderr(stderr);
        self.start()
    }

    /// Runs it to its end and returns what it wrote. A program that takes longer than its timeout is killed.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time. A bad exit status is no error.
    pub fn output(mut self) -> Result<Output, ProcessError> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let timeout = self.timeout;
        let mut process = self.start()?;
        let stdout = process.child.stdout.take().map(|pipe| thread::spawn(move || read_all(pipe)));
        let stderr = process.child.stderr.take().map(|pipe| thread::spawn(move || read_all(pipe)));
        let ended = process.wait(timeout);
        if ended.is_err() {
            // Closes the pipes, so that the readers end.
            process.kill();
        }
        let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            let bytes = reader.and_then(|reader| reader.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (text(stdout), text(stderr));
        match ended {
            Ok(status) => Ok(Output { status, stdout, stderr }),
            Err(_) => Err(process.late("it did not end", timeout, format!("{stdout}{stderr}"))),
        }
    }

    fn start(mut self) -> Result<Process, ProcessError> {
        let place = self.place;
        let enter = move || place.enter();
        // SAFETY: runs in the child between fork and exec, where only async-signal-safe calls are allowed: `enter` makes plain
        // system calls on descriptors that were opened before, and allocates nothing.
        unsafe { self.command.pre_exec(enter) };
        if !self.detached {
            let die_with_parent = || set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from);
            // SAFETY: one system call, between fork and exec.
            unsafe { self.command.pre_exec(die_with_parent) };
        }
        let program = self.command.get_program().to_string_lossy().into_owned();
        let command = std::mem::replace(&mut self.command, Command::new(""));
        let child = spawner::spawn(command).map_err(|source| ProcessError::Start {
            machine: self.machine.clone(),
            program: program.clone(),
            source,
        })?;
        // A child that has not been waited for is in /proc, dead or alive.
        let id = child.id().try_into().ok().and_then(ProcessId::of);
        if let Some(id) = id {
            self.registry.started(id);
        }
        Ok(Process { child, id, program, log: self.log, registry: self.registry, detached: self.detached })
    }

    fn refused(&self, source: io::Error) -> ProcessError {
        let program = self.command.get_program().to_string_lossy().into_owned();
        ProcessError::Start { machine: self.machine.clone(), program, source }
    }
}

/// Where a program is born.
#[derive(Debug)]
struct Place {
    network: File,
    mounts: Option<File>,
    cgroup: Option<File>,
}

impl Place {
    /// Moves the calling process there.
    fn enter(&self) -> io::Result<()> {
        setns(&self.network, CloneFlags::CLONE_NEWNET)?;
        if let Some(mounts) = &self.mounts {
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
        }
        if let Some(cgroup) = &self.cgroup {
            // `0` is the process that writes.
            nix::unistd::write(cgroup, b"0")?;
        }
        Ok(())
    }
}

fn read_all(pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What could be read until the pipe broke is what there is.
    let _ = pipe.take(OUTPUT_MAX).read_to_end(&mut bytes);
    bytes
}

/// A program that runs in a machine; killed with its whole process group when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    id: Option<ProcessId>,
    program: String,
    log: PathBuf,
    registry: Arc<Registry>,
    detached: bool,
}

impl Process {
    /// Its identity, by which it is found when this handle is gone; `None` if it ended at once.
    #[must_use]
    pub(crate) fn id(&self) -> Option<ProcessId> {
        self.id
    }

    /// Its process id, which is also its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file it writes to.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until it has written a text.
    ///
    /// # Errors
    /// When it ends before, or the time is over; with its log.
    pub fn wait_for_log(&mut self, text: &str, timeout: Duration) -> Result<(), ProcessError> {
        let deadline = Instant::now() + timeout;
        loop {
            // In this order: what it wrote last is still seen.
            let status = self.try_wait()?;
            let log = self.log();
            if log.contains(text) {
                return Ok(());
            }
            if let Some(status) = status {
                return Err(ProcessError::Ended {
                    program: self.program.clone(),
                    status,
                    what: format!("it said {text:?}"),
                    said: log,
                });
            }
            if Instant::now() > deadline {
                return Err(self.late(&format!("it did not say {text:?}"), timeout, log));
            }
            thread::sleep(POLL);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the time is over; it runs on then.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, ProcessError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(self.late("it did not end", timeout, self.log()));
            }
            thread::sleep(POLL);
        }
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system cannot say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        self.child.try_wait().map_err(|source| ProcessError::Watch { program: self.program.clone(), source })
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        killpg(self.group(), signal)
            .map_err(|error| ProcessError::Watch { program: self.program.clone(), source: error.into() })
    }

    /// Asks it to end (SIGTERM) and waits; kills it when the time is over.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(mut self, timeout: Duration) -> Result<ExitStatus, ProcessError> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// Kills its process group (SIGKILL) and waits until the program is gone.
    pub fn kill(&mut self) {
        // While the leader has not been waited for, its id cannot belong to anybody else. Errors mean that all have ended.
        if let Ok(None) = self.child.try_wait() {
            let _ = killpg(self.group(), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }

    fn group(&self) -> Pid {
        // Process ids are below 2^22.
        Pid::from_raw(self.child.id().try_into().unwrap_or(i32::MAX))
    }

    fn late(&self, what: &str, after: Duration, said: String) -> ProcessError {
        ProcessError::Timeout {
            program: self.program.clone(),
            pid: self.pid(),
            what: what.to_owned(),
            after,
            said,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        self.kill();
        if let Some(id) = self.id {
            self.registry.ended(id);
        }
    }
}
