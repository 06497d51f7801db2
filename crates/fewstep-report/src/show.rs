//! What there is to see in a run.

mod dit;
mod harmonica;
mod iir;

use serde_json::Value;

use crate::page::{Block, Code, Figure, Page, Picture, Pictures, Section, Table};
use crate::run::{Run, State};

impl Run {
    /// The report on this run as far as it has come.
    pub fn page(&self) -> Page {
        let method = self.method();
        let mut sections = vec![self.overview(&method)];
        sections.extend(match method.as_str() {
            "dit" => dit::sections(self),
            "harmonica" => harmonica::sections(self),
            _ => iir::sections(self),
        });
        sections.extend(self.pictures());
        sections.push(self.reproduce());
        sections.retain(|s| !s.blocks.is_empty());
        Page {
            title: self.name.clone(),
            subtitle: self.subtitle(),
            sections,
        }
    }

    /// What it is and how far it has come, in a line.
    pub(crate) fn subtitle(&self) -> String {
        let data = self.dataset().map_or(String::new(), |d| format!(" on {d}"));
        format!(
            "{}{data}, {}{}",
            called(&self.method()),
            self.state.word(),
            self.progress()
        )
    }

    /// `iir-snn` where the config does not say: it is the default.
    pub(crate) fn method(&self) -> String {
        let method = self.setting("method").and_then(toml::Value::as_str);
        method.unwrap_or("iir-snn").to_owned()
    }

    pub(crate) fn dataset(&self) -> Option<&str> {
        let name = || self.setting("data.name").and_then(toml::Value::as_str);
        self.summary("dataset").as_str().or_else(name)
    }

    /// Seconds from the start to the last thing that was logged, or to the end.
    pub(crate) fn seconds(&self) -> Option<f64> {
        let logged = || self.events.last().and_then(|e| e["time_s"].as_f64());
        self.summary("seconds").as_f64().or_else(logged)
    }

    /// When it was started, in seconds since 1970.
    pub(crate) fn started(&self) -> Option<f64> {
        self.events_of("start").find_map(|e| e["unix_s"].as_f64())
    }

    fn progress(&self) -> String {
        if self.state == State::Finished {
            return String::new();
        }
        match self.events_of("phase_started").last() {
            Some(e) if e["phase"].is_string() => {
                let phase = text(&e["phase"]);
                let epoch = self
                    .events_of("epoch")
                    .filter(|e| e["phase"] == phase.as_str())
                    .last();
                let epoch = epoch.map_or(0, |e| e["epoch"].as_u64().unwrap_or(0));
                format!(": {phase}, epoch {epoch} of {}", text(&e["epochs"]))
            }
            _ => String::new(),
        }
    }

    fn overview(&self, method: &str) -> Section {
        let mut figures = vec![Figure::new("method", called(method), "")];
        let mut add = |label: &str, value: Option<String>, unit: &str| {
            if let Some(value) = value {
                figures.push(Figure::new(label, value, unit));
            }
        };
        let number = |key: &str| self.summary(key).as_f64().map(|n| n.to_string());
        let setting = |key: &str| self.setting(key).map(plain);
        add("data", self.dataset().map(str::to_owned), "");
        add(
            "device",
            self.summary("device")
                .as_str()
                .map(str::to_owned)
                .or_else(|| setting("device")),
            "",
        );
        add(
            "threads",
            number("threads").or_else(|| setting("threads")),
            "",
        );
        add("ranks", number("ranks").filter(|n| n != "1"), "");
        add("seed", number("seed").or_else(|| setting("seed")), "");
        add("time", self.seconds().map(duration), "");
        let mut blocks = vec![Block::Figures(figures)];
        if self.summary("synthetic_data") == &Value::Bool(true) {
            blocks.push(Block::Warning(
                "noise took the place of the data, which was not there. Accuracies mean nothing."
                    .into(),
            ));
        }
        if let Some(n) = self.summary("limited_to_batches").as_u64() {
            blocks.push(Block::Warning(format!("each epoch was cut to {n} batches (limits.batches): a trial of the pipeline, no result.")));
        }
        if self.state == State::Stopped {
            blocks.push(Block::Warning(format!("this run is not finished and nobody works on it. `cargo xtask run CONFIG --resume` goes on with {}.", self.name)));
        }
        let warnings = self
            .events_of("warning")
            .map(|e| format!("stage {}: {}", text(&e["phase"]), text(&e["message"])));
        blocks.extend(warnings.map(Block::Warning));
        Section {
            title: "What was run".into(),
            blocks,
        }
    }

    fn pictures(&self) -> Option<Section> {
        let title = |pictures| match pictures {
            1 => "Samples",
            _ => "Samples from the same noise",
        };
        behind_a_slider(self.samples.iter().cloned(), title)
    }

