//! A page as one HTML file: style, script, charting library, data and pictures are all in it, and it may load nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::{Value, json};

use crate::page::{Block, Cell, Chart, Choice, Code, Figure, Page, Pictures, Section, Table};

const STYLE: &str = include_str!("../assets/report.css");
const SCRIPT: &str = include_str!("../assets/report.js");
/// Apache ECharts 6.1.0 (Apache-2.0), the parts that assets/charts.entry.js names.
const CHARTS: &str = include_str!("../assets/echarts.min.js");

impl Page {
    /// The page as a file that needs nothing else.
    pub fn to_html(&self) -> String {
        self.document(None)
    }

    /// The page, which listens at `events` for [`Page::update`].
    pub(crate) fn to_live_html(&self, events: &str) -> String {
        self.document(Some(events))
    }

    fn document(&self, events: Option<&str>) -> String {
        // Nothing is loaded from anywhere, whatever a run's texts hold.
        let connect = if events.is_some() { "'self'" } else { "'none'" };
        let policy = format!(
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'"
        );
        let page = html! {
            (DOCTYPE)
            html lang="en" data-events=[events] data-structure=[events.map(|_| self.structure())] {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="generator" content={ "fewstep " (env!("CARGO_PKG_VERSION")) };
                    title { (self.title) " · Fewstep" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a.skip href="#main" { "Skip to the figures" }
                    header {
                        div {
                            h1 { (self.title) }
                            p #subtitle { (self.subtitle) }
                        }
                        div.tools {
                            @if events.is_some() { span #live role="status" { "live" } }
                            button #theme type="button" { "Dark or light" }
                        }
                    }
                    main #main tabindex="-1" { (self.main()) }
                    noscript { p.warning { "The charts need JavaScript; figures and tables do not." } }
                    (data("data", &self.data()))
                    @if self.charts().next().is_some() {
                        script { (PreEscaped(CHARTS)) }
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }

    fn main(&self) -> Markup {
        html! {
            @for (s, section) in self.sections.iter().enumerate() {
                section aria-labelledby=(format!("s{s}")) {
                    h2 id=(format!("s{s}")) { (section.title) }
                    @for (b, block) in section.blocks.iter().enumerate() {
                        div.block id=(format!("s{s}b{b}")) { (draw(block, &format!("s{s}b{b}"))) }
                    }
                }
            }
        }
    }

    fn data(&self) -> Value {
        self.charts()
            .map(|c| (c.id.clone(), json!(c)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// What a page that is open must change: if `structure` is another one than it has, everything; else the blocks' HTML and the charts' data.
    pub(crate) fn update(&self) -> Value {
        let mut blocks = serde_json::Map::new();
        for (s, section) in self.sections.iter().enumerate() {
            for (b, block) in section.blocks.iter().enumerate() {
                // Charts keep their place and get data; pictures and code would lose what the reader has chosen.
                if matches!(
                    block,
                    Block::Figures(_) | Block::Table(_) | Block::Text(_) | Block::Warning(_)
                ) {
                    let id = format!("s{s}b{b}");
                    blocks.insert(id.clone(), draw(block, &id).into_string().into());
                }
            }
        }
        json!({
            "structure": self.structure(),
            "subtitle": self.subtitle,
            "blocks": blocks,
            "charts": self.data(),
        })
    }

    /// Which sections, blocks and charts there are.
    fn structure(&self) -> String {
        let block = |b: &Block| match b {
            Block::Chart(c) => format!("c:{}", c.id),
            Block::Charts(c) => {
                let ids: Vec<_> = c
                    .charts
                    .iter()
                    .map(|(_, chart)| chart.id.as_str())
                    .collect();
                format!("h:{}", ids.join(","))
            }
            // Their content is their structure.
            Block::Pictures(p) => {
                let all: Vec<_> = p
                    .pictures
                    .iter()
                    .map(|p| format!("{}{}", p.name, crc(&p.png)))
                    .collect();
                format!("p:{}", all.join(","))
            }
            Block::Code(c) => format!("o:{}", crc(c.text.as_bytes())),
            Block::Table(_) => "t".into(),
            Block::Figures(_) => "f".into(),
            Block::Text(_) => "x".into(),
            Block::Warning(_) => "w".into(),
        };
        let section = |s: &Section| {
            format!(
                "{}[{}]",
                s.title,
                s.blocks.iter().map(block).collect::<Vec<_>>().join(" ")
            )
        };
        self.sections
            .iter()
            .map(section)
            .collect::<Vec<_>>()
            .join(" ")
    }
}

fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// JSON inside a page; `<` could end the element.
fn data(id: &str, value: &Value) -> Markup {
    let text = value.to_string().replace('<', "\\u003c");
    html! { script id=(id) type="application/json" { (PreEscaped(text)) } }
}

fn draw(block: &Block, id: &str) -> Markup {
    match block {
        Block::Text(text) => html! { p { (text) } },
        Block::Warning(text) => html! { p.warning { strong { "Note: " } (text) } },
        Block::Figures(figures) => html! { dl.figures { @for f in figures { (figure(f)) } } },
        Block::Chart(c) => chart(c),
        Block::Charts(c) => choice(c),
        Block::Table(t) => table(t),
        Block::Pictures(p) => pictures(p),
        Block::Code(c) => code(c, id),
    }
}

fn figure(f: &Figure) -> Markup {
    html! {
        div.figure {
            dt { (f.label) }
            dd {
                span.value { (f.value) }
                @if !f.unit.is_empty() { " " span.unit { (f.unit) } }
                @if !f.note.is_empty() { span.note { (f.note) } }
            }
        }
    }
}

fn chart(c: &Chart) -> Markup {
    html! {
        figure.chart data-chart=(c.id) {
            figcaption { h3 { (c.title) } p { (c.description) } }
            div.plot role="img" aria-label=(format!("{}. {}", c.title, c.description)) {}
            details.numbers { summary { "Numbers" } }
        }
    }
}

fn choice(c: &Choice) -> Markup {
    html! {
        div.choice id=(c.id) {
            @if c.charts.len() > 1 {
                label { (c.label) " "
                    select { @for (name, chart) in &c.charts { option value=(chart.id) { (name) } } }
                }
            }
            @for (n, (_, one)) in c.charts.iter().enumerate() {
                div hidden[n > 0] data-choice=(one.id) { (chart(one)) }
            }
        }
    }
}

fn is_number(text: &str) -> bool {
    let number = text.trim_end_matches(['%', 'x', '×', ' ']);
    matches!(text, "-" | "") || number.parse::<f64>().is_ok()
}

fn table(t: &Table) -> Markup {
    let numeric: Vec<_> = (0..t.header.len())
        .map(|c| {
            t.rows
                .iter()
                .all(|r| r.get(c).is_none_or(|cell| is_number(&cell.text)))
        })
        .collect();
    let class = |c: usize| numeric.get(c).copied().unwrap_or(false).then_some("number");
    let cell = |cell: &Cell| {
        html! {
            @match &cell.link {
                Some(link) => a href=(link) { (cell.text) },
                None => (cell.text),
            }
        }
    };
    html! {
        // A wide table scrolls by itself, with the keyboard too.
        div.table tabindex="0" role="group" aria-label=(if t.caption.is_empty() { "Table" } else { &t.caption }) {
            table {
                @if !t.caption.is_empty() { caption { (t.caption) } }
                thead { tr { @for (c, name) in t.header.iter().enumerate() { th scope="col" class=[class(c)] { (name) } } } }
                tbody {
                    @for row in &t.rows {
                        tr { @for (c, one) in row.iter().enumerate() {
                            @if c == 0 { th scope="row" class=[class(c)] { (cell(one)) } } @else { td class=[class(c)] { (cell(one)) } }
                        } }
                    }
                }
            }
        }
    }
}

fn pictures(p: &Pictures) -> Markup {
    let source = |png: &[u8]| format!("data:image/png;base64,{}", STANDARD.encode(png));
    let right = usize::from(p.pictures.len() > 1);
    let select = |side: &str, chosen: usize| {
        html! {
            label { (side) " "
                select class=(side.to_lowercase()) {
                    @for (n, picture) in p.pictures.iter().enumerate() { option value=(n) selected[n == chosen] { (picture.name) } }
                }
            }
        }
    };
    let first = p.pictures.first();
    let size = first.and_then(|f| f.size());
    // Small pictures are shown larger, in whole multiples.
    let width = size.map(|(width, _)| width * (640 / width.max(1)).clamp(1, 4));
    html! {
        figure.pictures id=(p.id) {
            figcaption { h3 { (p.title) } }
            @if p.pictures.len() > 1 {
                div.sides { (select("Left", 0)) (select("Right", 1)) }
            }
            div.stack style=[width.map(|w| format!("max-width:{w}px"))] {
                @for (n, picture) in p.pictures.iter().enumerate() {
                    img alt=(format!("{}: {}", p.title, picture.name)) src=(source(&picture.png)) data-n=(n)
                        width=[picture.size().map(|s| s.0)] height=[picture.size().map(|s| s.1)]
                        class=(if n == 0 { "left" } else if n == right { "right" } else { "" }) hidden[n > right];
                }
            }
            @if p.pictures.len() > 1 {
                label.slide { span { "How much of the left one is shown" }
                    input type="range" min="0" max="100" value="50";
                }
            }
        }
    }
}

fn code(c: &Code, id: &str) -> Markup {
    let text = format!("{id}-code");
    let body = html! {
        div.code {
            pre tabindex="0" { code id=(text) { (c.text) } }
            div.tools {
                button type="button" data-copy=(text) { "Copy" }
                @if !c.file.is_empty() {
                    a download=(c.file) href=(format!("data:text/plain;charset=utf-8;base64,{}", STANDARD.encode(&c.text))) { "Save as " (c.file) }
                }
            }
        }
    };
    html! {
        @if c.folded { details { summary { (c.label) } (body) } }
        @else { h3 { (c.label) } (body) }
    }
}
