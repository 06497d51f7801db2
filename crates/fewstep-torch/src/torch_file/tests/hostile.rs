//! Files made by hand: harmless ones that nobody's torch writes, damaged and hostile ones.

use std::io::{Cursor, Read, Write};

use super::*;

/// A file of torch.save around a pickle and storages.
fn archive(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let mut put = |name: String, bytes: &[u8]| {
        zip.start_file(name, zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.write_all(bytes).unwrap();
    };
    put("a/data.pkl".into(), pickle);
    for (key, bytes) in storages {
        put(format!("a/data/{key}"), bytes);
    }
    zip.finish().unwrap().into_inner()
}

fn reason_of(pickle: &[u8], storages: &[(&str, &[u8])]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made.pt");
    std::fs::write(&path, archive(pickle, storages)).unwrap();
    reason(&path)
}

fn loaded(pickle: &[u8], storages: &[(&str, &[u8])]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("made.pt");
    std::fs::write(&path, archive(pickle, storages)).unwrap();
    load(&path).unwrap()
}

/// A tensor of float32 in storage "0", with short numbers.
fn tensor_pickle(elements: u8, offset: u8, size: &[u8], stride: &[u8], location: &str) -> Vec<u8> {
    let mut p = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((".to_vec();
    let text = |p: &mut Vec<u8>, s: &str| {
        p.push(b'X');
        p.extend((s.len() as u32).to_le_bytes());
        p.extend(s.as_bytes());
    };
    text(&mut p, "storage");
    p.extend(b"ctorch\nFloatStorage\n");
    text(&mut p, "0");
    text(&mut p, location);
    p.extend([b'K', elements, b't', b'Q', b'K', offset]);
    for numbers in [size, stride] {
        p.push(b'(');
        numbers.iter().for_each(|n| p.extend([b'K', *n]));
        p.push(b't');
    }
    p.extend(b"\x89ccollections\nOrderedDict\n)RtR.");
    p
}

#[test]
fn calls_are_written_down_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("made");
    let command = format!("touch {}", mark.display());
    let mut pickle = b"\x80\x02cposix\nsystem\nX".to_vec();
    pickle.extend((command.len() as u32).to_le_bytes());
    pickle.extend(command.as_bytes());
    pickle.extend(b"\x85R.");
    let value = loaded(&pickle, &[]);
    assert!(matches!(&value, Value::Object { class, args, state: None }
            if class == "posix.system" && args[0].as_str() == Some(&command)));
    assert!(!mark.exists());
    // What is set on the result, and a call of the result, are kept as well.
    let value = loaded(b"\x80\x02cm\nC\n)R(K\x01K\x02e.", &[]);
    assert!(matches!(&value, Value::Object { args, .. } if args[0].as_list().unwrap().len() == 2));
    let value = loaded(b"\x80\x02cm\nC\n)R)R.", &[]);
    assert!(matches!(&value, Value::Object { class, .. } if class == "(call)"));
}

#[test]
fn a_storage_of_another_device_loads_on_the_cpu() {
    let bytes: Vec<u8> = [1_f32, 2., 3., 4.]
        .iter()
        .flat_map(|x| x.to_le_bytes())
        .collect();
    let pickle = tensor_pickle(4, 1, &[3], &[1], "cuda:0");
    let value = loaded(&pickle, &[("0", &bytes)]);
    assert_eq!(
        value.as_tensor().unwrap(),
        &Tensor::from_slice(&[2_f32, 3., 4.])
    );
}

#[test]
fn a_tensor_that_does_not_fit_its_storage_is_refused() {
    let bytes = [0_u8; 16];
    let storages: [(&str, &[u8]); 1] = [("0", &bytes)];
    for (offset, size, stride) in [
        (1, vec![4], vec![1]),
        (4, vec![1], vec![1]),
        (0, vec![2, 3], vec![3, 1]),
        (0, vec![2], vec![4]),
        (0, vec![255; 20], vec![255; 20]),
    ] {
        let e = reason_of(&tensor_pickle(4, offset, &size, &stride, "cpu"), &storages);
        assert!(e.contains("does not fit into its 16 bytes"), "{e}");
    }
    let huge = reason_of(
        &tensor_pickle(4, 0, &[255, 255, 255, 255], &[0; 4], "cpu"),
        &storages,
    );
    assert!(huge.contains("bytes inside a file of"), "{huge}");
    let other = reason_of(&tensor_pickle(5, 0, &[1], &[1], "cpu"), &storages);
    assert_eq!(other, "`a/data/0` has 16 bytes, expected 20");
    let absent = reason_of(&tensor_pickle(4, 0, &[1], &[1], "cpu"), &[]);
    assert_eq!(
        absent,
        "the pickle names `a/data/0`, which is not in the archive"
    );
}

#[test]
fn a_hostile_pickle_ends_in_a_sentence() {
    let nested = [&b"\x80\x02"[..], &[b']'; 200], &[b'a'; 199], b"."].concat();
    // Each list holds the one before ten times.
    let mut laughs = b"\x80\x02]q\x00".to_vec();
    for i in 0..20_u8 {
        laughs.extend(b"](");
        laughs.extend([b'h', i].repeat(10));
        laughs.extend([b'e', b'q', i + 1]);
    }
    laughs.push(b'.');
    let wrapped = b"ctorch._tensor\n_rebuild_from_type_v2\n(".to_vec();
    let wrapped = [b"\x80\x02", wrapped.repeat(3).as_slice(), b"."].concat();
    for (pickle, says) in [
        (&b"\x80\x02"[..], "in the middle of an instruction"),
        (b"\x80\x02.", "more from the stack"),
        (b"\x80\x02(K\x01(0.", "more from the stack"),
        (b"\x80\x02e.", "more from the stack"),
        (b"\x80\x02h\x07.", "recalls object 7, which it never kept"),
        (
            b"\x80\x02X\xff\xff\xff\xffab.",
            "in the middle of an instruction",
        ),
        (
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xffab.",
            "in the middle of an instruction",
        ),
        (b"\x80\x02X\x01\0\0\0\xff.", "not UTF-8"),
        (b"\x80\x02}K\x01s.", "more from the stack"),
        (b"\x80\x02}(K\x01u.", "a key that has no value"),
        (
            b"\x80\x02K\x01K\x02a.",
            "appends to something that is no list",
        ),
        (b"\x80\x02K\x01)R.", "calls something that is no function"),
        (b"\x80\x02cos\nsystem\nK\x01R.", "where a tuple is expected"),
        (b"\x80\x02K\x01}b.", "sets the state"),
        (
            b"\x80\x02]q\x00h\x00a.",
            "nested deeper than 100 levels, or contains itself",
        ),
        (&nested, "nested deeper than 100 levels"),
        (&laughs, "unfolds into more than 2000000 objects"),
        (&wrapped, "more from the stack"),
        (b"\x80\x02I1\n.", "the instruction 0x49"),
        (
            b"\x80\x00K\x01.",
            "expected a pickle of protocol 2 to 5, found 0",
        ),
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
            "wrong arguments",
        ),
        (
            b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
            "a parameter without a tensor",
        ),
        (b"\x80\x02)Q.", "something that is no storage"),
    ] {
        let e = reason_of(pickle, &[]);
        assert!(e.contains(says), "{e} / {says}");
    }
}

#[test]
fn a_bomb_is_not_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.pt");
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("a/data.pkl", zip::write::SimpleFileOptions::default())
        .unwrap();
    let zeros = vec![b'N'; 1 << 20];
    for _ in 0..80 {
        zip.write_all(&zeros).unwrap();
    }
    let bytes = zip.finish().unwrap().into_inner();
    assert!(bytes.len() < 200_000);
    std::fs::write(&path, bytes).unwrap();
    assert!(reason(&path).contains("bytes inside a file of"));
}

