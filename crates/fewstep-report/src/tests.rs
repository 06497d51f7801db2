//! Pages of run folders, their comparison, and the dashboard over HTTP.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{self, lines};
use crate::{Block, Cells, Error, Page, Plot, Run, State, compare, serve};

fn read(folder: &Path) -> Run {
    Run::read(folder).unwrap()
}

fn chart<'a>(page: &'a Page, id: &str) -> &'a Plot {
    let ids: Vec<_> = page.charts().map(|c| c.id.as_str()).collect();
    let found = page.charts().find(|c| c.id == id);
    &found
        .unwrap_or_else(|| panic!("no {id} among {ids:?}"))
        .plot
}

fn figure(page: &Page, label: &str) -> String {
    let all = page.blocks().filter_map(|b| match b {
        Block::Figures(figures) => Some(figures),
        _ => None,
    });
    let found = all.flatten().find(|f| f.label == label);
    found
        .unwrap_or_else(|| panic!("no figure {label}"))
        .value
        .clone()
}

#[test]
fn a_spiking_run_shows_its_accuracy_energy_rates_and_how_to_reproduce_it() {
    let root = TempDir::new().unwrap();
    fixture::iir(&root.path().join("a"), "a", 7, 0.99);
    let page = read(&root.path().join("a")).page();
    assert_eq!(page.subtitle, "IIR-SNN on digits, finished");
    assert_eq!(figure(&page, "test accuracy, T=1"), "99.00");
    assert_eq!(figure(&page, "seed"), "7");
    let Plot::Bars { groups, series, .. } = chart(&page, "accuracy") else {
        panic!()
    };
    assert_eq!(groups, &["ann", "t2", "t1"]);
    assert_eq!(series[1].values, [Some(99.44), Some(98.5), Some(99.)]);
    let Plot::Bars { series, .. } = chart(&page, "spike-rates") else {
        panic!()
    };
    assert_eq!(
        series[0].values,
        [Some(0.1), Some(0.3)],
        "spikes at T=2 are shown for each timestep"
    );
    let Plot::Bars { series, .. } = chart(&page, "energy") else {
        panic!()
    };
    assert_eq!(
        series.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["artificial", "T=2", "T=1"]
    );
    let Plot::Lines { series, .. } = chart(&page, "loss") else {
        panic!()
    };
    assert_eq!(
        series[1].points,
        [(3., 0.4)],
        "epochs are counted over the whole run"
    );
    let html = page.to_html();
    for text in [
        "cargo xtask run a.toml",
        "fewstep run &#39;my config.toml&#39;",
        "Some CPU",
        "84a1fb70c349",
        "2026-11-26 16:42 UTC",
        "conv1 is silent &lt;b&gt;",
    ] {
        assert!(
            html.contains(text) || html.contains(&text.replace("&#39;", "'")),
            "{text}"
        );
    }
}

#[test]
fn a_comparison_of_policies_shows_router_and_plans_as_cells_in_the_order_of_execution() {
    let root = TempDir::new().unwrap();
    fixture::harmonica(root.path(), "h");
    let page = read(root.path()).page();
    let Plot::Heatmap(router) = chart(&page, "router-harmonica") else {
        panic!()
    };
    assert_eq!(router.columns, ["1 (t = 999)", "2 (t = 0)"]);
    assert_eq!(router.rows, ["block 1 attention", "block 1 MLP"]);
    let values = vec![vec![0.9, 0.7], vec![0.8, 0.05]];
    assert_eq!(
        router.cells,
        Cells::Probabilities {
            values,
            threshold: 0.1
        }
    );
    let Plot::Heatmap(plan) = chart(&page, "plan-0") else {
        panic!()
    };
    assert_eq!(plan.columns, router.columns);
    assert_eq!(
        plan.cells,
        Cells::Decisions {
            rows: vec!["CC".into(), "C.".into()]
        }
    );
    assert_eq!(
        figure(&page, "MAC saving"),
        "25.0",
        "the router at its own threshold"
    );
    let Some(Block::Pictures(samples)) = page.blocks().find(|b| matches!(b, Block::Pictures(_)))
    else {
        panic!()
    };
    let names: Vec<_> = samples.pictures.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(
        names,
        ["none", "fora-every-2"],
        "the uncached run is on the left"
    );
    assert!(page.to_html().contains("cargo xtask compare h.toml"));
}

