//! `fewstep infer`, and `fewstep-infer` without libtorch: image files through a model file, a line for each.

mod images;
mod report;

use std::io::{BufWriter, ErrorKind, IsTerminal, Write, stderr, stdout};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Args, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use crate::{Images, Model, Options, best};
use images::{Decoder, Item};
use report::{Done, Line};

/// Options of `fewstep infer`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "A folder's images are classified in the order of their names. Subfolders are classes: their images count for top-1.\n\n\
                  Example: fewstep infer runs/demo-iir/t1.events images/ --json"
)]
pub struct Infer {
    /// A model, from `fewstep export RUN --to events`
    pub model: PathBuf,
    /// PNG and JPEG files, or folders of them
    #[arg(required = true, value_name = "IMAGE|FOLDER")]
    pub images: Vec<PathBuf>,
    /// Scale images of another size, and make grey of colour or colour of grey, as the model wants
    #[arg(long)]
    pub resize: bool,
    /// Images that the network runs at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = value_parser!(u32).range(1..=4096))]
    pub batch: u32,
    /// Threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// Count what each layer did: a table with additions, multiplications, bytes of weights and energy
    #[arg(long)]
    pub counts: bool,
    /// Only the summary: no progress, no line for each image
    #[arg(long)]
    pub quiet: bool,
    /// A JSON object for each image, and one for the summary
    #[arg(long)]
    pub json: bool,
}

/// Images that are decoded ahead: enough for all threads to be busy, few enough to be small in memory.
const AHEAD: usize = 256;
/// From so many images on, a terminal shows how far it is.
const LONG: usize = 500;

/// Classifies images and prints what they are.
///
/// # Errors
/// The model or an image can't be read, an image has another size than the model's; one sentence.
pub fn infer(options: &Infer) -> Result<()> {
    let model = Model::open(&options.model)?;
    let decoder = Decoder::new(&model, options.resize)?;
    let found = images::find(&options.images, model.class_names(), model.classes())?;
    for note in &found.notes {
        let _ = writeln!(stderr(), "{note}");
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = options.threads.map_or(cores, |n| n as usize);
    let mut work = Work {
        options,
        decoder,
        pool: rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?,
        out: BufWriter::new(stdout().lock()),
        done: Done::new(threads),
    };
    match work.run(&model, &found.items) {
        // A reader who has seen enough (`| head`) is no fault.
        Err(e)
            if e.downcast_ref::<std::io::Error>().map(std::io::Error::kind)
                == Some(ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        other => other,
    }
}

struct Work<'a, W: Write> {
    options: &'a Infer,
    decoder: Decoder,
    pool: rayon::ThreadPool,
    out: W,
    done: Done,
}

impl<W: Write> Work<'_, W> {
    fn run(&mut self, model: &Model, items: &[Item]) -> Result<()> {
        let mut session = model.session(Options {
            threads: self.done.threads,
            count: self.options.counts,
            ..Options::default()
        })?;
        let classes = model.classes();
        let batch = self.options.batch as usize;
        let ahead = AHEAD.next_multiple_of(batch);
        let size = self.decoder.bytes();
        let mut pixels = vec![0; size * ahead.min(items.len())];
        let mut scores = vec![0.; classes * batch];
        let bar = self.bar(items.len());
        let start = Instant::now();
        for chunk in items.chunks(ahead) {
            let pixels = &mut pixels[..size * chunk.len()];
            self.decode(chunk, pixels)?;
            for (items, pixels) in chunk.chunks(batch).zip(pixels.chunks(size * batch)) {
                let scores = &mut scores[..classes * items.len()];
                let began = Instant::now();
                session.run(Images::Pixels(pixels), scores)?;
                self.done.network += began.elapsed();
                for (item, scores) in items.iter().zip(scores.chunks_exact(classes)) {
                    self.say(model, item, scores)?;
                }
            }
            bar.inc(chunk.len() as u64);
        }
        bar.finish_and_clear();
        self.done.all = start.elapsed();
        let counts = self.options.counts.then(|| session.counts());
        let text = match self.options.json {
            true => self.done.json(model, counts.as_deref()).to_string(),
            false => self.done.text(model, counts.as_deref()),
        };
        writeln!(self.out, "{text}")?;
        Ok(self.out.flush()?)
    }

    /// The pixels of all items; the sentence is about the first that has none.
    fn decode(&self, items: &[Item], pixels: &mut [u8]) -> Result<()> {
        let decoder = &self.decoder;
        let pairs = items
            .par_iter()
            .zip(pixels.par_chunks_exact_mut(decoder.bytes()));
        let all: Vec<Result<()>> = self.pool.install(|| {
            pairs
                .map(|(item, pixels)| decoder.decode(&item.path, pixels))
                .collect()
        });
        all.into_iter().collect()
    }

    fn say(&mut self, model: &Model, item: &Item, scores: &[f32]) -> Result<()> {
        let class = best(scores);
        self.done.add(item.label.map(|label| label == class));
        if self.options.quiet {
            return Ok(());
        }
        let line = Line {
            path: &item.path,
            class,
            name: model.class_names().get(class).map(String::as_str),
            scores,
            label: item.label,
        };
        match self.options.json {
            true => writeln!(self.out, "{}", line.json())?,
            false => writeln!(self.out, "{line}")?,
        }
        Ok(())
    }

    /// Of a long run, where it does not get in the way of lines on the same terminal.
    fn bar(&self, images: usize) -> ProgressBar {
        let lines = !self.options.quiet && stdout().is_terminal();
        if images < LONG || lines || self.options.quiet || !stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(
            "{bar:24.cyan/blue} {pos}/{len} [{elapsed}<{eta}] {per_sec}",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(images as u64).with_style(style)
    }
}

/// For a `main`: prints the sentence and makes the exit code.
pub fn exit_code(result: Result<()>) -> std::process::ExitCode {
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            let _ = writeln!(stderr(), "error: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
