//! What a report is made of, as plain data. [`Page::to_html`] draws it.

use serde::Serialize;

/// Points of a curve that are kept; longer ones are averaged.
const MOST_POINTS: usize = 600;

/// A report.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Page {
    /// The heading and the title of the window.
    pub title: String,
    /// A line below it.
    pub subtitle: String,
    /// Its parts, top to bottom.
    pub sections: Vec<Section>,
}

/// A part with a heading.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// What is in it.
    pub blocks: Vec<Block>,
}

/// One thing in a section.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// A paragraph that must not be overlooked.
    Warning(String),
    /// Numbers that are read first.
    Figures(Vec<Figure>),
    /// A chart.
    Chart(Chart),
    /// Charts of one kind, of which one is shown at a time.
    Charts(Choice),
    /// Rows and columns.
    Table(Table),
    /// Pictures of the same size, two of them beside each other behind a slider.
    Pictures(Pictures),
    /// Text to copy: a command, a config.
    Code(Code),
}

/// A number with its name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figure {
    /// What it is of.
    pub label: String,
    /// The number, as it is to be read.
    pub value: String,
    /// Its unit, empty for none.
    pub unit: String,
    /// What it is to be compared with, empty for nothing.
    pub note: String,
}

impl Figure {
    /// Without a note.
    pub fn new(label: &str, value: impl Into<String>, unit: &str) -> Self {
        Self {
            label: label.to_owned(),
            value: value.into(),
            unit: unit.to_owned(),
            note: String::new(),
        }
    }

    /// With this note.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }
}

/// A chart. What the page holds is this value as JSON, so that a program can read it too.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chart {
    /// Unique on a page: letters, digits and `-`.
    pub id: String,
    /// Above it.
    pub title: String,
    /// For those who cannot see it, and for everybody below it.
    pub description: String,
    /// What is drawn.
    pub plot: Plot,
}

/// Charts to choose from.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Unique on a page.
    pub id: String,
    /// What is chosen: "Plan".
    pub label: String,
    /// The names and the charts, at least one.
    pub charts: Vec<(String, Chart)>,
}

/// An axis of numbers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Axis {
    /// With its unit: "loss", "energy (µJ)".
    pub label: String,
    /// Logarithmic; what is not above zero is left out.
    pub log: bool,
}

impl Axis {
    /// Linear.
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            log: false,
        }
    }

    /// Logarithmic.
    pub fn log(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            log: true,
        }
    }
}

/// What is drawn. NaN and infinities are left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Plot {
    /// Curves.
    Lines {
        /// To the right.
        x: Axis,
        /// Upwards.
        y: Axis,
        /// The curves.
        series: Vec<Series>,
    },
    /// Points with names; each family has a colour.
    Points {
        /// To the right.
        x: Axis,
        /// Upwards.
        y: Axis,
        /// The families.
        families: Vec<Family>,
        /// Joined by a dashed line: what nothing beats in both ways (see [`front`]).
        front: Vec<(f64, f64)>,
    },
    /// Bars in groups, from zero; or dots, where only differences matter or the axis is logarithmic and has no zero.
    Bars {
        /// Dots.
        dots: bool,
        /// What the groups are: "layer".
        x: String,
        /// Upwards.
        y: Axis,
        /// A group each.
        groups: Vec<String>,
        /// A colour each, with a value for each group.
        series: Vec<Bars>,
    },
    /// A table of cells.
    Heatmap(Heatmap),
}

/// A curve.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// (x, y) from left to right.
    pub points: Vec<(f64, f64)>,
    /// Drawn as a dashed line: a reference.
    pub dashed: bool,
}

impl Series {
    /// Keeps the finite points; a curve of more than 600 points becomes the means of as many pieces.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let mut points: Vec<_> = points
            .into_iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .collect();
        if points.len() > MOST_POINTS {
            let piece = points.len().div_ceil(MOST_POINTS);
            let mean = |piece: &[(f64, f64)]| {
                let n = piece.len() as f64;
                let sum = piece.iter().fold((0., 0.), |s, p| (s.0 + p.0, s.1 + p.1));
                (sum.0 / n, sum.1 / n)
            };
            points = points.chunks(piece).map(mean).collect();
        }
        Self {
            name: name.into(),
            points,
            dashed: false,
        }
    }

    /// As a reference.
    #[must_use]
    pub fn dashed(mut self) -> Self {
        self.dashed = true;
        self
    }
}