#[test]
fn a_run_that_goes_on_is_shown_as_far_as_it_has_come() {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("live");
    let started = json!({"kind": "phase_started", "phase": "ann", "epochs": 9, "time_s": 1.});
    fixture::write(
        &folder,
        "name = \"live\"\n",
        std::slice::from_ref(&started),
        None,
    );
    let lock = File::create(folder.join("run.lock")).unwrap();
    lock.lock().unwrap();
    let run = read(&folder);
    assert_eq!(run.state(), State::Running);
    assert_eq!(run.page().subtitle, "IIR-SNN, running: ann, epoch 0 of 9");
    // Half of a line is being written.
    let epoch = json!({"kind": "epoch", "phase": "ann", "epoch": 1, "train_loss": 1.5, "val_accuracy": 0.5, "time_s": 2.});
    fs::write(
        folder.join("events.jsonl"),
        lines(&[started, epoch]) + "{\"kind\":\"ep",
    )
    .unwrap();
    assert_eq!(
        read(&folder).page().subtitle,
        "IIR-SNN, running: ann, epoch 1 of 9"
    );
    let mut torn = fs::read(folder.join("events.jsonl")).unwrap();
    torn.extend("\u{b5}".as_bytes().iter().take(1));
    fs::write(folder.join("events.jsonl"), torn).unwrap();
    assert_eq!(read(&folder).state(), State::Running, "half of a letter");
    drop(lock);
    assert_eq!(read(&folder).state(), State::Stopped);
}

#[test]
fn what_a_run_says_cannot_become_markup_or_script() {
    let root = TempDir::new().unwrap();
    let bad = "</script><script>alert(1)</script>";
    let events = [
        json!({"kind": "epoch", "phase": bad, "epoch": 1, "train_loss": 1.5, "val_accuracy": 0.5, "time_s": 2.}),
    ];
    fixture::write(root.path(), &format!("name = '{bad}'\n"), &events, None);
    let html = read(root.path()).page().to_html();
    assert!(!html.contains("<script>alert"), "markup came through");
    assert!(html.contains("default-src 'none'"));
    for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!html.contains(outside), "{outside}");
    }
}

#[test]
fn a_damaged_or_foreign_folder_is_refused_in_one_sentence() {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("run");
    let said = |folder: &Path| {
        Run::read(folder)
            .unwrap_err()
            .to_string()
            .replace(&root.path().display().to_string(), "R")
    };
    assert_eq!(
        said(&folder),
        "R/run: expected a run folder with config.toml, found nothing"
    );
    fs::write(&folder, "").unwrap();
    assert_eq!(
        said(&folder),
        "R/run: expected a run folder with config.toml, found a file"
    );
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    assert_eq!(
        said(&folder),
        "R/run: expected a run folder with config.toml, found none"
    );
    fs::write(folder.join("config.toml"), "name = \"x\"\n").unwrap();
    fs::write(folder.join("events.jsonl"), "{}\nnot json\n").unwrap();
    assert!(
        said(&folder)
            .starts_with("R/run/events.jsonl: expected one JSON object a line, found line 2: "),
        "{}",
        said(&folder)
    );
    fs::write(folder.join("events.jsonl"), "").unwrap();
    fs::write(
        folder.join("plan-a.toml"),
        "steps = [\"CC\", \"C\"]\n[made_for]\ntimesteps = [1.0, 2.0]\n",
    )
    .unwrap();
    assert_eq!(
        said(&folder),
        "R/run/plan-a.toml: expected a cache plan with a line of equal length for each timestep, found 2 lines, 2 timesteps"
    );
    fs::remove_file(folder.join("plan-a.toml")).unwrap();
    fs::write(root.path().join("secret"), "{}").unwrap();
    std::os::unix::fs::symlink(root.path().join("secret"), folder.join("summary.json")).unwrap();
    assert!(matches!(Run::read(&folder), Err(Error::Outside { .. })));
}

#[test]
fn two_runs_share_a_table_their_charts_and_the_settings_that_differ() {
    let root = TempDir::new().unwrap();
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    fixture::iir(&a, "same", 1, 0.99);
    fixture::iir(&b, "same", 2, 0.97);
    let page = compare(&[read(&a), read(&b)]);
    assert_eq!(page.subtitle, "same, same (2)");
    let Some(Block::Table(figures)) = page.sections[0].blocks.last() else {
        panic!()
    };
    let row = figures
        .rows
        .iter()
        .find(|r| r[0].text == "test accuracy, T=1 (%)")
        .unwrap();
    let noted = "99.00 (-0.44 points against the artificial network)";
    assert_eq!(row[1].text, noted);
    assert!(row[2].text.starts_with("97.00 ("), "{}", row[2].text);
    let warned = |b: &Block| matches!(b, Block::Warning(text) if text == "same (2): stage t2: conv1 is silent <b>");
    assert!(
        page.sections[0].blocks.iter().any(warned),
        "a warning of a run is one of the comparison"
    );
    let Block::Table(settings) = &page.sections[1].blocks[0] else {
        panic!()
    };
    assert_eq!(settings.rows.len(), 1, "the seed alone differs");
    assert_eq!(settings.rows[0][0].text, "seed");
    let Plot::Bars { groups, series, .. } = chart(&page, "accuracy") else {
        panic!()
    };
    assert_eq!(groups, &["ann", "t2", "t1"]);
    assert_eq!(series[3].name, "same (2): test");
    assert_eq!(series[3].values[2], Some(97.));
    let harmonica = root.path().join("h");
    fixture::harmonica(&harmonica, "h");
    let mixed = compare(&[read(&a), read(&harmonica)]);
    chart(&mixed, "run1-router-harmonica");
    chart(&mixed, "accuracy");
}

