//! Lets the binary find libtorch without cargo: first the checkout's link, then where libtorch was when it was built.

fn main() {
    if let Some(lib) = std::env::var_os("DEP_FEWSTEP_TORCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,$ORIGIN/../../.libtorch/lib");
        println!("cargo:rustc-link-arg-bins=-Wl,-rpath,{}", lib.display());
    }
}
