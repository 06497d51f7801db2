//! What is downloaded: one line a wheel, with its version, its SHA-256 and what is taken out of it.
//!
//! Raising libtorch's version means: other figures here, and tch's version in the root Cargo.toml (they belong
//! together). `pip install --dry-run --report` prints the hashes.

use std::fmt::Write;

use Take::{File, Libraries, Tree};

/// Version of libtorch that tch in the root manifest is made for.
pub const VERSION: &str = "2.11.0";

/// A wheel of one fixed Python tag is asked for, whatever Python the user has: none of the wheel's Python is used.
/// Older pips take each platform tag word by word, so all that occur are named.
pub const PIP_TAGS: &[&str] = &[
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_27_x86_64",
    "--platform=manylinux_2_25_x86_64",
    "--platform=manylinux_2_18_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux_2_12_x86_64",
    "--platform=manylinux_2_5_x86_64",
    "--platform=manylinux2014_x86_64",
];

/// Folder for what the linker sees.
const LIB: &str = "lib";
/// Folder for what is only opened at run time. Not `lib`: torch-sys links `libtorch_cuda.so` where it finds it there.
const CUDA_LIB: &str = "cuda/lib";
/// Folder for the headers of CUDA and NCCL, with which fewstep-torch builds its library for CUDA.
const CUDA_INCLUDE: &str = "cuda/include";

/// Which parts of libtorch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// What a machine without a GPU needs.
    Cpu,
    /// The same, and the CUDA parts in `cuda/lib`.
    Cuda,
}

/// A wheel to download and what to take out of it.
#[derive(Debug)]
pub struct Wheel {
    /// Package name.
    pub name: &'static str,
    /// Pinned version.
    pub version: &'static str,
    /// SHA-256 of the wheel.
    pub sha256: &'static str,
    /// Size of the download, MB (10⁶ bytes).
    pub megabytes: u32,
    /// What to unpack.
    pub take: &'static [Take],
}

/// A part of a wheel and the folder of the install that it goes to.
#[derive(Debug)]
pub enum Take {
    /// This file, which must be there.
    File(&'static str, &'static str),
    /// Everything below this folder, which must hold something.
    Tree(&'static str, &'static str),
    /// Every shared library in a folder `lib`, flat; at least one must be there.
    Libraries(&'static str),
}

impl Flavour {
    /// Name of its folder in the cache.
    pub fn folder(self) -> String {
        match self {
            Self::Cpu => format!("libtorch-{VERSION}-cpu"),
            Self::Cuda => format!("libtorch-{VERSION}-cu13"),
        }
    }

    /// What a message calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CPU and CUDA 13",
        }
    }

    /// The command that installs it.
    pub fn command(self) -> &'static str {
        match self {
            Self::Cpu => "cargo xtask setup",
            Self::Cuda => "cargo xtask setup --cuda",
        }
    }

    /// What it is made of.
    pub fn wheels(self) -> impl Iterator<Item = &'static Wheel> {
        let cuda: &[Wheel] = match self {
            Self::Cpu => &[],
            Self::Cuda => CUDA,
        };
        CPU.iter().chain(cuda)
    }

    /// What to take out of `wheel`.
    pub fn takes(self, wheel: &'static Wheel) -> impl Iterator<Item = &'static Take> {
        let cuda: &[Take] = match self {
            Self::Cuda if wheel.name == "torch" => TORCH_CUDA,
            Self::Cuda if wheel.name == "nvidia-cuda-runtime" => HEADERS,
            _ => &[],
        };
        wheel.take.iter().chain(cuda)
    }

    /// Size of the download, MB.
    pub fn megabytes(self) -> u32 {
        self.wheels().map(|wheel| wheel.megabytes).sum()
    }

    /// The requirements file for pip.
    pub fn requirements(self) -> String {
        self.wheels().fold(String::new(), |mut text, wheel| {
            let _ = writeln!(
                text,
                "{}=={} --hash=sha256:{}",
                wheel.name, wheel.version, wheel.sha256
            );
            text
        })
    }
}

impl Wheel {
    /// How the name of its file begins.
    pub fn prefix(&self) -> String {
        format!("{}-{}-", self.name.replace('-', "_"), self.version)
    }
}

/// `libtorch.so` is not taken: it pulls CUDA in, so `install` writes a linker script in its place.
const CPU: &[Wheel] = &[
    Wheel {
        name: "torch",
        version: VERSION,
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        megabytes: 531,
        take: &[
            Tree("torch/include/", "include"),
            File("torch/lib/libc10.so", LIB),
            File("torch/lib/libgomp.so.1", LIB),
            File("torch/lib/libtorch_cpu.so", LIB),
        ],
    },
    // libtorch_cpu.so names these two, whether there is a GPU or not.
    Wheel {
        name: "nvidia-cuda-runtime",
        version: "13.0.96",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        megabytes: 2,
        take: &[File("nvidia/cu13/lib/libcudart.so.13", LIB)],
    },
    Wheel {
        name: "nvidia-cuda-cupti",
        version: "13.0.85",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        megabytes: 11,
        take: &[File("nvidia/cu13/lib/libcupti.so.13", LIB)],
    },
];

