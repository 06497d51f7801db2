//! `setup` and `doctor`: whole installs, killed ones, none at all.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::sandbox::{Sandbox, said, wait_for};

#[test]
fn setup_takes_only_what_a_cpu_machine_needs_and_links_it() {
    let sandbox = Sandbox::new();
    sandbox.working_pip();
    let said = sandbox.says(&["setup"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(
        fs::read_link(sandbox.path("root/.libtorch")).unwrap(),
        sandbox.home()
    );
    let mut names: Vec<_> = fs::read_dir(sandbox.home().join("lib"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "libc10.so",
            "libcudart.so.13",
            "libcupti.so.13",
            "libgomp.so.1",
            "libtorch.so",
            "libtorch_cpu.so"
        ]
    );
    let read = |name| fs::read_to_string(sandbox.home().join(name)).unwrap();
    assert_eq!(read("lib/libtorch.so"), "INPUT ( -ltorch_cpu -lc10 )\n");
    assert_eq!(read("build-version"), "2.11.0\n");
    assert_eq!(read("include/torch/torch.h"), "torch/include/torch/torch.h");
    assert!(!sandbox.path("cache/fewstep/libtorch.partial").exists());
    let call = fs::read_to_string(sandbox.path("calls")).unwrap();
    assert!(
        call.contains("--require-hashes") && call.contains("--no-deps"),
        "{call}"
    );
}

#[test]
fn a_second_setup_and_a_second_checkout_download_nothing() {
    let sandbox = Sandbox::new();
    sandbox.working_pip();
    assert_eq!(sandbox.says(&["setup"]).code, Some(0));
    let start = Instant::now();
    let again = sandbox.says(&["setup"]);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(again.code, Some(0));
    assert!(
        again.out.starts_with("libtorch 2.11.0 is set up already"),
        "{again:?}"
    );

    fs::create_dir(sandbox.path("other")).unwrap();
    let other = said(
        sandbox
            .xtask(&["setup"])
            .env("FEWSTEP_ROOT", sandbox.path("other")),
    );
    assert_eq!(other.code, Some(0), "{other:?}");
    assert_eq!(
        fs::read_link(sandbox.path("other/.libtorch")).unwrap(),
        sandbox.home()
    );
    assert_eq!(sandbox.downloads(), 1);
}

#[test]
fn cuda_libraries_stay_out_of_the_linkers_sight() {
    let sandbox = Sandbox::new();
    for (package, version) in [
        ("cublas", "13.1.0.3"),
        ("cuda_cccl", "13.0.85"),
        ("cuda_crt", "13.0.88"),
        ("cuda_nvrtc", "13.0.88"),
        ("cudnn_cu13", "9.19.0.56"),
        ("cufft", "12.0.0.61"),
        ("cufile", "1.15.1.6"),
        ("curand", "10.4.0.35"),
        ("cusolver", "12.0.4.66"),
        ("cusparse", "12.6.3.3"),
        ("cusparselt_cu13", "0.8.0"),
        ("nccl_cu13", "2.28.9"),
        ("nvjitlink", "13.0.88"),
        ("nvshmem_cu13", "3.4.5"),
        ("nvtx", "13.0.85"),
    ] {
        let library = format!("nvidia/cu13/lib/lib{package}.so.1");
        let header = format!("nvidia/cu13/include/{package}.h");
        let files: [&str; 2] = match package {
            "cuda_cccl" => [
                "nvidia/cu13/include/nv/target",
                "nvidia/cu13/include/cccl/nv/target",
            ],
            "cuda_crt" => ["nvidia/cu13/include/crt/host_config.h", &header],
            "nccl_cu13" => ["nvidia/nccl/lib/libnccl.so.2", "nvidia/nccl/include/nccl.h"],
            _ => [&library, &header],
        };
        sandbox.wheel(
            &format!("nvidia_{package}-{version}-py3-none-x.whl"),
            &files,
        );
    }
    sandbox.wheel(
        "nvidia_cuda_runtime-13.0.96-py3-none-x.whl",
        &[
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/include/cuda_runtime.h",
        ],
    );
    sandbox.working_pip();
    assert_eq!(sandbox.says(&["setup"]).code, Some(0));
    let said = sandbox.says(&["setup", "--cuda"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let home = sandbox.path("cache/fewstep/libtorch-2.11.0-cu13");
    assert_eq!(fs::read_link(sandbox.path("root/.libtorch")).unwrap(), home);
    assert!(home.join("cuda/lib/libtorch_cuda.so").exists());
    assert!(home.join("cuda/lib/libcudnn_cu13.so.1").exists());
    assert!(!home.join("lib/libtorch_cuda.so").exists());
    assert!(!home.join("cuda/lib/cublas.h").exists());
    // What fewstep-torch builds its library for CUDA with, and nothing else.
    for header in [
        "cublas.h",
        "crt/host_config.h",
        "cuda_runtime.h",
        "nccl.h",
        "nv/target",
    ] {
        let path = home.join("cuda/include").join(header);
        assert!(path.exists(), "{}", path.display());
    }
    for absent in [
        "cuda/include/cufft.h",
        "cuda/include/cccl",
        "include/nccl.h",
    ] {
        assert!(!home.join(absent).exists(), "{absent}");
    }
    assert!(
        !sandbox
            .path("cache/fewstep/libtorch-2.11.0-cpu/cuda")
            .exists()
    );
    // The CUDA set holds the CPU set, so plain setup is content with it.
    assert_eq!(sandbox.says(&["setup"]).code, Some(0));
    assert_eq!(fs::read_link(sandbox.path("root/.libtorch")).unwrap(), home);
    assert_eq!(sandbox.downloads(), 2);
}

/// Kills `setup` once `reached` exists, and asserts that nothing passes for installed; then sets up for good.
fn kill_and_recover(sandbox: &Sandbox, reached: &str) {
    let mut child = sandbox
        .xtask(&["setup"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&sandbox.path(reached));
    child.kill().unwrap();
    child.wait().unwrap();
    if let Ok(pid) = fs::read_to_string(sandbox.path("pid")) {
        Command::new("kill")
            .args(["-9", pid.trim()])
            .status()
            .unwrap();
    }
    assert!(!sandbox.home().exists());
    assert!(!sandbox.path("root/.libtorch").exists());

    sandbox.working_pip();
    let doctor = sandbox.says(&["doctor"]);
    assert_eq!(doctor.code, Some(1));
    assert!(
        doctor.out.contains("BAD   libtorch 2.11.0 is not set up"),
        "{}",
        doctor.out
    );
    assert!(
        doctor.out.contains("mend: cargo xtask setup"),
        "{}",
        doctor.out
    );
    assert!(
        doctor
            .out
            .contains("by `cargo xtask setup`: 544 MB; by `cargo xtask setup --cuda`: 2517 MB"),
        "{}",
        doctor.out
    );

    let said = sandbox.says(&["setup"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let doctor = sandbox.says(&["doctor"]);
    assert_eq!(doctor.code, Some(0), "{doctor:?}");
    assert!(
        doctor.out.contains("ok    libtorch 2.11.0 (CPU), whole"),
        "{}",
        doctor.out
    );
}

#[test]
fn a_setup_killed_while_it_downloads_is_not_taken_for_a_whole_one() {
    let sandbox = Sandbox::new();
    sandbox.pip("cp $wheels/torch* $dest; echo $$ > $here/pid; touch $here/reached; exec sleep 60");
    kill_and_recover(&sandbox, "reached");
}

#[test]
fn a_setup_killed_while_it_unpacks_is_not_taken_for_a_whole_one() {
    let sandbox = Sandbox::new();
    // Opening a pipe that nobody writes to blocks: the kill comes after torch's own wheel and before the second.
    sandbox.pip("cp $wheels/* $dest; rm $dest/nvidia_cuda_runtime*; mkfifo $dest/nvidia_cuda_runtime-13.0.96-x.whl");
    kill_and_recover(
        &sandbox,
        "cache/fewstep/libtorch.partial/tree/lib/libtorch_cpu.so",
    );
}

#[test]
fn a_damaged_install_is_named_by_doctor_and_mended_by_setup() {
    let sandbox = Sandbox::new();
    sandbox.working_pip();
    assert_eq!(sandbox.says(&["setup"]).code, Some(0));
    let library = sandbox.home().join("lib/libtorch_cpu.so");
    fs::write(&library, "short").unwrap();
    let doctor = sandbox.says(&["doctor"]);
    assert_eq!(doctor.code, Some(1));
    let fault = format!(
        "libtorch is damaged: {} has 5 bytes instead of 25",
        library.display()
    );
    assert!(doctor.out.contains(&fault), "{}", doctor.out);
    assert_eq!(sandbox.says(&["setup"]).code, Some(0));
    assert_eq!(
        fs::read_to_string(&library).unwrap(),
        "torch/lib/libtorch_cpu.so"
    );
}

#[test]
fn two_setups_at_a_time_download_once() {
    let sandbox = Sandbox::new();
    sandbox.pip("touch $here/reached; sleep 0.3; cp $wheels/* $dest");
    let mut first = sandbox
        .xtask(&["setup"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(&sandbox.path("reached"));
    let second = sandbox.says(&["setup"]);
    assert!(first.wait().unwrap().success());
    assert_eq!(second.code, Some(0), "{second:?}");
    assert!(
        second.err.contains("waiting for another set-up"),
        "{}",
        second.err
    );
    assert_eq!(sandbox.downloads(), 1);
}

/// The real pip, with its view of the world narrowed to this machine.
fn real_pip(sandbox: &Sandbox) -> Command {
    let mut command = sandbox.xtask(&["setup"]);
    command
        .env("PIP_CONFIG_FILE", "/dev/null")
        .env("PIP_RETRIES", "0")
        .env_remove("PIP_EXTRA_INDEX_URL")
        .env_remove("PIP_FIND_LINKS")
        .env_remove("PIP_NO_INDEX");
    command
}

#[test]
fn an_offline_machine_without_the_cache_gets_one_sentence() {
    let sandbox = Sandbox::new();
    // Port 1 of this machine: nothing listens there.
    let said = said(real_pip(&sandbox).env("PIP_INDEX_URL", "http://127.0.0.1:1/simple"));
    assert_eq!(said.code, Some(1));
    assert_eq!(
        said.err.lines().last().unwrap(),
        format!(
            "error: pip reaches no package index that has libtorch 2.11.0 (is there a network?), and it is not in the \
             cache {}; run `cargo xtask setup` once where there is a network, or set LIBTORCH to the folder of a \
             libtorch 2.11.0, or LIBTORCH_USE_PYTORCH=1 where Python has torch 2.11.0",
            sandbox.path("cache/fewstep").display()
        )
    );
    assert_eq!(said.err.lines().count(), 2, "{}", said.err);
    assert!(!sandbox.path("root/.libtorch").exists());
}

#[test]
fn a_wheel_with_another_hash_is_refused_by_name() {
    let sandbox = Sandbox::new();
    let said = said(
        real_pip(&sandbox)
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", sandbox.path("wheels")),
    );
    assert_eq!(said.code, Some(1));
    let last = said.err.lines().last().unwrap();
    assert!(
        last.starts_with("error: the download of torch==2.11.0 is refused, because its SHA-256 is not the pinned one"),
        "{last}"
    );
    assert!(!sandbox.home().exists());
}

#[test]
fn a_python_without_pip_is_said_so() {
    let sandbox = Sandbox::new();
    sandbox.script(
        "python3",
        "echo '/usr/bin/python3: No module named pip' >&2; exit 1",
    );
    let said = sandbox.says(&["setup"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err
            .lines()
            .last()
            .unwrap()
            .starts_with("error: python3 has no pip"),
        "{}",
        said.err
    );
}

#[test]
fn a_wheel_without_the_library_is_named() {
    let sandbox = Sandbox::new();
    sandbox.wheel(
        "nvidia_cuda_cupti-13.0.85-py3-none-x.whl",
        &["nvidia/README"],
    );
    sandbox.working_pip();
    let said = sandbox.says(&["setup"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.err
            .contains("nvidia_cuda_cupti-13.0.85-py3-none-x.whl"),
        "{}",
        said.err
    );
    assert!(said.err.contains("libcupti.so.13"), "{}", said.err);
    assert!(!sandbox.home().exists());
}

#[test]
fn libtorch_of_the_user_is_linked_and_nothing_is_downloaded() {
    let sandbox = Sandbox::new();
    sandbox.working_pip();
    let theirs = sandbox.libtorch("theirs", "2.11.0+cu130");
    let answer = said(sandbox.xtask(&["setup"]).env("LIBTORCH", &theirs));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(
        fs::read_link(sandbox.path("root/.libtorch")).unwrap(),
        theirs
    );
    // It stays when the variable is gone.
    assert_eq!(sandbox.says(&["setup"]).code, Some(0));
    assert_eq!(
        fs::read_link(sandbox.path("root/.libtorch")).unwrap(),
        theirs
    );
    // Cargo sets LIBTORCH to the link itself: that is nobody's wish.
    let answer = said(
        sandbox
            .xtask(&["setup"])
            .env("LIBTORCH", sandbox.path("root/.libtorch")),
    );
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(sandbox.downloads(), 0);
}

#[test]
fn another_version_of_libtorch_is_refused() {
    let sandbox = Sandbox::new();
    let old = sandbox.libtorch("old", "2.6.0");
    let answer = said(sandbox.xtask(&["setup"]).env("LIBTORCH", &old));
    assert_eq!(answer.code, Some(1));
    assert_eq!(
        answer.err,
        format!(
            "error: LIBTORCH is set, but {} is libtorch 2.6.0, and 2.11.0 is needed; give it a libtorch 2.11.0, or \
             unset it and `cargo xtask setup` installs one\n",
            old.display()
        )
    );
    let answer = said(
        sandbox
            .xtask(&["doctor"])
            .env("LIBTORCH", sandbox.path("wheels")),
    );
    assert_eq!(answer.code, Some(1));
    assert!(
        answer
            .out
            .contains("is no libtorch: it has no include/torch"),
        "{}",
        answer.out
    );
    assert!(!sandbox.path("root/.libtorch").exists());
}

#[test]
fn the_torch_of_python_is_linked_on_request() {
    let sandbox = Sandbox::new();
    let theirs = sandbox.libtorch("site-packages/torch", "2.11.0");
    sandbox.script("python3", &format!("echo {}", theirs.display()));
    let answer = said(sandbox.xtask(&["setup"]).env("LIBTORCH_USE_PYTORCH", "1"));
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert_eq!(
        fs::read_link(sandbox.path("root/.libtorch")).unwrap(),
        theirs
    );

    sandbox.script("python3", "exit 1");
    let answer = said(sandbox.xtask(&["setup"]).env("LIBTORCH_USE_PYTORCH", "1"));
    assert_eq!(answer.code, Some(1));
    assert!(
        answer
            .err
            .contains("LIBTORCH_USE_PYTORCH is set, but python3 has no package torch"),
        "{}",
        answer.err
    );
}
