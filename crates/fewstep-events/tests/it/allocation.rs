//! A counter around the system's allocator, for each thread, so that other tests do not count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fewstep_events::{Images, Model, Options, Precision};

use crate::small_network;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more, and nobody who asks for it.
    let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: all work is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn a_second_batch_on_one_thread_needs_no_new_memory() {
    let count = || ALLOCATIONS.with(Cell::get);
    for timesteps in [1, 3] {
        for precision in [Precision::Float32, Precision::Int8] {
            for dense_above in [0., 0.6, 4.] {
                let model = Model::from_network(&small_network(timesteps), precision).unwrap();
                let options = Options {
                    dense_above,
                    group: 4,
                    ..Options::default()
                };
                let mut session = model.session(options).unwrap();
                let pixels: Vec<u8> = (0..96 * 7).map(|i| (i * 91 % 251) as u8).collect();
                let mut scores = [0.; 21];
                let before = count();
                session.run(Images::Pixels(&pixels), &mut scores).unwrap();
                assert!(count() > before, "the counter counts");
                let first = scores;
                let warm = count();
                session.run(Images::Pixels(&pixels), &mut scores).unwrap();
                session
                    .run(Images::Pixels(&pixels[..96]), &mut scores[..3])
                    .unwrap();
                let found = count() - warm;
                assert_eq!(
                    found, 0,
                    "T={timesteps} {precision:?} dense above {dense_above}"
                );
                assert_eq!(scores, first);
            }
        }
    }
}
