//! Runs beside each other.

use std::collections::BTreeMap;

use crate::page::{
    Bars, Block, Cell, Chart, Choice, Family, Page, Picture, Plot, Section, Series, Table,
};
use crate::run::{Run, State};
use crate::show::{behind_a_slider, plain};

/// A page with the figures of all `runs` in one table, their curves in the same charts, their samples behind one slider, and the keys of
/// their configs that differ.
pub fn compare(runs: &[Run]) -> Page {
    let names = labels(runs);
    let pages: Vec<_> = runs.iter().map(Run::page).collect();
    let mut sections = vec![
        Section {
            title: "Figures".into(),
            blocks: warnings(&names, runs, &pages)
                .chain([figures(&names, &pages)])
                .collect(),
        },
        Section {
            title: "Settings that differ".into(),
            blocks: vec![settings(&names, runs)],
        },
    ];
    sections.extend(charts(&names, &pages));
    sections.extend(samples(&names, runs));
    Page {
        title: format!("{} runs", runs.len()),
        subtitle: names.join(", "),
        sections,
    }
}

/// Names, told apart where two are the same.
fn labels(runs: &[Run]) -> Vec<String> {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    let one = |run| {
        let n = seen.entry(Run::name(run)).or_insert(0);
        *n += 1;
        match *n {
            1 => run.name().to_owned(),
            n => format!("{} ({n})", run.name()),
        }
    };
    runs.iter().map(one).collect()
}

/// What must not be overlooked in one of them.
fn warnings<'a>(
    names: &'a [String],
    runs: &'a [Run],
    pages: &'a [Page],
) -> impl Iterator<Item = Block> + 'a {
    names
        .iter()
        .zip(runs)
        .zip(pages)
        .flat_map(|((name, run), page)| {
            let said = page.blocks().filter_map(move |b| match b {
                Block::Warning(text) => Some(Block::Warning(format!("{name}: {text}"))),
                _ => None,
            });
            let running = (run.state() == State::Running)
                .then(|| Block::Warning(format!("{name}: this run still goes on.")));
            said.chain(running)
        })
}

fn header(first: &str, names: &[String]) -> Vec<String> {
    std::iter::once(first.to_owned())
        .chain(names.iter().cloned())
        .collect()
}

fn figures(names: &[String], pages: &[Page]) -> Block {
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    for (n, page) in pages.iter().enumerate() {
        let all = page.blocks().filter_map(|b| match b {
            Block::Figures(figures) => Some(figures),
            _ => None,
        });
        for figure in all.flatten() {
            let label = match figure.unit.as_str() {
                "" => figure.label.clone(),
                unit => format!("{} ({unit})", figure.label),
            };
            let place = rows
                .iter()
                .position(|(l, _)| *l == label)
                .unwrap_or_else(|| {
                    rows.push((label, vec!["-".to_owned(); pages.len()]));
                    rows.len() - 1
                });
            // What a figure is of is in its note: another policy in another run.
            rows[place].1[n] = match figure.note.as_str() {
                "" => figure.value.clone(),
                note => format!("{} ({note})", figure.value),
            };
        }
    }
    let row = |(label, values): (String, Vec<String>)| {
        std::iter::once(label)
            .chain(values)
            .map(Cell::from)
            .collect()
    };
    Block::Table(Table {
        caption: String::new(),
        header: header("figure", names),
        rows: rows.into_iter().map(row).collect(),
    })
}

/// Keys with dots and their values.
fn flat(prefix: &str, table: &toml::Table, into: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = match prefix {
            "" => key.clone(),
            _ => format!("{prefix}.{key}"),
        };
        match value {
            toml::Value::Table(inner) => flat(&key, inner, into),
            other => {
                into.insert(key, plain(other));
            }
        }
    }
}

fn settings(names: &[String], runs: &[Run]) -> Block {
    let all: Vec<BTreeMap<String, String>> = runs
        .iter()
        .map(|run| {
            let mut keys = BTreeMap::new();
            flat("", &run.settings, &mut keys);
            keys
        })
        .collect();
    let mut keys: Vec<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    keys.sort();
    keys.dedup();
    let value = |keys: &BTreeMap<String, String>, key: &String| {
        keys.get(key).cloned().unwrap_or_else(|| "-".to_owned())
    };
    let rows: Vec<Vec<Cell>> = keys
        .into_iter()
        .filter(|key| *key != "name" && all.iter().any(|one| one.get(*key) != all[0].get(*key)))
        .map(|key| {
            std::iter::once(key.clone())
                .chain(all.iter().map(|one| value(one, key)))
                .map(Cell::from)
                .collect()
        })
        .collect();
    match rows.is_empty() {
        true => Block::Text("None: the configs are equal but for the name.".into()),
        false => Block::Table(Table {
            caption: String::new(),
            header: header("key", names),
            rows,
        }),
    }
}

