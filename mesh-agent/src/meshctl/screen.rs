//! Where text goes: with colours where they are wanted, no wider than the terminal.

use std::env;
use std::io::{self, BufWriter, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Color as AnstyleColor, Style};

use super::Color;

/// Titles and names.
pub(super) const EMPHASIS: Style = Style::new().bold();
/// What matters less.
pub(super) const FAINT: Style = Style::new().dimmed();
/// As it should be.
pub(super) const GOOD: Style = Style::new().fg_color(Some(AnstyleColor::Ansi(AnsiColor::Green)));
/// Worth a look.
pub(super) const DUBIOUS: Style = Style::new().fg_color(Some(AnstyleColor::Ansi(AnsiColor::Yellow)));
/// Broken.
pub(super) const BAD: Style = Style::new().fg_color(Some(AnstyleColor::Ansi(AnsiColor::Red))).bold();
/// Just so.
pub(super) const PLAIN: Style = Style::new();

/// `text` in a style.
pub(super) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

pub(super) fn emphasis(text: &str) -> String {
    styled(EMPHASIS, text)
}

pub(super) fn faint(text: &str) -> String {
    styled(FAINT, text)
}

pub(super) fn good(text: &str) -> String {
    styled(GOOD, text)
}

pub(super) fn dubious(text: &str) -> String {
    styled(DUBIOUS, text)
}

pub(super) fn bad(text: &str) -> String {
    styled(BAD, text)
}

/// Standard output or error. Styles that are written are taken out where nobody wants them.
pub(super) struct Screen {
    out: BufWriter<Box<dyn Write>>,
    width: Option<usize>,
    is_terminal: bool,
}

impl Screen {
    pub(super) fn stdout(color: Color) -> Self {
        let stdout = io::stdout();
        let is_terminal = stdout.is_terminal();
        let choice = choice(color, is_terminal);
        Self::new(Box::new(AutoStream::new(stdout, choice)), is_terminal)
    }

    pub(super) fn stderr(color: Color) -> Self {
        let stderr = io::stderr();
        let is_terminal = stderr.is_terminal();
        let choice = choice(color, is_terminal);
        Self::new(Box::new(AutoStream::new(stderr, choice)), is_terminal)
    }

    fn new(out: Box<dyn Write>, is_terminal: bool) -> Self {
        Self { out: BufWriter::new(out), width: width(is_terminal), is_terminal }
    }

    /// Columns there are; `None` where lines may be as long as they like.
    pub(super) fn width(&self) -> Option<usize> {
        self.width
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", text.trim_end())
    }

    pub(super) fn blank(&mut self) -> io::Result<()> {
        self.line("")
    }

    /// A title over what follows.
    pub(super) fn title(&mut self, text: &str) -> io::Result<()> {
        self.line(&emphasis(text))
    }

    /// Starts over at the top of the terminal. Past the stream that takes styles out: this is no style.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.out.flush()?;
        io::stdout().write_all(b"\x1b[H\x1b[2J")
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// <https://no-color.org>
fn choice(color: Color, is_terminal: bool) -> ColorChoice {
    let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || env::var_os("TERM").is_some_and(|terminal| terminal == "dumb");
    match color {
        Color::Always => ColorChoice::AlwaysAnsi,
        Color::Auto if is_terminal && !unwanted => ColorChoice::AlwaysAnsi,
        Color::Auto | Color::Never => ColorChoice::Never,
    }
}

/// `COLUMNS` where somebody says so, else the terminal's.
fn width(is_terminal: bool) -> Option<usize> {
    let said = env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    said.or_else(|| {
        let (width, _) = is_terminal.then(terminal_size::terminal_size)??;
        Some(usize::from(width.0))
    })
    .filter(|width| *width >= 20)
}
