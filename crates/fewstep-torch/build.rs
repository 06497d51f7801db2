//! Compiles the C++ shim against the libtorch that torch-sys found, and hands that folder on.

use std::path::{Path, PathBuf};

fn main() -> Result<(), String> {
    println!("cargo:rerun-if-changed=cpp");
    let lib = std::env::var_os("DEP_TCH_LIBTORCH_LIB")
        .map(PathBuf::from)
        .ok_or("torch-sys did not say where libtorch is; run `cargo xtask setup`")?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let root = lib.parent().unwrap_or(Path::new("/"));
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(3)
        .warnings(false)
        .flag("-fopenmp")
        // Neither changes a result; without them the compiler does not vectorise a comparison or a square root.
        .flag("-fno-trapping-math")
        .flag("-fno-math-errno")
        .include(root.join("include"))
        .include(root.join("include/torch/csrc/api/include"))
        // What c10d's headers name of gloo.
        .include("cpp")
        .define("USE_C10D_GLOO", None)
        .file("cpp/autocast.cpp")
        .file("cpp/c10d.cpp")
        .file("cpp/neuron.cpp")
        .file("cpp/optim.cpp")
        .file("cpp/transformer.cpp")
        .compile("fewstep_shim");

    // cargo puts a native search folder inside OUT_DIR on the library path of everything it runs (tests, doctests, binaries),
    // so no test needs an rpath or an environment variable.
    let link = out.join("libtorch");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&lib, &link).map_err(|e| format!("{}: {e}", link.display()))?;
    println!("cargo:rustc-link-search=native={}", link.display());
    // A binary that is started without cargo wants an rpath; only its own build script can set one.
    println!("cargo:libtorch_lib={}", lib.display());
    Ok(())
}
