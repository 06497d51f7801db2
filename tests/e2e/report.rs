//! Reports in a browser, as a reader meets them. `cargo xtask test` names a Chromium and axe-core where they are.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::browser::Window;
use crate::common::Sandbox;

/// Charts that can be seen: their ids and how many shapes each has.
fn charts(window: &Window) -> Vec<(String, u64)> {
    let all = window.js("return [...document.querySelectorAll('[data-chart]')].filter(f => f.offsetParent).map(f => [f.dataset.chart, f.querySelectorAll('svg path').length]);");
    serde_json::from_value(all).unwrap()
}

fn url(file: &Path) -> String {
    format!("file://{}", file.display())
}

#[test]
fn the_report_of_a_spiking_run_loads_without_errors_has_data_in_its_charts_and_is_accessible() {
    let sandbox = Sandbox::new();
    assert!(sandbox.run(&[]).ok);
    let file = sandbox.path("runs/tiny/report.html");
    let html = std::fs::read_to_string(&file).unwrap();
    assert!(html.contains("cargo xtask run tiny.toml") && html.contains("timesteps = "));
    let Some(window) = Window::open(&url(&file), 1280, 1000) else {
        return;
    };
    let drawn = charts(&window);
    let ids: Vec<_> = drawn.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "accuracy",
            "loss",
            "validation-accuracy",
            "spike-rates",
            "energy",
            "thresholds"
        ]
    );
    assert!(drawn.iter().all(|(_, shapes)| *shapes > 5), "{drawn:?}");
    // The numbers of the page are those of the run.
    let summary: Value =
        serde_json::from_slice(&std::fs::read(sandbox.path("runs/tiny/summary.json")).unwrap())
            .unwrap();
    let shown = window.js("return JSON.parse(document.getElementById('data').textContent)['accuracy'].plot.series[1].values;");
    let last = shown
        .as_array()
        .unwrap()
        .iter()
        .rfind(|v| v.is_number())
        .unwrap()
        .as_f64()
        .unwrap();
    let t1 = summary["stages"].as_array().unwrap().last().unwrap()["test_accuracy"]
        .as_f64()
        .unwrap();
    assert!((last - 100. * t1).abs() < 1e-9, "{shown} {t1}");
    window.accessible("light");
    window.screenshot("iir-light");
    // Dark, with a chart's numbers open, from the keyboard.
    window.key("#theme", "Enter", 13);
    assert_eq!(
        window.js("return document.documentElement.dataset.theme;"),
        "dark"
    );
    window.key(".numbers summary", "Enter", 13);
    window.until(
        "the chart's numbers as a table",
        "return document.querySelectorAll('.numbers[open] tbody tr').length >= 3;",
    );
    window.accessible("dark");
    window.screenshot("iir-dark");
    // Printed, it is light again and all of it is there.
    window.js("dispatchEvent(new Event('beforeprint'));");
    assert_eq!(
        window.js("return document.documentElement.dataset.theme;"),
        "light"
    );
    let pdf = window.pdf();
    assert!(
        pdf.starts_with(b"%PDF") && pdf.len() > 20_000,
        "{} bytes",
        pdf.len()
    );
    window.quiet();
}

#[test]
fn on_a_phone_nothing_but_tables_is_wider_than_the_screen() {
    let sandbox = Sandbox::new();
    assert!(sandbox.run(&[]).ok);
    let file = sandbox.path("runs/tiny/report.html");
    let Some(window) = Window::open(&url(&file), 375, 800) else {
        return;
    };
    window.screenshot("iir-phone");
    let width = window.js("return [document.documentElement.scrollWidth, innerWidth];");
    assert!(width[0].as_u64() <= width[1].as_u64(), "{width}");
    window.quiet();
}

/// A model of a second, sampled with a few policies.
fn compared(sandbox: &Sandbox) {
    let config = r#"name = "compared"
method = "harmonica"
threads = 1
[model]
checkpoint = "digits"
[data]
name = "digits"
[sampler]
name = "ddim"
steps = 4
[guidance]
scale = 1.5
[routers.harmonica]
trajectories = 2
batch_size = 2
checkpoint_every = 1
evaluate_on = 2
[evaluation]
images = 8
batch_size = 8
intervals = [2]
repeats = 1
mac_savings_percent = [25]
"#;
    std::fs::write(sandbox.path("compared.toml"), config).unwrap();
    let done = sandbox.fewstep(&["run", "compared.toml", "--quiet"]);
    assert!(done.ok, "{}", done.stderr);
}

