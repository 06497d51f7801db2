//! Compiles the C++ shim against the libtorch that torch-sys found, and hands that folder on. Where the headers of CUDA and NCCL are, it
//! also compiles the library for several ranks on GPUs and for CUDA graphs, which the program opens at run time.

use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=cpp");
    let lib = std::env::var_os("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .ok_or("torch-sys did not say where libtorch is; run `cargo xtask setup`")?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let root = lib.parent().unwrap_or(Path::new("/"));
    // Another libtorch at the same place, with other headers.
    println!(
        "cargo:rerun-if-changed={}",
        lib.join("libtorch_cpu.so").display()
    );
    shim(root)
        .opt_level(3)
        .flag("-fopenmp")
        // Neither changes a result; without them the compiler does not vectorise a comparison or a square root.
        .flag("-fno-trapping-math")
        .flag("-fno-math-errno")
        .file("cpp/autocast.cpp")
        .file("cpp/c10d.cpp")
        .file("cpp/memory.cpp")
        .file("cpp/neuron.cpp")
        .file("cpp/optim.cpp")
        .file("cpp/profile.cpp")
        .file("cpp/transformer.cpp")
        .compile("fewstep_shim");
    if let Some(headers) = headers_of_cuda(root) {
        let library = out.join("libfewstep_cuda.so");
        match cuda(root, &headers, &library) {
            Ok(()) => println!("cargo:rustc-env=FEWSTEP_CUDA={}", library.display()),
            // Whoever has no GPU does not miss it.
            Err(reason) => println!(
                "cargo:warning=several ranks on GPUs and CUDA graphs are not to be had, as cpp/nccl.cpp and cpp/cuda_graph.cpp do not compile: {reason}"
            ),
        }
    }

    // cargo puts a native search folder inside OUT_DIR on the library path of everything it runs (tests, doctests, binaries),
    // so no test needs an rpath or an environment variable.
    let link = out.join("libtorch");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&lib, &link).map_err(|e| format!("{}: {e}", link.display()))?;
    println!("cargo:rustc-link-search=native={}", link.display());
    // A binary that is started without cargo wants an rpath; only its own build script can set one.
    println!("cargo:libtorch_lib={}", lib.display());
    Ok(())
}

/// What all our C++ is compiled with.
fn shim(root: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        // What c10d's headers name of gloo.
        .include("cpp")
        .define("USE_C10D_GLOO", None);
    build
}

/// Folders with the headers of CUDA and NCCL: `cuda/include` of `cargo xtask setup --cuda`, or NVIDIA's packages beside Python's torch.
/// `None` where one of the headers is missing.
fn headers_of_cuda(root: &Path) -> Option<Vec<PathBuf>> {
    let root = root.canonicalize().ok()?;
    let mut folders = vec![root.join("cuda/include")];
    if let Ok(packages) = fs::read_dir(root.parent()?.join("nvidia")) {
        folders.extend(packages.flatten().map(|p| p.path().join("include")));
    }
    folders.retain(|folder| folder.exists());
    folders.sort();
    // Of nvidia-nccl, nvidia-cuda-runtime, nvidia-cuda-crt, nvidia-cuda-cccl, nvidia-cublas, nvidia-cusparse and nvidia-cusolver.
    let needed = [
        "nccl.h",
        "cuda_runtime.h",
        "crt/host_config.h",
        "nv/target",
        "cublas_v2.h",
        "cusparse.h",
        "cusolverDn.h",
    ];
    let there = |header: &&str| folders.iter().any(|folder| folder.join(header).exists());
    needed.iter().all(there).then_some(folders)
}

/// Compiles `cpp/nccl.cpp` and `cpp/cuda_graph.cpp` to a library that names no other: what it wants of libtorch is there when the program opens it.
fn cuda(root: &Path, headers: &[PathBuf], library: &Path) -> Result<(), String> {
    let compiler = shim(root)
        .opt_level(2)
        .pic(true)
        .includes(headers)
        .define("USE_CUDA", None)
        .define("USE_C10D_NCCL", None)
        .try_get_compiler()
        .map_err(|e| e.to_string())?;
    let output = compiler
        .to_command()
        .args(["-shared", "cpp/nccl.cpp", "cpp/cuda_graph.cpp", "-o"])
        .arg(library)
        .output()
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let first = words.lines().find(|line| line.contains("error"));
    Err(first.unwrap_or("the compiler gave no reason").to_owned())
}
