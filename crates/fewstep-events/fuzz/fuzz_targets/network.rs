//! Bytes choose a network, its numbers (some that no training makes), an image and options: it is refused or runs.
#![no_main]

use fewstep_events_fuzz::subject;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut choices = subject::Choices(data);
    let precision = choices.precision();
    if let Ok(file) = choices.network().to_bytes(precision) {
        let file = choices.spoil(&file);
        subject::run_what_loads(&file, &mut choices);
    }
});