#[test]
fn the_report_of_a_comparison_has_a_heatmap_with_tooltips_and_a_slider_that_moves() {
    let sandbox = Sandbox::new();
    compared(&sandbox);
    let Some(window) = Window::open(&url(&sandbox.path("runs/compared/report.html")), 1280, 1000)
    else {
        return;
    };
    let drawn = charts(&window);
    for id in [
        "speed-against-quality",
        "error-per-step",
        "router-harmonica",
        "learning-loss",
    ] {
        assert!(
            drawn
                .iter()
                .any(|(drawn, shapes)| drawn == id && *shapes > 3),
            "{id}: {drawn:?}"
        );
    }
    // A cell tells its step, its sub-module and its probability.
    window.js("document.querySelector('[data-chart=router-harmonica]').scrollIntoView({block: 'center'});");
    let place = window.js("const b = document.querySelector('[data-chart=router-harmonica] .plot').getBoundingClientRect(); return [b.x + 180, b.y + 40];");
    window.point_at(place[0].as_f64().unwrap(), place[1].as_f64().unwrap());
    let told = "document.querySelector('[data-chart=router-harmonica] .plot').innerText";
    window.until(
        "a tooltip",
        &format!("return {told}.includes('threshold');"),
    );
    let tooltip = window
        .js("return document.querySelector('[data-chart=router-harmonica] .plot').innerText;");
    let said = tooltip.as_str().unwrap();
    assert!(
        said.contains("executed step 1 (t = 999)")
            && said.contains("block 1")
            && said.contains("threshold"),
        "{said}"
    );
    window.screenshot("harmonica");
    // The slider, from the keyboard.
    let cut =
        || window.js("return document.querySelector('.stack').style.getPropertyValue('--cut');");
    window.key("input[type=range]", "ArrowRight", 39);
    assert_eq!(cut(), "51%");
    window.key("input[type=range]", "Home", 36);
    assert_eq!(cut(), "0%");
    // Another policy on the right.
    let right = "document.querySelector('select.right')";
    window.js(&format!(
        "{right}.value = '2'; {right}.dispatchEvent(new Event('change'));"
    ));
    let shown = window.js("return [...document.querySelectorAll('.stack img')].filter(i => !i.hidden).map(i => [i.className, i.dataset.n, i.naturalWidth > 0]);");
    assert_eq!(shown, json!([["left", "0", true], ["right", "2", true]]));
    // Another plan.
    let plans = "document.querySelector('#plans select')";
    window.js(&format!(
        "{plans}.selectedIndex = 1; {plans}.dispatchEvent(new Event('change'));"
    ));
    assert!(
        charts(&window)
            .iter()
            .any(|(id, shapes)| id == "plan-1" && *shapes > 3),
        "{:?}",
        charts(&window)
    );
    window.accessible("light");
    window.quiet();
}

#[test]
fn several_runs_are_compared_in_one_file() {
    let sandbox = Sandbox::new();
    assert!(sandbox.run(&[]).ok);
    assert!(sandbox.run(&["--set", "seed=1", "--set", "name=other"]).ok);
    let done = sandbox.fewstep(&["report", "runs/tiny", "runs/other", "--out", "both.html"]);
    assert!(
        done.ok && done.stdout.trim() == "both.html",
        "{} {}",
        done.stdout,
        done.stderr
    );
    let html = std::fs::read_to_string(sandbox.path("both.html")).unwrap();
    assert!(html.contains("Settings that differ"));
    let done = sandbox.fewstep(&["report", "runs/none"]);
    assert_eq!(
        done.sentence(),
        "error: runs/none: expected a run folder with config.toml, found nothing"
    );
    let Some(window) = Window::open(&url(&sandbox.path("both.html")), 1280, 1000) else {
        return;
    };
    let names = window.js("return JSON.parse(document.getElementById('data').textContent)['accuracy'].plot.series.map(s => s.name);");
    assert_eq!(
        names,
        json!([
            "tiny: validation",
            "tiny: test",
            "other: validation",
            "other: test"
        ])
    );
    assert!(
        charts(&window).iter().all(|(_, shapes)| *shapes > 5),
        "{:?}",
        charts(&window)
    );
    window.accessible("light");
    window.screenshot("two-runs");
    window.quiet();
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_dashboard_follows_a_run_while_it_trains() {
    let sandbox = Sandbox::new();
    std::fs::create_dir_all(sandbox.path("runs")).unwrap();
    let mut server = Ended(
        sandbox
            .command(&["dashboard", "runs", "--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let address = line.split(' ').next().unwrap().to_owned();
    let Some(window) = Window::open(&address, 1280, 1000) else {
        return;
    };
    assert_eq!(
        window.js("return document.getElementById('subtitle').textContent;"),
        "0 runs, 0 of them running"
    );
    let mut training = Ended(
        sandbox
            .command(&["run", "tiny.toml", "--set", "ann.epochs=300", "--quiet"])
            .spawn()
            .unwrap(),
    );
    window.until(
        "the run appears by itself",
        "return !!document.querySelector('a[href=\"/runs/tiny\"]');",
    );
    window.accessible("the list of runs");
    window.go(&format!("{address}runs/tiny"));
    let points = "(data => data.loss ? data.loss.plot.series[0].points.length : 0)(JSON.parse(document.getElementById('data').textContent))";
    window.until(
        "the page is live",
        "return document.getElementById('live').textContent === 'live';",
    );
    window.until(
        "epochs come in",
        "const m = document.getElementById('subtitle').textContent.match(/epoch (\\d+) of 300/); return !!m && Number(m[1]) > 2;",
    );
    let before = window.js("return Number(document.getElementById('subtitle').textContent.match(/epoch (\\d+)/)[1]);").as_u64().unwrap();
    window.until(
        "and more of them, without a reload",
        &format!(
            "return Number(document.getElementById('subtitle').textContent.match(/epoch (\\d+)/)[1]) > {before};"
        ),
    );
    assert!(window.js(&format!("return {points};")).is_number());
    assert!(
        charts(&window)
            .iter()
            .any(|(id, shapes)| id == "loss" && *shapes > 3),
        "{:?}",
        charts(&window)
    );
    training.0.kill().unwrap();
    training.0.wait().unwrap();
    window.quiet();
}
