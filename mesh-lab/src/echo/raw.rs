//! Raw TCP: echoes bytes, and answers the line `who`.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Connection;
use super::detect::Replayed;

/// The line that asks who is there.
pub(super) const WHO: &[u8] = b"who\n";
const BUFFER: usize = 16 * 1024;

/// Serves a connection until the client has closed its side and has got everything back.
pub(super) async fn serve(mut stream: Replayed, connection: &Connection) -> io::Result<()> {
    let mut echo = Echo::new(connection.line("TCP"));
    let mut input = vec![0; BUFFER];
    let mut output = Vec::new();
    loop {
        let read = stream.read(&mut input).await?;
        output.clear();
        if read == 0 {
            echo.finish(&mut output);
        } else {
            echo.feed(input.get(..read).unwrap_or_default(), &mut output);
        }
        stream.write_all(&output).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
    }
}

/// Turns what comes in into what goes out, however it is cut into reads. The beginning of a line is held back as long as it may
/// become `who`.
#[derive(Debug)]
struct Echo {
    answer: Vec<u8>,
    /// How many bytes of `who` have been seen and held back.
    held: usize,
    line_begins: bool,
}

impl Echo {
    fn new(answer: Vec<u8>) -> Self {
        Self { answer, held: 0, line_begins: true }
    }

    fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) {
        for line in input.split_inclusive(|byte| *byte == b'\n') {
            self.feed_line(line, output);
        }
    }

    /// A part of one line: a line end is at most its last byte.
    fn feed_line(&mut self, part: &[u8], output: &mut Vec<u8>) {
        let awaited = WHO.get(self.held..).unwrap_or_default();
        if self.line_begins && awaited.starts_with(part) {
            self.held += part.len();
            if self.held == WHO.len() {
                self.held = 0;
                output.extend_from_slice(&self.answer);
            }
            return;
        }
        self.finish(output);
        output.extend_from_slice(part);
        self.line_begins = part.ends_with(b"\n");
    }

    /// What was held back is not `who`.
    fn finish(&mut self, output: &mut Vec<u8>) {
        output.extend_from_slice(WHO.get(..self.held).unwrap_or_default());
        self.held = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echoed(input: &[u8], cut: usize) -> String {
        let mut echo = Echo::new(b"{}\n".to_vec());
        let mut output = Vec::new();
        for part in input.chunks(cut) {
            echo.feed(part, &mut output);
        }
        echo.finish(&mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn answers_who_and_echoes_the_rest_however_it_is_cut() {
        for cut in 1..8 {
            for (input, expected) in [
                ("who\n", "{}\n"),
                ("who\nwho\n", "{}\n{}\n"),
                ("hello\nwho\nbye", "hello\n{}\nbye"),
                ("who", "who"),
                ("whose\n", "whose\n"),
                ("a who\n", "a who\n"),
                ("who \nwho\n", "who \n{}\n"),
                ("\n\n", "\n\n"),
            ] {
                assert_eq!(echoed(input.as_bytes(), cut), expected, "{input:?} cut by {cut}");
            }
        }
    }
}
