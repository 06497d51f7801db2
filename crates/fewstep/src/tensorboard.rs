//! TensorBoard event files: scalars and PNG images, written without TensorFlow.
//!
//! A file is a sequence of records (the TFRecord framing), each a protocol-buffer message `Event`:
//!
//! ```text
//! u64 length (little endian) · u32 masked CRC-32C of the length · payload · u32 masked CRC-32C of the payload
//! ```
//!
//! The CRC is masked as `(crc rotated right by 15) + 0xa282ead8`. Only the fields that are needed are encoded
//! (numbers from `tensorboard/compat/proto/{event,summary}.proto`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// How every event file's name begins; TensorBoard looks for the same.
pub const FILE_PREFIX: &str = "events.out.tfevents.";

/// One open event file. Every call writes one whole record, so that a killed run leaves a readable file (a torn last
/// record is skipped by TensorBoard).
#[derive(Debug)]
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// Makes a new event file in `folder` (made if it is not there). An existing file is never touched.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let seconds = unix_seconds() as u64;
        let process = std::process::id();
        let mut serial = 0_u32;
        let file = loop {
            let name = format!("{FILE_PREFIX}{seconds:010}.fewstep.{process}.{serial}");
            let path = folder.join(name);
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Ok(file) => break file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => serial += 1,
                Err(error) => return Err(error),
            }
        };
        let mut writer = Self { file };
        let mut event = Message::default();
        event.double(1, unix_seconds());
        event.bytes(3, b"brain.Event:2");
        writer.record(&event.0)?;
        Ok(writer)
    }

    /// One point of the curve `tag`. `wall_time_s` is Unix time in seconds; NaN and infinities are kept.
    ///
    /// # Errors
    /// What the file system says.
    pub fn scalar(&mut self, tag: &str, step: i64, value: f64, wall_time_s: f64) -> io::Result<()> {
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        entry.float(2, value as f32);
        self.summary(entry, step, wall_time_s)
    }

    /// One image of the series `tag`; `png` is the whole PNG file.
    ///
    /// # Errors
    /// What the file system says, or `InvalidInput` if the bytes do not begin as a PNG does.
    pub fn image(&mut self, tag: &str, step: i64, png: &[u8], wall_time_s: f64) -> io::Result<()> {
        let (width, height) = png_size(png).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the image `{tag}` is not a PNG"),
            )
        })?;
        const RGB: u64 = 3;
        let mut image = Message::default();
        image.number(1, height.into());
        image.number(2, width.into());
        image.number(3, RGB);
        image.bytes(4, png);
        let mut entry = Message::default();
        entry.bytes(1, tag.as_bytes());
        entry.bytes(4, &image.0);
        self.summary(entry, step, wall_time_s)
    }

    fn summary(&mut self, entry: Message, step: i64, wall_time_s: f64) -> io::Result<()> {
        let mut summary = Message::default();
        summary.bytes(1, &entry.0);
        let mut event = Message::default();
        event.double(1, wall_time_s);
        event.number(2, step as u64);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, payload: &[u8]) -> io::Result<()> {
        self.file.write_all(&frame(payload))
    }
}

/// Unix time in seconds, as TensorBoard wants it.
pub fn unix_seconds() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend_from_slice(&length);
    record.extend_from_slice(&masked_crc(&length).to_le_bytes());
    record.extend_from_slice(payload);
    record.extend_from_slice(&masked_crc(payload).to_le_bytes());
    record
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// Width and height from a PNG's first chunk.
fn png_size(png: &[u8]) -> Option<(u32, u32)> {
    let head = png.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let number = |at: usize| -> Option<u32> {
        let bytes = head.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    (head.get(4..8)? == b"IHDR").then_some((number(8)?, number(12)?))
}

/// A protocol-buffer message in the making: fields in the order of the calls.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    const VARINT: u64 = 0;
    const FIXED_64: u64 = 1;
    const LENGTH_DELIMITED: u64 = 2;
    const FIXED_32: u64 = 5;

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.key(field, Self::VARINT);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.key(field, Self::FIXED_64);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn float(&mut self, field: u64, value: f32) {
        self.key(field, Self::FIXED_32);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.key(field, Self::LENGTH_DELIMITED);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The head of a 900×600 PNG, as much of it as the writer looks at.
    pub(crate) fn tiny_png() -> Vec<u8> {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend_from_slice(&[0, 0, 3, 0x84, 0, 0, 2, 0x58, 8, 2, 0, 0, 0]);
        png
    }

    /// The payloads of a file, after checking both CRCs of each record.
    pub(crate) fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let length_crc = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
            assert_eq!(length_crc, masked_crc(&bytes[..8]));
            let payload = &bytes[12..12 + length];
            let crc = u32::from_le_bytes(bytes[12 + length..16 + length].try_into().unwrap());
            assert_eq!(crc, masked_crc(payload));
            found.push(payload.to_vec());
            bytes = &bytes[16 + length..];
        }
        found
    }

    /// The bytes of the only file in `folder`.
    fn written(folder: &Path) -> Vec<u8> {
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().collect();
        assert_eq!(files.len(), 1);
        std::fs::read(files[0].as_ref().unwrap().path()).unwrap()
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Made with the Python package `tensorboard` 2.21 (its own protocol buffers and record writer):
    ///
    /// ```python
    /// import io
    /// from tensorboard.compat.proto.event_pb2 import Event
    /// from tensorboard.compat.proto.summary_pb2 import Summary
    /// from tensorboard.summary.writer.record_writer import RecordWriter
    /// value = Summary.Value(tag="ann/loss", simple_value=0.25)
    /// event = Event(wall_time=1700000000.5, step=300, summary=Summary(value=[value]))
    /// out = io.BytesIO()
    /// RecordWriter(out).write(event.SerializeToString())
    /// print(out.getvalue().hex())
    /// ```
    const SCALAR_RECORD: &str = "1f00000000000000514b44180900002040fc54d94110ac022a110a0f0a08616e6e2f6c6f7373150000803ea0971b10";

    #[test]
    fn a_scalar_record_has_the_bytes_that_tensorboard_writes() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        let start = written(folder.path()).len();
        writer
            .scalar("ann/loss", 300, 0.25, 1_700_000_000.5)
            .unwrap();
        let bytes = written(folder.path());
        assert_eq!(hex(&bytes[start..]), SCALAR_RECORD);
    }

    #[test]
    fn every_record_reads_back_with_good_checksums() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path()).unwrap();
        writer.scalar("loss", -1, f64::NAN, 1.0).unwrap();
        writer.image("plots/energy", 7, &tiny_png(), 2.0).unwrap();
        let records = payloads(&written(folder.path()));
        assert_eq!(records.len(), 3);
        assert!(records[0].ends_with(b"brain.Event:2"));
        assert!(records[1].windows(4).any(|part| part == b"loss"));
        // Height 600 and width 900 as varints, then the colour space.
        let size = [0x08, 0xd8, 0x04, 0x10, 0x84, 0x07, 0x18, 0x03];
        assert!(records[2].windows(8).any(|part| part == size));
    }

    #[test]
    fn a_second_writer_takes_a_file_of_its_own_and_bytes_that_are_no_png_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _first = EventWriter::create(folder.path()).unwrap();
        let mut second = EventWriter::create(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        let error = second.image("x", 0, b"GIF89a", 0.0).unwrap_err();
        assert_eq!(error.to_string(), "the image `x` is not a PNG");
    }
}
