//! Any bytes as a model file, with a checksum that fits: loads or is refused; what loads runs.
#![no_main]

use fewstep_events_fuzz::{forge, subject};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut file = data.to_vec();
    forge::mend(&mut file);
    subject::run_what_loads(&file, &mut subject::Choices(&[1, 60, 200, 255]));
});
