//! Running programs: quietly with a log and a live line, aloud with everything they print, or for their
//! output.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, PipeReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{progress::Step, workspace::Workspace};

/// How many lines of a failed program's log are shown. Compilers put what matters last.
const TAIL: usize = 60;
/// How often a quiet step says in a log that it still runs.
const SIGN_OF_LIFE: Duration = Duration::from_secs(60);

/// Runs `command` as a step of its own. What it prints goes to `target/xtask/<label>.log` and is shown only
/// if it fails.
pub(crate) fn quietly(workspace: &Workspace, label: &str, command: &mut Command) -> Result<()> {
    let step = Step::start(label);
    match run_quietly(workspace, label, command, &step) {
        Ok(()) => {
            step.done();
            Ok(())
        }
        Err(error) => {
            step.failed();
            Err(error)
        }
    }
}

fn run_quietly(workspace: &Workspace, label: &str, command: &mut Command, step: &Step) -> Result<()> {
    let path = log_path(workspace, label)?;
    let mut log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let (reader, writer) = std::io::pipe().context("no pipe")?;
    command.stdout(writer.try_clone().context("no pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shown(command)))?;
    // The command holds our end of the pipe, which would never see its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let lines = lines_of(reader);
    loop {
        match lines.recv_timeout(SIGN_OF_LIFE) {
            Ok(line) => {
                writeln!(log, "{line}").with_context(|| format!("cannot write {}", path.display()))?;
                step.detail(&line);
            }
            Err(RecvTimeoutError::Timeout) => step.still_running(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().context("lost the program")?;
    if !status.success() {
        bail!(
            "`{}` failed ({status})\n\n{}\n\nits whole output: {}",
            shown(command),
            tail(&path),
            path.display()
        );
    }
    Ok(())
}

/// The lines of a pipe, read by a thread so that the caller can wait for the next one for a limited time.
/// Bounded: a program that prints faster than the log takes it has to wait.
fn lines_of(pipe: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1024);
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Runs `command` with everything it prints to standard output shown and handed to `each_line`. Its standard
/// error is ours.
pub(crate) fn aloud(command: &mut Command, each_line: impl FnMut(&str)) -> Result<()> {
    aloud_as("", command, each_line)
}

/// The same with `name` in front of every line, for programs that run beside each other.
pub(crate) fn aloud_as(name: &str, command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<()> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if let Some(output) = child.stdout.take() {
        let mut shown = std::io::stdout();
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            writeln!(shown, "{name}{line}").context("cannot write to standard output")?;
            each_line(&line);
        }
    }
    let status = child.wait().context("lost the program")?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// What `command` prints to standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    output_for(command, "")
}

/// What `command` makes of `input`.
pub(crate) fn output_for(command: &mut Command, input: &str) -> Result<String> {
    let (reader, mut writer) = std::io::pipe().context("no pipe")?;
    command.stdin(reader).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("cannot start `{}`", shown(command)))?;
    // The program's end must be its own only, or one that does not read would keep us writing forever.
    command.stdin(Stdio::null());
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(input.as_bytes()));
        output_of(child, command)
    })
}

fn output_of(child: Child, command: &Command) -> Result<String> {
    let output = child.wait_with_output().context("lost the program")?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({})\n\n{}", shown(command), output.status, told.trim_end());
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that is not text", shown(command)))
}

/// Whether `command` ends well; what it prints is of no interest.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// The command as one would type it, with the variables that were set for it.
pub(crate) fn shown(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), value?.to_string_lossy())));
    let program = command.get_program().to_string_lossy();
    let program = Path::new(&*program)
        .file_name()
        .map_or_else(|| program.to_string(), |name| name.to_string_lossy().into_owned());
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    variables.chain([program]).chain(arguments).collect::<Vec<_>>().join(" ")
}

fn log_path(workspace: &Workspace, label: &str) -> Result<PathBuf> {
    let folder = workspace.target().join("xtask");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // What is in brackets is for whoever waits.
    let words = label.split(" (").next().unwrap_or(label);
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter.to_ascii_lowercase() } else { '-' };
    let name: String = words.chars().map(plain).collect();
    Ok(folder.join(name).with_extension("log"))
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines.split_at(lines.len().saturating_sub(TAIL)).1.join("\n")
}
