//! The official Python layout of CIFAR: a pickled dictionary with a list of labels and a numpy array (N, 3072).
//!
//! The files were written by Python 2 with protocol 2, so strings arrive as bytes. An array is pickled as a call of
//! numpy's `_reconstruct` whose result is then given the state `(version, shape, dtype, is_fortran, bytes)`; serde-pickle
//! calls nothing and hands over that state, which is all that is needed.

use std::path::Path;

use serde_pickle::{DeOptions, HashableValue, Value};

use crate::cifar::Variant;
use crate::{Error, Result};

const IMAGE_BYTES: usize = 3 * 32 * 32;

/// Pixels (N·3072) and classes of one batch file.
pub(crate) fn parse(path: &Path, bytes: &[u8], variant: Variant) -> Result<(Vec<u8>, Vec<u32>)> {
    let options = DeOptions::new().replace_unresolved_globals();
    let value = serde_pickle::value_from_slice(bytes, options).map_err(|error| {
        Error::format(
            path,
            format!("not a whole pickle of {} bytes: {error}", bytes.len()),
        )
    })?;
    let Value::Dict(mut fields) = value else {
        return Err(Error::format(path, "the pickle holds no dictionary"));
    };
    let mut take = |name: &str| {
        let keys = [
            HashableValue::Bytes(name.into()),
            HashableValue::String(name.into()),
        ];
        keys.iter().find_map(|key| fields.remove(key))
    };
    let label_key = match variant {
        Variant::Ten => "labels",
        Variant::Hundred => "fine_labels",
    };
    let labels = take(label_key)
        .ok_or_else(|| Error::format(path, format!("the pickle has no key {label_key:?}")))?;
    let data = take("data").ok_or_else(|| Error::format(path, "the pickle has no key \"data\""))?;
    let labels = labels_of(path, labels, variant)?;
    Ok((array_of(path, data, labels.len())?, labels))
}

fn labels_of(path: &Path, value: Value, variant: Variant) -> Result<Vec<u32>> {
    let Value::List(items) = value else {
        return Err(Error::format(path, "the labels are not a list"));
    };
    let classes = variant.class_names().len();
    let label = |(index, item): (usize, Value)| match item {
        Value::I64(label) => u32::try_from(label).map_err(|_| Error::Label {
            path: path.into(),
            index,
            label,
            classes,
        }),
        _ => Err(Error::format(
            path,
            format!("label {index} is not a whole number"),
        )),
    };
    items.into_iter().enumerate().map(label).collect()
}

/// The bytes of a C-ordered `u8` array of `images` rows from its state.
fn array_of(path: &Path, value: Value, images: usize) -> Result<Vec<u8>> {
    let wrong = |what: String| Error::format(path, format!("key \"data\": {what}"));
    let Value::Tuple(state) = value else {
        return Err(wrong("not a numpy array".into()));
    };
    let [
        _,
        Value::Tuple(shape),
        _,
        Value::Bool(fortran),
        Value::Bytes(bytes),
    ] = state.as_slice()
    else {
        return Err(wrong("not the state of a numpy array of u8".into()));
    };
    if *fortran {
        return Err(wrong("a Fortran-ordered array, expected C order".into()));
    }
    let expected = [Value::I64(images as i64), Value::I64(IMAGE_BYTES as i64)];
    if shape.as_slice() != expected.as_slice() || images == 0 {
        return Err(wrong(format!(
            "an array of {shape:?} for {images} labels, expected ({images}, {IMAGE_BYTES})"
        )));
    }
    if bytes.len() != images * IMAGE_BYTES {
        let expected = images * IMAGE_BYTES;
        return Err(wrong(format!(
            "{} bytes, expected {expected} of u8 for {images} images",
            bytes.len()
        )));
    }
    Ok(bytes.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON2: &[u8] = include_bytes!("../tests/fixtures/cifar10_python2.pickle");
    const PYTHON3: &[u8] = include_bytes!("../tests/fixtures/cifar10_python3.pickle");
    const HUNDRED: &[u8] = include_bytes!("../tests/fixtures/cifar100_python2.pickle");

    fn path() -> &'static Path {
        Path::new("data_batch_1")
    }

    /// What make_pickles.py put there.
    fn expected() -> Vec<u8> {
        (0..2usize)
            .flat_map(|image| (0..IMAGE_BYTES).map(move |place| ((image * 7 + place) % 256) as u8))
            .collect()
    }

    #[test]
    fn pickles_of_python_2_as_the_official_ones_are_read() {
        assert_eq!(
            parse(path(), PYTHON2, Variant::Ten).unwrap(),
            (expected(), vec![3, 9])
        );
    }

    #[test]
    fn pickles_of_python_3_are_read() {
        assert_eq!(
            parse(path(), PYTHON3, Variant::Ten).unwrap(),
            (expected(), vec![3, 9])
        );
    }

    #[test]
    fn the_fine_label_is_the_class_of_cifar100() {
        assert_eq!(
            parse(path(), HUNDRED, Variant::Hundred).unwrap(),
            (expected(), vec![42, 99])
        );
        let error = parse(path(), HUNDRED, Variant::Ten)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "data_batch_1: the pickle has no key \"labels\"");
    }

    #[test]
    fn a_truncated_pickle_is_an_error_wherever_it_ends() {
        for end in (0..PYTHON2.len()).step_by(97) {
            let error = parse(path(), &PYTHON2[..end], Variant::Ten)
                .unwrap_err()
                .to_string();
            assert!(
                error.starts_with("data_batch_1: not a whole pickle of "),
                "{error}"
            );
        }
    }
}