    fn reproduce(&self) -> Section {
        let start = self.events_of("start").next();
        let word = start.and_then(|e| e["command"].as_array()?.get(1)?.as_str());
        // A demo is a run of a config that the program carries.
        let word = word.filter(|w| *w == "compare").unwrap_or("run");
        let file = format!("{}.toml", self.name);
        // Other ranks give other sums.
        let launch = match self.summary("ranks").as_u64() {
            Some(n) if n > 1 => format!("launch --nproc {n} "),
            _ => String::new(),
        };
        let mut blocks = vec![Block::Code(Code {
            label: "The command that reproduces it, with the config below".into(),
            text: format!("cargo xtask {launch}{word} {}", quoted(&file)),
            ..Code::default()
        })];
        if let Some(command) = start.and_then(|e| e["command"].as_array()) {
            let words: Vec<_> = command.iter().map(|w| quoted(&text(w))).collect();
            blocks.push(Block::Code(Code {
                label: "As it was started".into(),
                text: words.join(" "),
                ..Code::default()
            }));
        }
        blocks.push(Block::Code(Code {
            label: "Config, with every default".into(),
            text: self.config.clone(),
            file,
            folded: true,
        }));
        let mut rows = Vec::new();
        let mut row = |what: &str, value: String| {
            if !value.is_empty() && value != "-" {
                rows.push(vec![what.into(), value.into()]);
            }
        };
        let empty = Value::Null;
        let machine = start.map_or(&empty, |e| &e["machine"]);
        let versions = match self.summary("versions") {
            Value::Null => start.map_or(&empty, |e| &e["versions"]),
            found => found,
        };
        row("started", self.started().map(date).unwrap_or_default());
        row("processor", text(&machine["cpu"]));
        row("logical cores", text(&machine["cores"]));
        row(
            "memory",
            machine["memory_gib"]
                .as_f64()
                .map(|g| format!("{g:.1} GiB"))
                .unwrap_or_default(),
        );
        row("system", text(&machine["system"]));
        row(
            "GPUs",
            list(&machine["gpus"])
                .iter()
                .map(text)
                .collect::<Vec<_>>()
                .join(", "),
        );
        row("fewstep", text(&versions["fewstep"]));
        row("commit", text(&versions["commit"]));
        row("libtorch", text(&versions["libtorch"]));
        blocks.push(Block::Table(Table {
            caption: "Machine and versions".into(),
            header: vec!["what".into(), "value".into()],
            rows,
        }));
        Section {
            title: "Reproduce".into(),
            blocks,
        }
    }
}

/// The section of samples: those of the size of the first one, under a title for so many. Nothing without any.
pub(crate) fn behind_a_slider(
    pictures: impl IntoIterator<Item = Picture>,
    title: impl Fn(usize) -> &'static str,
) -> Option<Section> {
    let mut pictures: Vec<_> = pictures.into_iter().collect();
    let size = pictures.first()?.size();
    pictures.retain(|p| p.size() == size);
    let pictures = Pictures {
        id: "samples".into(),
        title: title(pictures.len()).into(),
        pictures,
    };
    Some(Section {
        title: "Samples".into(),
        blocks: vec![Block::Pictures(pictures)],
    })
}

/// A method as people call it.
fn called(method: &str) -> &str {
    match method {
        "iir-snn" => "IIR-SNN",
        "dit" => "Diffusion transformer",
        "harmonica" => "HarmoniCa",
        other => other,
    }
}

/// A JSON value as text without quotes; `-` for none.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// A TOML value on one line.
pub(crate) fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

/// A word of a command line.
fn quoted(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+%@".contains(c);
    match word.chars().all(safe) && !word.is_empty() {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// `84 s`, `6.5 min`, `3 h 20 min`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120. => format!("{s:.0} s"),
        s if s < 3600. => format!("{:.1} min", s / 60.),
        s => format!(
            "{:.0} h {:.0} min",
            (s / 3600.).floor(),
            (s % 3600. / 60.).floor()
        ),
    }
}

/// `2026-11-26 16:40 UTC` (proleptic Gregorian calendar; days from civil, H. Hinnant).
pub(crate) fn date(unix_s: f64) -> String {
    let seconds = unix_s.max(0.) as u64;
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year}-{month:02}-{day:02} {:02}:{:02} UTC",
        rest / 3600,
        rest % 3600 / 60
    )
}

/// A large number with a prefix: `15.1 M`.
pub(crate) fn large(n: f64) -> String {
    match n {
        n if n >= 1e12 => format!("{:.2} T", n / 1e12),
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e4 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// `98.21`, or `-`.
pub(crate) fn percent(share: &Value) -> String {
    share
        .as_f64()
        .map_or("-".into(), |s| format!("{:.2}", 100. * s))
}

/// With `digits` behind the point, or `-`.
pub(crate) fn fixed(value: &Value, digits: usize) -> String {
    value
        .as_f64()
        .map_or("-".into(), |v| format!("{v:.digits$}"))
}

/// Three digits and an exponent, or `-`.
pub(crate) fn scientific(value: &Value) -> String {
    match value.as_f64() {
        Some(0.) => "0".into(),
        Some(v) => format!("{v:.2e}"),
        None => "-".into(),
    }
}

/// The elements of a JSON array.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(date(0.), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_399.), "2000-02-28 23:59 UTC");
        assert_eq!(date(951_782_400.), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_795_711_332.6), "2026-11-26 16:42 UTC");
    }

    #[test]
    fn words_of_a_command_are_quoted_where_a_shell_would_part_them() {
        assert_eq!(quoted("--set"), "--set");
        assert_eq!(quoted("name=a b"), "'name=a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn times_and_large_numbers_are_read_at_a_glance() {
        assert_eq!(
            [59.6, 390., 12_000.].map(duration),
            ["60 s", "6.5 min", "3 h 20 min"]
        );
        assert_eq!(
            [226_192., 15_055_872., 118.6e9].map(large),
            ["226.2 k", "15.06 M", "118.60 G"]
        );
    }
}
