//! Capture files (<https://datatracker.ietf.org/doc/draft-ietf-opsawg-pcap/>), with nanoseconds and packets that begin at the IP header.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{CaptureError, LARGEST};

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
const LINK_TYPE_RAW_IP: u32 = 101;

/// Writes a file.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
}

impl Writer {
    pub(super) fn create(path: PathBuf) -> Result<Self, CaptureError> {
        let created = File::create(&path).and_then(|file| {
            let mut out = BufWriter::new(file);
            out.write_all(&MAGIC_NANOSECONDS.to_ne_bytes())?;
            out.write_all(&VERSION[0].to_ne_bytes())?;
            out.write_all(&VERSION[1].to_ne_bytes())?;
            // Two fields that nobody uses.
            out.write_all(&[0; 8])?;
            out.write_all(&count(LARGEST).to_ne_bytes())?;
            out.write_all(&LINK_TYPE_RAW_IP.to_ne_bytes())?;
            Ok(out)
        });
        match created {
            Ok(out) => Ok(Self { path, out }),
            Err(source) => Err(CaptureError::File { path, source }),
        }
    }

    /// Adds a packet of which `kept` was kept.
    pub(super) fn packet(&mut self, at: SystemTime, kept: &[u8], length: usize) -> Result<(), CaptureError> {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        // The field wraps in 2106.
        let seconds = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
        let header = [seconds, since.subsec_nanos(), count(kept.len()), count(length)];
        let written = header
            .iter()
            .try_for_each(|field| self.out.write_all(&field.to_ne_bytes()))
            .and_then(|()| self.out.write_all(kept));
        self.checked(written)
    }

    /// Has everything written.
    pub(super) fn finish(&mut self) -> Result<(), CaptureError> {
        let flushed = self.out.flush();
        self.checked(flushed)
    }

    fn checked(&self, result: io::Result<()>) -> Result<(), CaptureError> {
        result.map_err(|source| CaptureError::File { path: self.path.clone(), source })
    }
}

fn count(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
