//! The table at the end of a run, for the terminal and for `docs/results/`.

use std::io::IsTerminal;

use comfy_table::{CellAlignment, Table, presets};

/// One line of the table. What was not measured is `None` and shown as `-`, as is NaN.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReportRow {
    /// `ann`, `t5`, `direct-carried` …
    pub stage: String,
    /// Timesteps T; `None` for the ANN.
    pub timesteps: Option<u32>,
    /// Share of the validation images that is right, 0 to 1.
    pub val_accuracy: Option<f64>,
    /// Share of the test images that is right, 0 to 1.
    pub test_accuracy: Option<f64>,
    /// Spikes per neuron and image, summed over all timesteps; mean over all spiking neurons.
    pub spike_rate_mean: Option<f64>,
    /// Energy of the ANN over the energy of this network, both at 45 nm.
    pub energy_ratio: Option<f64>,
    /// Measured wall-clock per image in milliseconds.
    pub ms_per_image: Option<f64>,
}

/// How the table is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Lines of box-drawing characters.
    Boxes,
    /// ASCII only, for files and pipes.
    Plain,
}

impl Style {
    /// Boxes if standard output is a terminal.
    pub fn detect() -> Self {
        if std::io::stdout().is_terminal() {
            Self::Boxes
        } else {
            Self::Plain
        }
    }
}

const HEADER: [&str; 7] = [
    "stage",
    "T",
    "val acc %",
    "test acc %",
    "spike rate",
    "energy ratio",
    "ms/image",
];

/// The table as text, without a line break at its end.
pub fn table(rows: &[ReportRow], style: Style) -> String {
    text(&HEADER, &rows.iter().map(cells).collect::<Vec<_>>(), style)
}

/// The table as Markdown, without a line break at its end.
pub fn to_markdown(rows: &[ReportRow]) -> String {
    markdown(&HEADER, &rows.iter().map(cells).collect::<Vec<_>>())
}

/// Any table as text: the first column is words, the others are numbers.
pub fn text<const N: usize>(header: &[&str; N], rows: &[[String; N]], style: Style) -> String {
    let mut table = Table::new();
    table
        .load_style(match style {
            Style::Boxes => presets::UTF8_FULL_CONDENSED,
            Style::Plain => presets::ASCII_FULL_CONDENSED,
        })
        .set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.trim_fmt()
}

/// Any table as Markdown.
pub fn markdown<const N: usize>(header: &[&str; N], rows: &[[String; N]]) -> String {
    let cell = |text: &String| text.replace('|', "\\|");
    let mut lines = vec![
        format!("| {} |", header.join(" | ")),
        format!("| --- |{}", " ---: |".repeat(N - 1)),
    ];
    for row in rows {
        lines.push(format!("| {} |", row.each_ref().map(cell).join(" | ")));
    }
    lines.join("\n")
}

/// Any table as CSV (RFC 4180, lines end with a line feed).
pub fn csv<const N: usize>(header: &[&str; N], rows: &[[String; N]]) -> String {
    let cell = |text: &str| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let mut lines = vec![header.each_ref().map(|text| cell(text)).join(",")];
    lines.extend(
        rows.iter()
            .map(|row| row.each_ref().map(|text| cell(text)).join(",")),
    );
    lines.join("\n") + "\n"
}

fn cells(row: &ReportRow) -> [String; 7] {
    let percent = |share: f64| format!("{:.2}", 100.0 * share);
    [
        row.stage.clone(),
        row.timesteps
            .map_or_else(|| "-".to_owned(), |timesteps| timesteps.to_string()),
        shown(row.val_accuracy, percent),
        shown(row.test_accuracy, percent),
        shown(row.spike_rate_mean, |rate| format!("{rate:.4}")),
        shown(row.energy_ratio, |ratio| format!("{ratio:.2}x")),
        shown(row.ms_per_image, |ms| format!("{ms:.3}")),
    ]
}

fn shown(value: Option<f64>, format: impl Fn(f64) -> String) -> String {
    value
        .filter(|value| value.is_finite())
        .map_or_else(|| "-".to_owned(), format)
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn rows() -> Vec<ReportRow> {
        let ann = ReportRow {
            stage: "ann".to_owned(),
            val_accuracy: Some(0.9861),
            test_accuracy: Some(0.9833),
            energy_ratio: Some(1.0),
            ms_per_image: Some(0.0421),
            ..ReportRow::default()
        };
        let snn = ReportRow {
            stage: "snn".to_owned(),
            timesteps: Some(5),
            val_accuracy: Some(0.98),
            test_accuracy: Some(1.0),
            spike_rate_mean: Some(0.123_456),
            energy_ratio: Some(12.345),
            ms_per_image: Some(f64::NAN),
        };
        let direct = ReportRow {
            stage: "direct | scratch".to_owned(),
            timesteps: Some(1),
            ..ReportRow::default()
        };
        vec![ann, snn, direct]
    }

    #[test]
    fn the_table_lines_up_in_boxes_and_in_ascii() {
        assert_snapshot!(table(&rows(), Style::Boxes), @r"
┌──────────────────┬───┬───────────┬────────────┬────────────┬──────────────┬──────────┐
│ stage            ┆ T ┆ val acc % ┆ test acc % ┆ spike rate ┆ energy ratio ┆ ms/image │
╞══════════════════╪═══╪═══════════╪════════════╪════════════╪══════════════╪══════════╡
│ ann              ┆ - ┆     98.61 ┆      98.33 ┆          - ┆        1.00x ┆    0.042 │
│ snn              ┆ 5 ┆     98.00 ┆     100.00 ┆     0.1235 ┆       12.35x ┆        - │
│ direct | scratch ┆ 1 ┆         - ┆          - ┆          - ┆            - ┆        - │
└──────────────────┴───┴───────────┴────────────┴────────────┴──────────────┴──────────┘
");
        assert_snapshot!(table(&rows(), Style::Plain), @r"
+------------------+---+-----------+------------+------------+--------------+----------+
| stage            | T | val acc % | test acc % | spike rate | energy ratio | ms/image |
+======================================================================================+
| ann              | - |     98.61 |      98.33 |          - |        1.00x |    0.042 |
| snn              | 5 |     98.00 |     100.00 |     0.1235 |       12.35x |        - |
| direct | scratch | 1 |         - |          - |          - |            - |        - |
+------------------+---+-----------+------------+------------+--------------+----------+
");
        assert!(table(&rows(), Style::Plain).is_ascii());
    }

    #[test]
    fn csv_quotes_what_would_end_a_cell() {
        let row = ["a, b".to_owned(), "say \"x\"".to_owned()];
        assert_eq!(
            csv(&["n", "m"], &[row]),
            "n,m\n\"a, b\",\"say \"\"x\"\"\"\n"
        );
    }

    #[test]
    fn markdown_has_one_line_a_row_and_keeps_bars_inside_cells() {
        assert_snapshot!(to_markdown(&rows()), @r"
| stage | T | val acc % | test acc % | spike rate | energy ratio | ms/image |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| ann | - | 98.61 | 98.33 | - | 1.00x | 0.042 |
| snn | 5 | 98.00 | 100.00 | 0.1235 | 12.35x | - |
| direct \| scratch | 1 | - | - | - | - | - |
");
    }
}
