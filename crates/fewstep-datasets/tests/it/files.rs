//! Small data sets written to a temporary folder.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Records of CIFAR: the given label bytes before each image, whose pixels all have the value of its place.
pub fn cifar_records(labels: &[&[u8]]) -> Vec<u8> {
    labels
        .iter()
        .enumerate()
        .flat_map(|(place, label)| [label.to_vec(), vec![place as u8; 3072]].concat())
        .collect()
}

/// A pickle of a list of labels and an array (N, 3072), as Python 2 writes it; pixels as in [`cifar_records`].
pub fn cifar_pickle(label_key: &str, labels: &[u8]) -> Vec<u8> {
    let text = |text: &str| [b"U", &[text.len() as u8][..], text.as_bytes()].concat();
    let number = |value: usize| [b"J", &(value as i32).to_le_bytes()[..]].concat();
    let mut out = b"\x80\x02}(".to_vec();
    out.extend(text("data"));
    out.extend(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85");
    out.extend(text("b"));
    out.extend(b"\x87R(K\x01");
    out.extend(
        [
            number(labels.len()),
            number(3072),
            b"\x86cnumpy\ndtype\n".to_vec(),
            text("u1"),
        ]
        .concat(),
    );
    out.extend(b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T");
    out.extend(((labels.len() * 3072) as i32).to_le_bytes());
    (0..labels.len()).for_each(|place| out.extend([place as u8; 3072]));
    out.extend(b"tb");
    out.extend(text(label_key));
    out.extend(b"](");
    labels.iter().for_each(|&label| out.extend([b'K', label]));
    out.extend(b"eu.");
    out
}

/// An IDX file of `u8`.
pub fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut out = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|dim| out.extend(dim.to_be_bytes()));
    out.extend(values);
    out
}

/// Writes bytes, packed where the name ends in `.gz`, with the folders they need.
pub fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::create(path).unwrap();
    if path.extension().is_some_and(|end| end == "gz") {
        let mut packed = GzEncoder::new(file, Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap();
    } else {
        file.write_all(bytes).unwrap();
    }
}

/// A single-coloured image.
pub fn image(path: &Path, width: u32, height: u32, colour: [u8; 3]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(width, height, image::Rgb(colour))
        .save(path)
        .unwrap();
}
