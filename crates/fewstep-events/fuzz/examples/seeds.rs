//! Writes the seeds: small model files for `file`, choices for `network`. `cargo run --example seeds`, in the folder fuzz.

use std::path::Path;

use fewstep_events_fuzz::subject::Choices;

fn main() -> std::io::Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for kind in ["file", "network"] {
        std::fs::create_dir_all(seeds.join(kind))?;
    }
    let (mut files, mut chosen) = (0, 0);
    for seed in 1u64.. {
        // Knuth's MMIX generator, its high bits.
        let mut state = seed;
        let bytes: Vec<u8> = (0..96)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        let mut choices = Choices(&bytes);
        let precision = choices.precision();
        let Ok(file) = choices.network().to_bytes(precision) else {
            continue;
        };
        if chosen < 16 {
            std::fs::write(seeds.join(format!("network/{chosen:02}")), &bytes)?;
            chosen += 1;
        }
        if files < 6 && file.len() < 4000 {
            std::fs::write(seeds.join(format!("file/{files:02}")), &file)?;
            files += 1;
        }
        if chosen == 16 && files == 6 {
            return Ok(());
        }
    }
    Ok(())
}