/// What `--cuda` takes from torch's own wheel besides.
const TORCH_CUDA: &[Take] = &[
    File("torch/lib/libc10_cuda.so", CUDA_LIB),
    File("torch/lib/libcaffe2_nvrtc.so", CUDA_LIB),
    File("torch/lib/libtorch_cuda.so", CUDA_LIB),
    File("torch/lib/libtorch_cuda_linalg.so", CUDA_LIB),
    File("torch/lib/libtorch_nvshmem.so", CUDA_LIB),
];

/// All libraries of an NVIDIA package.
const LIBRARIES: &[Take] = &[Libraries(CUDA_LIB)];
/// Its headers.
const HEADERS: &[Take] = &[Tree("nvidia/cu13/include/", CUDA_INCLUDE)];
/// Both.
const ALL: &[Take] = &[
    Libraries(CUDA_LIB),
    Tree("nvidia/cu13/include/", CUDA_INCLUDE),
];
/// NCCL, which has a folder of its own.
const NCCL: &[Take] = &[
    Libraries(CUDA_LIB),
    Tree("nvidia/nccl/include/", CUDA_INCLUDE),
];
/// Headers that CUDA's own name, out of a package of thousands.
const TARGETS: &[Take] = &[Tree("nvidia/cu13/include/nv/", "cuda/include/nv")];

/// One NVIDIA package.
const fn nvidia(
    take: &'static [Take],
    name: &'static str,
    version: &'static str,
    megabytes: u32,
    sha256: &'static str,
) -> Wheel {
    Wheel {
        name,
        version,
        sha256,
        megabytes,
        take,
    }
}

/// What torch's wheel requires on Linux, as far as its libraries name it; and what its headers name, in the versions of the same
/// cuda-toolkit 13.0.2.
#[rustfmt::skip]
const CUDA: &[Wheel] = &[
    nvidia(ALL, "nvidia-cublas", "13.1.0.3", 423, "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    nvidia(TARGETS, "nvidia-cuda-cccl", "13.0.85", 3, "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649"),
    nvidia(HEADERS, "nvidia-cuda-crt", "13.0.88", 1, "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
    nvidia(LIBRARIES, "nvidia-cuda-nvrtc", "13.0.88", 90, "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    nvidia(LIBRARIES, "nvidia-cudnn-cu13", "9.19.0.56", 366, "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf"),
    nvidia(LIBRARIES, "nvidia-cufft", "12.0.0.61", 214, "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3"),
    nvidia(LIBRARIES, "nvidia-cufile", "1.15.1.6", 1, "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44"),
    nvidia(LIBRARIES, "nvidia-curand", "10.4.0.35", 60, "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
    nvidia(ALL, "nvidia-cusolver", "12.0.4.66", 201, "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112"),
    nvidia(ALL, "nvidia-cusparse", "12.6.3.3", 146, "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b"),
    nvidia(LIBRARIES, "nvidia-cusparselt-cu13", "0.8.0", 170, "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd"),
    nvidia(NCCL, "nvidia-nccl-cu13", "2.28.9", 196, "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42"),
    nvidia(LIBRARIES, "nvidia-nvjitlink", "13.0.88", 41, "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b"),
    nvidia(LIBRARIES, "nvidia-nvshmem-cu13", "3.4.5", 60, "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80"),
    nvidia(LIBRARIES, "nvidia-nvtx", "13.0.85", 1, "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4"),
];
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_has_a_full_hash_and_a_version() {
        for wheel in Flavour::Cuda.wheels() {
            assert_eq!(wheel.sha256.len(), 64, "{}", wheel.name);
            assert!(
                wheel.sha256.bytes().all(|b| b.is_ascii_hexdigit()),
                "{}",
                wheel.name
            );
            assert!(wheel.megabytes > 0, "{}", wheel.name);
        }
        assert_eq!(Flavour::Cpu.requirements().lines().count(), 3);
    }

    #[test]
    fn the_linker_never_sees_a_cuda_library() {
        for wheel in Flavour::Cuda.wheels() {
            for take in Flavour::Cuda.takes(wheel) {
                if let File(path, to) = take
                    && path.contains("cuda.so")
                {
                    assert_eq!(*to, CUDA_LIB, "{path}");
                }
            }
        }
    }
}
