//! Downloads from a server on loopback that misbehaves as told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// How the server treats one path.
#[derive(Clone)]
struct Page {
    body: Vec<u8>,
    /// Connections that are cut half-way through what they were asked for.
    cuts: usize,
    /// Whether `Range` is honoured.
    ranges: bool,
}

impl Page {
    fn whole(body: &[u8]) -> Self {
        Self {
            body: body.into(),
            cuts: 0,
            ranges: true,
        }
    }
}

/// Requests seen: path and `Range` header.
type Log = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// Serves until the process ends, one request a connection.
fn serve(pages: &[(&str, Page)]) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/sets/", listener.local_addr().unwrap());
    let log = Log::default();
    let seen = log.clone();
    let mut pages: HashMap<String, Page> = pages
        .iter()
        .map(|(path, page)| (format!("/sets/{path}"), page.clone()))
        .collect();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that went away is not the server's problem.
            let _ = answer(stream.unwrap(), &mut pages, &seen);
        }
    });
    (address, log)
}

fn answer(
    mut stream: TcpStream,
    pages: &mut HashMap<String, Page>,
    log: &Log,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().unwrap()?.split(' ').nth(1).unwrap().to_owned();
    let headers: Vec<String> = lines
        .map_while(|line| line.ok().filter(|line| !line.is_empty()))
        .collect();
    let range = headers.iter().find_map(|line| {
        line.to_lowercase()
            .strip_prefix("range: ")
            .map(str::to_owned)
    });
    log.lock().unwrap().push((path.clone(), range.clone()));
    let Some(page) = pages.get_mut(&path) else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let wanted = range.filter(|_| page.ranges);
    let start: Option<usize> = wanted.map(|range| {
        range
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap()
    });
    let length = page.body.len();
    let body = match start {
        Some(start) if start >= length => {
            return stream.write_all(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        Some(start) => {
            write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{length}\r\n",
                length - 1
            )?;
            &page.body[start..]
        }
        None => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            &page.body[..]
        }
    };
    write!(
        stream,
        "Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )?;
    let cut = page.cuts > 0;
    page.cuts = page.cuts.saturating_sub(1);
    stream.write_all(if cut { &body[..body.len() / 2] } else { body })
}

fn hex(bytes: &[u8]) -> &'static str {
    // A source is a constant in the program; the few digests of the tests may live as long.
    Box::leak(
        Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
            .into_boxed_str(),
    )
}