#[test]
fn a_file_of_something_else_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other");
    for (bytes, says) in [
        (&b""[..], "found 0 bytes that are neither"),
        (b"\x93NUMPY\x01\0", "found 8 bytes that are neither"),
        (b"\x80\x02}.", "found 4 bytes that are neither"),
        (b"PK\x03\x04 and so on", "expected a whole zip archive"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let e = reason(&path);
        assert!(e.contains(says), "{e}");
    }
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("arr_0.npy", zip::write::SimpleFileOptions::default())
        .unwrap();
    std::fs::write(&path, zip.finish().unwrap().into_inner()).unwrap();
    assert!(reason(&path).contains("found a zip archive without data.pkl"));
    let absent = reason(&dir.path().join("absent"));
    assert!(absent.contains("No such file"), "{absent}");
}

/// A small generator of its own, so that the same bytes are tried on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    /// Flips a few bytes, or cuts the end off.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        if self.below(6) == 0 {
            bytes.truncate(self.below(bytes.len()));
            return;
        }
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            bytes[at] = match self.below(3) {
                0 => bytes[at] ^ (1 << self.below(8)),
                1 => b"\x80\x95()]}tRbQehjqr.\x81\x85\x93\x94"[self.below(20)],
                _ => self.below(256) as u8,
            };
        }
    }
}

#[test]
fn no_damage_to_a_file_makes_the_reader_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.pt");
    let mut dice = Dice(0x5eed);
    let (mut read, mut refused) = (0, 0);
    let mut tried = |bytes: &[u8]| {
        // A new file each time: some file systems flush one that is overwritten.
        std::fs::remove_file(&path).ok();
        std::fs::write(&path, bytes).unwrap();
        match load(&path) {
            Ok(_) => read += 1,
            Err(Error::File { .. }) => refused += 1,
            Err(e) => panic!("{e}"),
        }
    };
    for name in ["checkpoint.pt", "checkpoint-legacy.pt", "views-deflated.pt"] {
        let whole = std::fs::read(fixture(name)).unwrap();
        for _ in 0..500 {
            let mut bytes = whole.clone();
            dice.damage(&mut bytes);
            tried(&bytes);
        }
    }
    // Inside the archive, where its checksums do not help.
    for name in [
        "checkpoint.pt",
        "views.pt",
        "plain-protocol-4.pt",
        "types.pt",
    ] {
        let file = std::fs::File::open(fixture(name)).unwrap();
        let mut zip = zip::ZipArchive::new(file).unwrap();
        let mut entries = Vec::new();
        for i in 0..zip.len() {
            let mut entry = zip.by_index(i).unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            entries.push((entry.name().to_owned(), bytes));
        }
        let pickle = entries.iter().position(|e| e.0.ends_with("data.pkl"));
        let pickle = entries.remove(pickle.unwrap()).1;
        let storages: Vec<(&str, &[u8])> = entries
            .iter()
            .filter_map(|(name, bytes)| Some((name.split_once("/data/")?.1, bytes.as_slice())))
            .collect();
        for _ in 0..500 {
            let mut bytes = pickle.clone();
            dice.damage(&mut bytes);
            tried(&archive(&bytes, &storages));
        }
    }
    assert!(read > 100 && refused > 1000, "{read} {refused}");
}