/// Of `points`, those that no other one is at most as large as in both directions, from left to right: the Pareto front.
pub fn front(points: impl IntoIterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let mut all: Vec<_> = points.into_iter().collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut least = f64::INFINITY;
    all.retain(|&(_, y)| {
        let better = y < least;
        least = least.min(y);
        better
    });
    all
}

/// Points of one colour.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Family {
    /// In the legend.
    pub name: String,
    /// What is told of each point.
    pub labels: Vec<String>,
    /// (x, y) of each.
    pub points: Vec<(f64, f64)>,
}

/// A value for each group; `None` leaves a gap.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bars {
    /// In the legend.
    pub name: String,
    /// One for each group.
    pub values: Vec<Option<f64>>,
}

/// Cells of probabilities, or of decisions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Heatmap {
    /// What the columns are: "executed step".
    pub x: String,
    /// Their names.
    pub columns: Vec<String>,
    /// What the rows are: "sub-module".
    pub y: String,
    /// Their names, top to bottom.
    pub rows: Vec<String>,
    /// What a cell says.
    pub cells: Cells,
}

/// A value for each row and column.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub enum Cells {
    /// Numbers from 0 to 1 with the threshold above which a cell is computed; rows of columns.
    Probabilities {
        /// Rows of columns.
        values: Vec<Vec<f64>>,
        /// Above it a cell is computed.
        threshold: f64,
    },
    /// `C` computed, `.` reused, `1` to `3` a forecast of that order: a string for each row, a letter for each column.
    Decisions {
        /// Strings.
        rows: Vec<String>,
    },
}

/// Rows and columns of text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// What it is of, above it.
    pub caption: String,
    /// Of the columns.
    pub header: Vec<String>,
    /// As many cells as the header has.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell of a table.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cell {
    /// Its text; what looks like a number stands to the right.
    pub text: String,
    /// Where it leads.
    pub link: Option<String>,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, link: None }
    }
}

/// Pictures of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct Pictures {
    /// Unique on a page.
    pub id: String,
    /// Above them.
    pub title: String,
    /// At least one.
    pub pictures: Vec<Picture>,
}

/// A PNG.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// What it shows.
    pub name: String,
    /// The file's bytes.
    pub png: Vec<u8>,
}

impl Picture {
    /// Width and height in pixels; `None` where the bytes are no PNG.
    pub fn size(&self) -> Option<(u32, u32)> {
        let number = |at: usize| {
            Some(u32::from_be_bytes(
                self.png.get(at..at + 4)?.try_into().ok()?,
            ))
        };
        let magic = self.png.starts_with(b"\x89PNG\r\n\x1a\n");
        magic.then_some((number(16)?, number(20)?))
    }
}

/// Text to copy.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Code {
    /// What it is.
    pub label: String,
    /// The text.
    pub text: String,
    /// The name of the file that it is offered as, empty for none.
    pub file: String,
    /// Hidden until it is asked for.
    pub folded: bool,
}

impl Page {
    /// What is in it, top to bottom.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.sections.iter().flat_map(|s| &s.blocks)
    }

    /// All charts, those to choose from included.
    pub fn charts(&self) -> impl Iterator<Item = &Chart> {
        self.blocks().flat_map(|block| match block {
            Block::Chart(chart) => vec![chart],
            Block::Charts(choice) => choice.charts.iter().map(|(_, chart)| chart).collect(),
            _ => vec![],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_becomes_means_and_keeps_no_nan() {
        let line = Series::new("loss", (0..6000).map(|i| (f64::from(i), 2. * f64::from(i))));
        assert_eq!(line.points.len(), 600);
        assert_eq!(line.points[0], (4.5, 9.));
        let gap = Series::new("loss", [(0., 1.), (1., f64::NAN), (2., f64::INFINITY)]);
        assert_eq!(gap.points, [(0., 1.)]);
    }

    #[test]
    fn the_front_is_what_nothing_beats_in_both_ways() {
        let points = [
            (3., 1.),
            (1., 5.),
            (2., 4.),
            (2., 6.),
            (4., 1.),
            (2.5, f64::NAN),
        ];
        assert_eq!(front(points), [(1., 5.), (2., 4.), (3., 1.)]);
    }

    #[test]
    fn the_size_of_a_picture_is_read_from_its_head_and_junk_has_none() {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
        png.extend([0, 0, 1, 0, 0, 0, 0, 8]);
        let picture = |png: &[u8]| Picture {
            name: "a".into(),
            png: png.to_vec(),
        };
        assert_eq!(picture(&png).size(), Some((256, 8)));
        assert_eq!(picture(&png[..20]).size(), None);
        assert_eq!(picture(b"GIF89a").size(), None);
    }
}
