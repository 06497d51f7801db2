//! Sampling jobs: their images are the same whoever makes them, and who is killed costs no more than a chunk.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{Done, Sandbox, end, files, start_ranks};
use crate::sampling::{array, save_model};

/// Ten chunks, which take a second or so.
const JOB: &str = "--steps 100 --n 40 --chunk 4 --batch 4 --out job";

fn command(sandbox: &Sandbox, words: &str) -> Command {
    let common =
        "sample --checkpoint model.safetensors --device cpu --threads 1 --quiet --rank-timeout 60";
    let words: Vec<&str> = common.split(' ').chain(words.split(' ')).collect();
    let mut command = sandbox.command(&words);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts ranks 0, 1, … with these words each.
fn start(sandbox: &Sandbox, ranks: &[&str]) -> Vec<Child> {
    let ranks = ranks.iter().map(|words| command(sandbox, words));
    start_ranks(ranks.collect())
}

/// All must succeed, and one of them says what was done.
fn succeed(ranks: Vec<Child>) -> String {
    let said: Vec<String> = ranks
        .into_iter()
        .map(|child| {
            let done = end(child);
            assert!(done.ok, "{}", done.stderr);
            assert_eq!(done.stderr, "");
            done.stdout
        })
        .filter(|stdout| !stdout.is_empty())
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    said[0].clone()
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    save_model(&sandbox, 1);
    sandbox
}

fn alone(sandbox: &Sandbox, words: &str) -> Done {
    end(command(sandbox, words).spawn().unwrap())
}

/// The shards of `job`, by name.
fn shards(sandbox: &Sandbox) -> BTreeMap<String, Vec<u8>> {
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let all = files(&sandbox.path("job")).into_iter();
    all.filter(|path| name(path).starts_with("images-"))
        .map(|path| (name(&path), array(&path, "arr_0.npy").1))
        .collect()
}

/// Waits for `count` shards.
fn wait_for_shards(sandbox: &Sandbox, count: usize) {
    let start = Instant::now();
    while !sandbox.path("job").is_dir() || shards(sandbox).len() < count {
        assert!(start.elapsed() < Duration::from_secs(120), "never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Nothing but the ten shards of the job, with 40 images; what an undisturbed process makes.
fn assert_whole(sandbox: &Sandbox) {
    let found = shards(sandbox);
    let undisturbed = self::sandbox();
    assert!(alone(&undisturbed, JOB).ok);
    assert!(found == shards(&undisturbed));
    assert_eq!(found.len(), 10);
    let images: usize = found
        .values()
        .map(|pixels| pixels.len() / (8 * 8 * 3))
        .sum();
    assert_eq!(images, 40);
    let names = files(&sandbox.path("job")).len();
    assert_eq!(names, 12, "job.toml and job.lock beside the shards");
}

#[test]
fn images_are_bitwise_the_same_for_any_number_of_ranks_and_any_batch() {
    let sandbox = sandbox();
    let job = "--sampler ddpm --steps 4 --fora 2 --n 21 --chunk 4";
    let mut all = Vec::new();
    for (world, batch) in [(1, 1), (1, 3), (1, 4), (2, 2), (3, 4)] {
        let words = format!("{job} --batch {batch} --out {world}-{batch}.npz");
        succeed(start(&sandbox, &vec![words.as_str(); world]));
        let file = sandbox.path(&format!("{world}-{batch}.npz"));
        all.push((array(&file, "arr_0.npy"), array(&file, "arr_1.npy")));
        assert!(!sandbox.path(&format!("{world}-{batch}.npz.job")).exists());
    }
    assert!(all.iter().all(|one| *one == all[0]));
}

#[test]
fn who_is_killed_is_replaced_by_those_who_are_left() {
    for victim in [0, 1] {
        let sandbox = sandbox();
        let mut ranks = start(&sandbox, &[JOB; 2]);
        wait_for_shards(&sandbox, 2);
        ranks[victim].kill().unwrap();
        let killed = ranks.remove(victim);
        assert!(!end(killed).ok);
        let said = succeed(ranks);
        assert!(said.starts_with("40 images in "), "{said}");
        assert_whole(&sandbox);
    }
}

#[test]
fn a_job_that_is_started_again_makes_only_what_is_missing() {
    let sandbox = sandbox();
    let mut ranks = start(&sandbox, &[JOB; 2]);
    wait_for_shards(&sandbox, 2);
    ranks.iter_mut().for_each(|rank| rank.kill().unwrap());
    ranks.into_iter().for_each(|rank| {
        end(rank);
    });
    std::fs::write(sandbox.path("job/.writing-torn"), "PK").unwrap();
    let inodes = || -> BTreeMap<String, u64> {
        let there = shards(&sandbox).into_keys();
        there
            .map(|name| {
                let file = sandbox.path("job").join(&name);
                (name, file.metadata().unwrap().ino())
            })
            .collect()
    };
    let before = inodes();
    assert!((2..10).contains(&before.len()), "{before:?}");

    let said: Value = serde_json::from_str(&succeed(start(
        &sandbox,
        &[&format!("{JOB} --json --out all.npz"); 3].map(String::as_str),
    )))
    .unwrap();
    assert_eq!(
        (&said["images"], &said["sampled"]),
        (&40.into(), &(40 - 4 * before.len()).into())
    );
    let after = inodes();
    assert!(before.iter().all(|(name, inode)| after[name] == *inode));
    assert_whole(&sandbox);
    let whole: Vec<u8> = shards(&sandbox).into_values().flatten().collect();
    assert_eq!(array(&sandbox.path("all.npz"), "arr_0.npy").1, whole);

    let done = alone(&sandbox, JOB);
    assert!(
        done.stdout.starts_with("40 images (40 were there) in "),
        "{}",
        done.stdout
    );
    assert_eq!(inodes(), after);
    let done = alone(&sandbox, &JOB.replace("100", "99"));
    assert_eq!(
        done.sentence(),
        "error: job/job.toml: the job in that folder has sampler.steps = 100, this one 99; go on with the same settings, or remove the folder"
    );
}

#[test]
fn a_second_job_on_a_folder_is_refused() {
    let sandbox = sandbox();
    let first = command(&sandbox, JOB).spawn().unwrap();
    wait_for_shards(&sandbox, 1);
    let said = alone(&sandbox, JOB);
    let expected = format!(
        "error: job: a job is at work on this folder (process {} on ",
        first.id()
    );
    assert!(said.sentence().starts_with(&expected), "{}", said.stderr);
    succeed(vec![first]);
    assert_whole(&sandbox);
}

#[test]
fn a_rank_with_other_settings_is_refused_before_anything_is_made() {
    let sandbox = sandbox();
    let other = JOB.replace("100", "99");
    let mut ranks = start(&sandbox, &[JOB, &other]).into_iter().map(end);
    let (first, second) = (ranks.next().unwrap(), ranks.next().unwrap());
    let said = "rank 1 has another config than rank 0: `sampler.steps` is 99, not 100";
    assert!(second.sentence().contains(said), "{}", second.stderr);
    assert!(first.sentence().contains("rank 1 "), "{}", first.stderr);
    assert!(!sandbox.path("job").exists());
}

#[test]
fn pictures_are_files_of_their_own_where_that_is_asked() {
    let sandbox = sandbox();
    let job = "--steps 3 --n 5 --chunk 2 --png --out pictures --out all.npz";
    succeed(start(&sandbox, &[job; 2]));
    let all = array(&sandbox.path("all.npz"), "arr_0.npy").1;
    for (k, expected) in all.chunks(8 * 8 * 3).enumerate() {
        let file = format!("pictures/images-{:06}/{k:06}.png", k / 2);
        let picture = image::open(sandbox.path(&file)).unwrap();
        assert_eq!(picture.to_rgb8().as_raw(), expected);
    }
    assert_eq!(files(&sandbox.path("pictures")).len(), 5 + 2);
    let done = alone(&sandbox, "--steps 3 --n 5 --png --out more.npz");
    assert_eq!(
        done.sentence(),
        "error: --png: expected a folder among the --out, found none"
    );
}