fn plain_source(files: &[(&'static str, &[u8])]) -> Source {
    let files: Vec<_> = files
        .iter()
        .map(|(file, body)| (*file, hex(body)))
        .collect();
    Source {
        name: "plain",
        base: "http://127.0.0.1:1",
        files: Vec::leak(files),
        unpacks_to: None,
    }
}

fn body(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|place| ((place * 31 + seed) % 251) as u8)
        .collect()
}

fn quiet() -> impl FnMut(FetchProgress) {
    |_| ()
}

#[test]
fn a_connection_that_breaks_off_is_resumed_with_a_range() {
    let content = body(1, 100_000);
    let (base, log) = serve(&[(
        "a.gz",
        Page {
            cuts: 2,
            ..Page::whole(&content)
        },
    )]);
    let root = tempfile::tempdir().unwrap();
    let source = plain_source(&[("a.gz", &content)]);
    let mut reports = Vec::new();
    let path = fetch_source(
        &source,
        root.path(),
        &mut |report| reports.push(report),
        Some(&base),
    )
    .unwrap();
    assert_eq!(path, root.path().join("plain"));
    assert_eq!(fs::read(path.join("a.gz")).unwrap(), content);
    let ranges: Vec<_> = log
        .lock()
        .unwrap()
        .iter()
        .map(|(_, range)| range.clone())
        .collect();
    assert_eq!(
        ranges,
        [
            None,
            Some("bytes=50000-".into()),
            Some("bytes=75000-".into())
        ]
    );
    assert!(
        reports
            .iter()
            .all(|report| report.total_bytes == Some(100_000))
    );
    assert!(
        reports
            .windows(2)
            .all(|pair| pair[0].received_bytes <= pair[1].received_bytes)
    );
    assert_eq!(reports.last().unwrap().stage, FetchStage::Checking);
    assert!(!root.path().join(".plain.partial").exists());
}

#[test]
fn a_killed_download_is_taken_up_by_the_next_run_and_never_looks_whole() {
    let (first, second) = (body(1, 5_000), body(2, 9_000));
    let (base, log) = serve(&[
        ("a.gz", Page::whole(&first)),
        ("b.gz", Page::whole(&second)),
    ]);
    let root = tempfile::tempdir().unwrap();
    let source = plain_source(&[("a.gz", &first), ("b.gz", &second)]);
    // What a kill leaves: the first file checked, the second on its way.
    let partial = root.path().join(".plain.partial");
    fs::create_dir_all(partial.join("complete")).unwrap();
    fs::write(partial.join("complete/a.gz"), &first).unwrap();
    fs::write(partial.join("b.gz.part"), &second[..4_000]).unwrap();
    assert!(!root.path().join("plain").exists());
    let path = fetch_source(&source, root.path(), &mut quiet(), Some(&base)).unwrap();
    assert_eq!(fs::read(path.join("b.gz")).unwrap(), second);
    assert_eq!(
        *log.lock().unwrap(),
        [("/sets/b.gz".into(), Some("bytes=4000-".into()))]
    );
    // Once it is there, nothing is asked of the server.
    fetch_source(&source, root.path(), &mut quiet(), Some(&base)).unwrap();
    assert_eq!(log.lock().unwrap().len(), 1);
}

#[test]
fn a_part_that_was_already_whole_is_only_checked() {
    let content = body(3, 700);
    let (base, _) = serve(&[("a.gz", Page::whole(&content))]);
    let root = tempfile::tempdir().unwrap();
    let source = plain_source(&[("a.gz", &content)]);
    fs::create_dir_all(root.path().join(".plain.partial")).unwrap();
    fs::write(root.path().join(".plain.partial/a.gz.part"), &content).unwrap();
    let path = fetch_source(&source, root.path(), &mut quiet(), Some(&base)).unwrap();
    assert_eq!(fs::read(path.join("a.gz")).unwrap(), content);
}

#[test]
fn a_server_without_ranges_sends_everything_again() {
    let content = body(4, 10_000);
    let (base, _) = serve(&[(
        "a.gz",
        Page {
            cuts: 1,
            ranges: false,
            ..Page::whole(&content)
        },
    )]);
    let root = tempfile::tempdir().unwrap();
    let path = fetch_source(
        &plain_source(&[("a.gz", &content)]),
        root.path(),
        &mut quiet(),
        Some(&base),
    )
    .unwrap();
    assert_eq!(fs::read(path.join("a.gz")).unwrap(), content);
}

#[test]
fn a_wrong_checksum_discards_the_file_and_names_both_digests() {
    let content = body(5, 1_000);
    let (base, _) = serve(&[("a.gz", Page::whole(b"something else"))]);
    let root = tempfile::tempdir().unwrap();
    let error = fetch_source(
        &plain_source(&[("a.gz", &content)]),
        root.path(),
        &mut quiet(),
        Some(&base),
    )
    .unwrap_err();
    let (expected, found) = (hex(&content), hex(b"something else"));
    assert_eq!(
        error.to_string(),
        format!(
            "{base}a.gz: SHA-256 is {found}, expected {expected}; the download was discarded, try again"
        )
    );
    assert!(!root.path().join("plain").exists());
    assert!(!root.path().join(".plain.partial/a.gz.part").exists());
}

#[test]
fn an_error_of_the_server_is_named_with_its_address() {
    let (base, _) = serve(&[]);
    let root = tempfile::tempdir().unwrap();
    let error = fetch("mnist", root.path(), &mut quiet(), Some(&base))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!("{base}train-images-idx3-ubyte.gz: the server answered 404 Not Found")
    );
    assert!(!root.path().join("mnist").exists());
}