fn charts(names: &[String], pages: &[Page]) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut add = |title: &str, block| match sections.iter_mut().find(|s| s.title == title) {
        Some(section) => section.blocks.push(block),
        None => sections.push(Section {
            title: title.to_owned(),
            blocks: vec![block],
        }),
    };
    let mut done: Vec<&str> = Vec::new();
    for section in pages.iter().flat_map(|p| &p.sections) {
        for block in &section.blocks {
            match block {
                Block::Chart(chart) if !done.contains(&chart.id.as_str()) => {
                    done.push(&chart.id);
                    add(&section.title, Block::Chart(merged(chart, names, pages)));
                }
                Block::Charts(choice) if !done.contains(&choice.id.as_str()) => {
                    done.push(&choice.id);
                    add(
                        &section.title,
                        Block::Charts(gathered(choice, names, pages)),
                    );
                }
                _ => {}
            }
        }
    }
    sections
}

/// The charts of all pages that have the id of `chart`, in one.
fn merged(chart: &Chart, names: &[String], pages: &[Page]) -> Chart {
    let all = pages.iter().zip(names).flat_map(|(page, name)| {
        page.charts()
            .filter(|c| c.id == chart.id)
            .map(move |c| (name, &c.plot))
    });
    let called = |run: &String, what: &str| format!("{run}: {what}");
    let mut plot = chart.plot.clone();
    match &mut plot {
        Plot::Lines { series, .. } => series.clear(),
        Plot::Points {
            families, front, ..
        } => {
            families.clear();
            front.clear();
        }
        Plot::Bars { groups, series, .. } => {
            groups.clear();
            series.clear();
        }
        Plot::Heatmap(_) => {}
    }
    for (run, other) in all {
        match (&mut plot, other) {
            (Plot::Lines { series, .. }, Plot::Lines { series: others, .. }) => {
                series.extend(others.iter().map(|s| Series {
                    name: called(run, &s.name),
                    ..s.clone()
                }))
            }
            (
                Plot::Points {
                    families, front, ..
                },
                Plot::Points {
                    families: others, ..
                },
            ) => {
                families.extend(others.iter().map(|f| Family {
                    name: called(run, &f.name),
                    ..f.clone()
                }));
                *front = crate::page::front(families.iter().flat_map(|f| f.points.clone()));
            }
            (
                Plot::Bars { groups, series, .. },
                Plot::Bars {
                    groups: theirs,
                    series: others,
                    ..
                },
            ) => {
                groups.extend(
                    theirs
                        .iter()
                        .filter(|g| !groups.contains(g))
                        .cloned()
                        .collect::<Vec<_>>(),
                );
                series.extend(others.iter().map(|s| {
                    let of = |group: &String| {
                        theirs
                            .iter()
                            .position(|g| g == group)
                            .and_then(|n| s.values.get(n).copied().flatten())
                    };
                    Bars {
                        name: called(run, &s.name),
                        values: groups.iter().map(of).collect(),
                    }
                }));
                for bars in series {
                    bars.values.resize(groups.len(), None);
                }
            }
            _ => {}
        }
    }
    Chart {
        plot,
        ..chart.clone()
    }
}

/// The charts to choose from of all pages, each named after its run.
fn gathered(choice: &Choice, names: &[String], pages: &[Page]) -> Choice {
    let mut charts = Vec::new();
    for (n, (page, run)) in pages.iter().zip(names).enumerate() {
        for block in page.blocks() {
            let Block::Charts(other) = block else {
                continue;
            };
            if other.id == choice.id {
                charts.extend(other.charts.iter().map(|(name, chart)| {
                    let chart = Chart {
                        id: format!("run{n}-{}", chart.id),
                        ..chart.clone()
                    };
                    (format!("{run}: {name}"), chart)
                }));
            }
        }
    }
    Choice {
        charts,
        ..choice.clone()
    }
}

/// The samples of all runs behind one slider.
fn samples(names: &[String], runs: &[Run]) -> Option<Section> {
    let all = runs.iter().zip(names).flat_map(|(run, name)| {
        run.samples.iter().map(move |p| Picture {
            name: format!("{name}: {}", p.name),
            png: p.png.clone(),
        })
    });
    behind_a_slider(all, |_| "Samples")
}