/// A connection to the dashboard that gives up after a while.
fn connect(url: &str) -> TcpStream {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let stream = TcpStream::connect(address).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    stream
}

/// What the dashboard answers: status, headers and body.
fn ask(url: &str, path: &str, host: &str, method: &str) -> (u16, String) {
    let mut stream = connect(url);
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    (text[9..12].parse().unwrap(), text)
}

fn dashboard(root: &Path) -> String {
    let dashboard = serve(root, 0).unwrap();
    let url = dashboard.url();
    std::thread::spawn(move || dashboard.run());
    url
}

#[test]
fn the_dashboard_shows_runs_and_refuses_paths_hosts_and_methods_that_are_none_of_its_business() {
    let outside = TempDir::new().unwrap();
    let root = outside.path().join("runs");
    fixture::iir(&root.join("a"), "a", 1, 0.99);
    fixture::iir(&outside.path().join("secret"), "secret", 1, 0.99);
    std::os::unix::fs::symlink(outside.path().join("secret"), root.join("link")).unwrap();
    let url = dashboard(&root);
    assert!(url.starts_with("http://127.0.0.1:"));
    let host = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let (status, index) = ask(&url, "/", &host, "GET");
    assert_eq!(status, 200);
    assert!(
        index.contains("href=\"/runs/a\"")
            && !index.contains("secret")
            && !index.contains("/runs/link"),
        "{index}"
    );
    let (status, page) = ask(&url, "/runs/a", "localhost", "GET");
    assert!(status == 200 && page.contains("data-events=\"/runs/a/events\""));
    for path in [
        "/runs/..",
        "/runs/../secret",
        "/runs/%2e%2e",
        "/runs/..%2fsecret",
        "/runs/%2e%2e%2fsecret",
        "/runs/link",
        "/runs/link/events",
        "/runs/.",
        "/runs/none",
        "/../secret/config.toml",
        "/etc/passwd",
        "/runs/a/config.toml",
    ] {
        let (status, said) = ask(&url, path, &host, "GET");
        assert!((400..500).contains(&status), "{path}: {said}");
        assert!(!said.contains("secret"), "{path}: {said}");
    }
    assert_eq!(
        ask(&url, "/", "evil.example", "GET").0,
        403,
        "a name that somebody points here"
    );
    assert_eq!(ask(&url, "/runs/a", &host, "POST").0, 405);
}

#[test]
fn an_open_page_is_told_of_new_epochs() {
    let root = TempDir::new().unwrap();
    let folder = root.path().join("live");
    let epoch = |n: u32| json!({"kind": "epoch", "phase": "ann", "epoch": n, "train_loss": 1. / f64::from(n), "val_accuracy": 0.5, "time_s": n});
    fixture::write(&folder, "name = \"live\"\n", &[epoch(1)], None);
    let url = dashboard(root.path());
    let mut stream = connect(&url);
    write!(
        stream,
        "GET /runs/live/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )
    .unwrap();
    let mut updates = BufReader::new(stream)
        .lines()
        .map_while(Result::ok)
        .filter_map(|line| {
            Some(serde_json::from_str::<Value>(line.strip_prefix("data: ")?).unwrap())
        });
    let points = |update: &Value| {
        update["charts"]["loss"]["plot"]["series"][0]["points"]
            .as_array()
            .unwrap()
            .len()
    };
    let first = updates.next().unwrap();
    assert_eq!(points(&first), 1);
    fs::write(folder.join("events.jsonl"), lines(&[epoch(1), epoch(2)])).unwrap();
    let second = updates.next().unwrap();
    assert_eq!(points(&second), 2);
    assert_eq!(first["structure"], second["structure"]);
}

#[test]
fn a_port_that_is_taken_and_a_folder_that_is_not_there_are_said_in_one_sentence() {
    let root = TempDir::new().unwrap();
    let first = serve(root.path(), 0).unwrap();
    let port: u16 = first
        .url()
        .trim_end_matches('/')
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let said = serve(root.path(), port).unwrap_err().to_string();
    assert!(
        said.starts_with(&format!("port {port} of this machine: ")),
        "{said}"
    );
    let said = serve(&root.path().join("none"), 0).unwrap_err().to_string();
    assert!(said.contains("none could not be read: "), "{said}");
}
