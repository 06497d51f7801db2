use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_slice(values)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor).unwrap()
}

fn ranks(world: usize, port: u16) -> Vec<Ranks> {
    (0..world)
        .map(|rank| Ranks::here(rank, world, port))
        .collect()
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Runs `each` as every rank of a group.
fn with_ranks<T: Send>(world: usize, each: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    Group::of_threads(world, Duration::from_secs(20), each).unwrap()
}

#[test]
fn three_ranks_reduce_broadcast_gather_and_scatter_as_their_definitions_say() {
    with_ranks(3, |group| {
        let rank = group.rank() as f32;
        let x = tensor(&[rank, 10. * rank]);
        group.all_reduce("x", &x, Reduce::Sum).unwrap();
        assert_eq!(values(&x), [3., 30.]);
        let x = tensor(&[rank - 1.]);
        group.all_reduce("x", &x, Reduce::Max).unwrap();
        assert_eq!(values(&x), [1.]);
        let x = tensor(&[rank - 1.]);
        group.all_reduce("x", &x, Reduce::Min).unwrap();
        assert_eq!(values(&x), [-1.]);

        let x = tensor(&[rank]);
        group.broadcast("x", &x, 2).unwrap();
        assert_eq!(values(&x), [2.]);
        let mut bytes = if group.leads() {
            b"state".to_vec()
        } else {
            vec![7; 3]
        };
        group.broadcast_bytes("state", &mut bytes).unwrap();
        assert_eq!(bytes, b"state");

        let all = group.all_gather("x", &tensor(&[rank, -rank])).unwrap();
        let all: Vec<_> = all.iter().map(values).collect();
        assert_eq!(all, [[0., 0.], [1., -1.], [2., -2.]]);
        let x = tensor(&[1., 2., 3., 4., 5., 6.]).view([3, 2]) * f64::from(rank + 1.);
        let part = group.reduce_scatter("x", &x).unwrap();
        let row = 2. * rank;
        assert_eq!(values(&part), [6. * (row + 1.), 6. * (row + 2.)]);
        group.barrier("the end").unwrap();

        let mut numbers = [1., f64::from(rank)];
        group.sum("numbers", &mut numbers).unwrap();
        assert_eq!(numbers, [3., 3.]);
    });
}

#[test]
fn a_process_alone_needs_no_network_and_keeps_what_it_has() {
    let group = Group::alone();
    assert_eq!((group.rank(), group.world(), group.leads()), (0, 1, true));
    let x = tensor(&[1., 2.]);
    group.all_reduce("x", &x, Reduce::Sum).unwrap();
    group.barrier("x").unwrap();
    group.agree("the config", "a").unwrap();
    assert_eq!(values(&x), [1., 2.]);
    assert!(group.reducer(&[x]).unwrap().is_none());
    assert!(group.reduce_scatter("x", &tensor(&[1., 2.])).is_err());
}

#[test]
fn the_gradient_of_a_sum_over_ranks_is_the_sum_of_all_ranks_gradients() {
    with_ranks(2, |group| {
        let rank = group.rank() as f32;
        let x = tensor(&[1. + rank, 2.]).set_requires_grad(true);
        let y = group.differentiable_sum("x", &x).unwrap();
        assert_eq!(values(&y.detach()), [3., 4.]);
        // Of all ranks' losses together: sum over ranks of (rank + 1)·y².
        ((&y * &y).sum(Kind::Float) * f64::from(rank + 1.)).backward();
        assert_eq!(values(&x.grad()), [3. * 2. * 3., 3. * 2. * 4.]);
    });
}

#[test]
fn the_reducer_averages_gradients_and_leaves_alone_what_no_rank_used() {
    with_ranks(2, |group| {
        let rank = group.rank() as f32;
        // Values of rank 0 are everybody's; the second bucket is a large one.
        let shape = [600, 500];
        let large = Tensor::full(shape, f64::from(rank), (Kind::Float, Device::Cpu))
            .set_requires_grad(true);
        let small = tensor(&[5. - rank]).set_requires_grad(true);
        let unused = tensor(&[1.]).set_requires_grad(true);
        let parameters = [&large, &small, &unused].map(Tensor::shallow_clone);
        let reducer = group.reducer(&parameters).unwrap().unwrap();
        assert_eq!(values(&small.detach()), [5.]);
        assert_eq!(reducer.buckets().unwrap().iter().sum::<u64>(), 4 * 300_002);
        for step in 0..3 {
            // Two backwards to a step: the first stays here until the second sends both.
            for last in [false, true] {
                let loss = (large.sum(Kind::Float) + &small * &small).sum(Kind::Float)
                    * f64::from(1. + rank);
                match last {
                    true => reducer.backward(&loss).unwrap(),
                    false => loss.backward(),
                }
            }
            assert_eq!(values(&small.grad()), [2. * 1.5 * 10.], "step {step}");
            assert_eq!(large.grad().double_value(&[7, 7]), 3.);
            assert!(!unused.grad().defined() || values(&unused.grad()) == [0.]);
            for mut p in [&large, &small].map(Tensor::shallow_clone) {
                p.zero_grad();
            }
        }
    });
}

#[test]
fn a_rank_with_another_config_is_named_on_all_ranks() {
    let found = with_ranks(3, |group| {
        group.agree("the build", "0.1").unwrap();
        let mine = if group.rank() == 2 {
            "seed = 1"
        } else {
            "seed = 0"
        };
        group.agree("the config", mine).unwrap_err().to_string()
    });
    for (rank, message) in found.iter().enumerate() {
        assert_eq!(
            *message,
            format!("rank {rank} of 3, the config: rank 0 has `seed = 0`, rank 2 has `seed = 1`")
        );
    }
}

#[test]
fn a_rank_that_does_not_come_is_named_and_so_is_one_that_comes_twice() {
    let port = free_port();
    let all = ranks(2, port);
    let alone = Group::join(&all[0], Duration::from_secs(2)).unwrap_err();
    assert_eq!(
        alone.to_string(),
        "rank 0 of 2, meeting the other ranks: rank 1 did not come within 2 s"
    );
    let free = free_port();
    let nobody = Group::join(&ranks(2, free)[1], Duration::from_secs(1)).unwrap_err();
    assert_eq!(
        nobody.to_string(),
        format!(
            "rank 1 of 2, meeting the other ranks: rank 0 did not come to 127.0.0.1:{free} within 1 s"
        )
    );
    let _store = Store::tcp("127.0.0.1", port, true, Duration::from_secs(5)).unwrap();
    _store.add("fewstep/claims/1", 1).unwrap();
    let twice = Group::join(&all[1], Duration::from_secs(2)).unwrap_err();
    assert!(
        twice
            .to_string()
            .ends_with("expected one process as rank 1, found another, or one that has not ended yet (RANK must differ)"),
        "{twice}"
    );
}

#[test]
fn all_who_came_name_the_one_who_did_not() {
    let port = free_port();
    let timeout = Duration::from_secs(3);
    let found = std::thread::scope(|scope| {
        let threads = [0, 2].map(|rank| {
            scope.spawn(move || {
                let error = Group::join(&ranks(3, port)[rank], timeout).unwrap_err();
                error.to_string()
            })
        });
        threads.map(|thread| thread.join().unwrap())
    });
    for (rank, said) in [0, 2].iter().zip(&found) {
        assert!(
            said.starts_with(&format!("rank {rank} of 3, meeting the other ranks: "))
                && said.contains("rank 1 did not come within 3 s"),
            "{said}"
        );
    }
}

#[test]
fn a_small_bucket_of_the_last_gradients_is_sent_first() {
    with_ranks(2, |group| {
        let of = |n: i64| Tensor::zeros([n], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        // 12 MiB, 1 MiB, 4 bytes, as a network's layers stand.
        let parameters = [of(3 << 20), of(1 << 18), of(1)];
        let reducer = group.reducer(&parameters).unwrap().unwrap();
        assert_eq!(reducer.buckets().unwrap(), [(1 << 20) + 4, 12 << 20]);
    });
}

#[test]
fn a_rank_that_stopped_with_a_reason_is_named_with_it() {
    let found = with_ranks(2, |group| {
        if group.rank() == 1 {
            group.leave(Some("the loss is not finite"));
            return String::new();
        }
        group
            .all_reduce("the gradients", &tensor(&[1.]), Reduce::Sum)
            .unwrap_err()
            .to_string()
    });
    assert_eq!(
        found[0],
        "rank 0 of 2, the gradients: rank 1 stopped (the loss is not finite)"
    );
}

#[test]
fn who_compares_notices_at_once_that_a_rank_has_left() {
    let start = Instant::now();
    let found = Group::of_threads(2, Duration::from_secs(60), |group| {
        if group.rank() == 1 {
            group.leave(Some("there are no images"));
            return String::new();
        }
        let error = group.agree("the data", "digits").unwrap_err().to_string();
        group.leave(Some(&error));
        error
    });
    assert_eq!(
        found.unwrap()[0],
        "rank 0 of 2, the data: rank 1 stopped (there are no images)"
    );
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_store_in_a_file_keeps_keys_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::file(&folder.path().join("store"), 1, Duration::from_secs(2)).unwrap();
    assert_eq!(store.peek("a").unwrap(), None);
    store.set("a", b"1\0").unwrap();
    assert_eq!(store.get("a").unwrap(), b"1\0");
    assert_eq!(store.add("n", 3).unwrap(), 3);
    assert_eq!(store.prefix("p").unwrap().add("n", 1).unwrap(), 1);
    assert_eq!(store.add("n", -1).unwrap(), 2);
}

/// A Python with torch, where FEWSTEP_BENCH_PYTHON names one.
#[test]
fn a_python_process_is_a_rank_like_any_other() {
    let Some(python) = std::env::var_os("FEWSTEP_BENCH_PYTHON") else {
        eprintln!("skipped: FEWSTEP_BENCH_PYTHON does not name a Python with torch");
        return;
    };
    let port = free_port();
    let script = "
import torch, torch.distributed as dist
dist.init_process_group('gloo')
x = torch.tensor([1., 2.])
dist.all_reduce(x)
y = torch.full((2,), float(dist.get_rank()))
dist.broadcast(y, 0)
print(x.tolist(), y.tolist())
";
    let mut peer = Command::new(python)
        .args(["-c", script])
        .env("RANK", "1")
        .env("WORLD_SIZE", "2")
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let group = Group::join(&ranks(2, port)[0], Duration::from_secs(60)).unwrap();
    let x = tensor(&[10., 20.]);
    group.all_reduce("x", &x, Reduce::Sum).unwrap();
    group.broadcast("y", &tensor(&[4., 5.]), 0).unwrap();
    assert_eq!(values(&x), [11., 22.]);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut peer.stdout.take().unwrap(), &mut said).unwrap();
    assert!(peer.wait().unwrap().success());
    assert_eq!(said.trim(), "[11.0, 22.0] [4.0, 5.0]");
}

#[test]
fn what_rank_0_finds_and_holds_becomes_everybodys() {
    with_ranks(3, |group| {
        let rank = group.rank();
        let found: Result<Vec<usize>> = group.told("the list", || Ok(vec![rank; 3]));
        assert_eq!(found.unwrap(), [0, 0, 0]);
        let x = tensor(&[rank as f32]);
        let one = vec![("x".to_owned(), x.shallow_clone())];
        group.spread("x", one).unwrap();
        assert_eq!(values(&x), [0.]);
    });
    let found = with_ranks(2, |group| {
        let found = group.told("the list", || -> Result<u32> {
            Err(Error::Mismatch("there is none".into()))
        });
        let message = found.unwrap_err().to_string();
        group.leave(Some(&message));
        message
    });
    assert_eq!(
        found,
        [
            "there is none",
            "rank 1 of 2, the list: rank 0 stopped (there is none)"
        ]
    );
}

#[test]
fn the_others_wait_for_rank_0_longer_than_the_timeout_and_learn_how_it_ended() {
    for (reason, expected) in [
        (None, "came to its end"),
        (
            Some("the disk is full"),
            "rank 1 of 2, the end: rank 0 stopped (the disk is full)",
        ),
    ] {
        let found = Group::of_threads(2, Duration::from_secs(1), |group| {
            if group.leads() {
                std::thread::sleep(Duration::from_millis(1500));
                group.leave(reason);
            }
            let end = group.see_out("the end");
            end.map_or_else(|e| e.to_string(), |()| "came to its end".into())
        });
        assert_eq!(found.unwrap(), ["came to its end", expected]);
    }
}

#[test]
fn a_rank_that_is_alive_but_late_is_named_with_what_it_is_at() {
    let found = Group::of_threads(2, Duration::from_secs(1), |group| {
        group.barrier("the beginning").unwrap();
        if group.rank() == 1 {
            std::thread::sleep(Duration::from_secs(5));
            return String::new();
        }
        let late = group.all_reduce("the gradients", &tensor(&[1.]), Reduce::Sum);
        late.unwrap_err().to_string()
    });
    assert_eq!(
        found.unwrap()[0],
        "rank 0 of 2, the gradients: rank 1 is late: alive, but still at the beginning after 1 s"
    );
}
