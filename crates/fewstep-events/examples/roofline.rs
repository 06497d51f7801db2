//! What this processor has to give to an engine that adds weight rows: additions and bytes a second from registers, each cache and memory.
//!
//! Rows of 64 weights are added to 64 sums, as the engine does; `sparse` reads one row in ten, as it does at a spike rate of 0.1. Every
//! thread has rows of its own. One line of JSON each: `{"name", "ms", "threads", "batch", "gadd", "gbyte"}`; a sample is all
//! threads' work and lasts some 10 ms.
//!
//! Example: cargo run --package fewstep-events --example roofline -- 2 5 (threads, samples)

use std::array;
use std::env;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

/// Weights in a row.
const ROW: usize = 64;
/// Bytes of rows for each thread, small enough for the cache of this name.
const LEVELS: [(&str, usize); 4] = [
    ("l1", 16 << 10),
    ("l2", 512 << 10),
    ("l3", 8 << 20),
    ("memory", 256 << 20),
];
/// Bytes that a sample reads, about.
const WORK: usize = 512 << 20;
/// One row in this many where reading is sparse.
const SPARSE: usize = 10;

/// The loops, compiled once for each set of instructions. Integer sums wrap, which costs what a sum without overflow does.
macro_rules! loops {
    ($module:ident $(, $features:literal)?) => {
        mod $module {
            use super::*;

            /// Adds one row in `step`.
            $(#[target_feature(enable = $features)])?
            pub fn float32(rows: &[f32], step: usize) -> [f32; ROW] {
                let mut sums = [0.; ROW];
                for row in rows.as_chunks::<ROW>().0.iter().step_by(step) {
                    sums = array::from_fn(|i| sums[i] + row[i]);
                }
                sums
            }

            /// As `float32`, eight bits into sixteen.
            $(#[target_feature(enable = $features)])?
            pub fn int8(rows: &[i8], step: usize) -> [i16; ROW] {
                let mut sums = [0i16; ROW];
                for row in rows.as_chunks::<ROW>().0.iter().step_by(step) {
                    sums = array::from_fn(|i| sums[i].wrapping_add(i16::from(row[i])));
                }
                sums
            }

            /// Adds what is in registers already.
            $(#[target_feature(enable = $features)])?
            pub fn registers(rows: usize) -> [f32; 2 * ROW] {
                let (mut sums, more) = ([0.; 2 * ROW], black_box(1f32));
                for _ in 0..rows {
                    sums = sums.map(|sum| sum + more);
                }
                sums
            }
        }
    };
}

loops!(portable);
#[cfg(target_arch = "x86_64")]
loops!(avx2, "avx2");
#[cfg(target_arch = "x86_64")]
loops!(avx512, "avx512f,avx512bw,avx512vl");

/// Calls a loop for the best instructions that there are.
macro_rules! best {
    ($name:ident ( $($arg:expr),* )) => {{
        #[cfg(target_arch = "x86_64")]
        // SAFETY: each is called where its instructions are.
        unsafe {
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                black_box(avx512::$name($($arg),*));
            } else if is_x86_feature_detected!("avx2") {
                black_box(avx2::$name($($arg),*));
            } else {
                black_box(portable::$name($($arg),*));
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        black_box(portable::$name($($arg),*));
    }};
}

/// Milliseconds of each sample of `work`, which all threads do at once on what `make` gives each of them.
fn measure<T>(
    threads: usize,
    samples: usize,
    make: impl Fn() -> T + Sync,
    work: impl Fn(&T) + Sync,
) -> Vec<f64> {
    let gate = Barrier::new(threads);
    let run = || {
        let own = make();
        work(&own);
        let mut ms = Vec::new();
        for _ in 0..samples {
            gate.wait();
            let start = Instant::now();
            work(&own);
            gate.wait();
            ms.push(start.elapsed().as_secs_f64() * 1e3);
        }
        ms
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run()
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut counts = env::args().skip(1).map(|word| word.parse::<usize>());
    let threads = counts.next().transpose()?.unwrap_or(1).max(1);
    let samples = counts.next().transpose()?.unwrap_or(5).max(1);
    let report = |name: String, ms: Vec<f64>, additions: usize, bytes: usize| {
        let giga = |n: usize| (n * threads) as f64 / 1e9;
        println!(
            r#"{{"name": "{name}", "ms": {ms:?}, "threads": {threads}, "batch": 1, "gadd": {}, "gbyte": {}}}"#,
            giga(additions),
            giga(bytes)
        );
    };

    let rows = 10_000_000;
    let ms = measure(threads, samples, || (), |()| best!(registers(rows)));
    report("float32-registers".into(), ms, 2 * ROW * rows, 0);
    for (level, bytes) in LEVELS {
        for (order, step) in [("", 1), ("-sparse", SPARSE)] {
            let passes = (WORK / bytes).max(1);
            let again = |work: &dyn Fn()| (0..passes).for_each(|_| work());
            let make = || vec![1f32; bytes / 4];
            let ms = measure(threads, samples, make, |rows| {
                again(&|| best!(float32(black_box(rows), step)));
            });
            let read = |width: usize| (bytes / (ROW * width)).div_ceil(step) * ROW * passes;
            report(format!("float32-{level}{order}"), ms, read(4), 4 * read(4));
            let make = || vec![1i8; bytes];
            let ms = measure(threads, samples, make, |rows| {
                again(&|| best!(int8(black_box(rows), step)));
            });
            report(format!("int8-{level}{order}"), ms, read(1), read(1));
        }
    }
    Ok(())
}