#[test]
fn a_server_that_gives_nothing_more_is_left_after_a_few_tries() {
    let content = body(6, 1);
    let (base, log) = serve(&[(
        "a.gz",
        Page {
            cuts: 99,
            ..Page::whole(&content)
        },
    )]);
    let root = tempfile::tempdir().unwrap();
    let error = fetch_source(
        &plain_source(&[("a.gz", &content)]),
        root.path(),
        &mut quiet(),
        Some(&base),
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("broke off after 0 bytes"),
        "{error}"
    );
    assert_eq!(log.lock().unwrap().len(), TRIES);
}

#[test]
fn an_archive_is_unpacked_and_opens_as_a_data_set() {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for name in [
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ] {
        let records: Vec<u8> = (0..10u8)
            .flat_map(|label| [vec![label], vec![label * 20; 3072]].concat())
            .collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(records.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(
                &mut header,
                format!("cifar-10-batches-bin/{name}.bin"),
                &records[..],
            )
            .unwrap();
    }
    let content = archive.into_inner().unwrap().finish().unwrap();
    let (base, _) = serve(&[(
        "set.tar.gz",
        Page {
            cuts: 1,
            ..Page::whole(&content)
        },
    )]);
    let files = Vec::leak(vec![("set.tar.gz", hex(&content))]);
    let unpacks_to = Some("cifar-10-batches-bin");
    let source = Source {
        name: "cifar10",
        base: "http://127.0.0.1:1",
        files,
        unpacks_to,
    };
    let root = tempfile::tempdir().unwrap();
    // Half an unpacked archive, as a kill leaves it.
    fs::create_dir_all(
        root.path()
            .join(".cifar10.partial/complete/cifar-10-batches-bin/junk"),
    )
    .unwrap();
    let path = fetch_source(&source, root.path(), &mut quiet(), Some(&base)).unwrap();
    assert!(!path.join("cifar-10-batches-bin/junk").exists());
    let splits = crate::open("cifar10", Some(&path)).unwrap();
    assert_eq!((splits.train.len(), splits.test.len()), (50, 10));
    fetch_source(&source, root.path(), &mut quiet(), None).unwrap();
}

#[test]
fn a_folder_of_the_users_is_never_taken_for_a_whole_set() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("mnist")).unwrap();
    let error = fetch("mnist", root.path(), &mut quiet(), None)
        .unwrap_err()
        .to_string();
    assert!(
        error
            .ends_with("exists but has no train-images-idx3-ubyte.gz; move it away to fetch mnist"),
        "{error}"
    );
}

#[test]
fn two_runs_do_not_fetch_the_same_set_at_once() {
    let root = tempfile::tempdir().unwrap();
    let partial = root.path().join(".mnist.partial");
    fs::create_dir(&partial).unwrap();
    let lock = File::create(partial.join("lock")).unwrap();
    lock.lock().unwrap();
    let error = fetch(
        "mnist",
        root.path(),
        &mut quiet(),
        Some("http://127.0.0.1:1"),
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("another run is fetching"), "{error}");
}

#[test]
fn an_unknown_name_lists_what_can_be_fetched() {
    let root = tempfile::tempdir().unwrap();
    let error = fetch("cifar11", root.path(), &mut quiet(), None)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "unknown data set \"cifar11\", did you mean \"cifar10\"?; known are cifar10, cifar100, mnist, fashion-mnist, inception, resnet56"
    );
}

#[test]
fn absent_weights_are_answered_with_how_to_get_them() {
    let error = find_weights("inceptio").unwrap_err().to_string();
    assert!(error.contains("did you mean \"inception\""), "{error}");
    for name in ["inception", "resnet56"] {
        let file = find_source(name).unwrap().files[0].0;
        match find_weights(name) {
            Ok(path) => assert!(path.ends_with(file)),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(&format!("data/{name}/{file}")), "{error}");
                let hint = format!("; `cargo xtask data fetch {name}` downloads them");
                assert!(error.ends_with(&hint), "{error}");
            }
        }
    }
}
