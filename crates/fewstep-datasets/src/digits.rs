//! The digits that travel with this crate: 1,797 handwritten digits, 1×8×8, ten classes.
//!
//! Test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine Learning
//! Repository, <https://doi.org/10.24432/C50P49>), CC BY 4.0, as packaged by scikit-learn. Its values 0 to 16 are
//! scaled to 0 to 255 here. It has no split of its own: ours is stratified, 1,437 images for training and 360 for
//! test, by a fixed seed, and never changes.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use flate2::read::GzDecoder;
use ndarray::Array4;

use crate::{Dataset, Error, MemoryDataset, Result, Splits, Subset, stratified_take};

const FILE: &[u8] = include_bytes!("../data/digits.csv.gz");
const NAME: &str = "digits.csv.gz";
/// Images in the test split.
const TEST_IMAGES: usize = 360;
/// Seed of the one and only split.
const SPLIT_SEED: u64 = 1797;

/// The embedded digits, split.
///
/// # Errors
/// None in practice: the file is part of the binary.
pub fn digits() -> Result<Splits> {
    let mut text = String::new();
    GzDecoder::new(FILE)
        .read_to_string(&mut text)
        .map_err(Error::io(NAME))?;
    let all: Arc<dyn Dataset> = Arc::new(parse(&text)?);
    let test = stratified_take(all.labels(), TEST_IMAGES, SPLIT_SEED);
    let train = (0..all.len())
        .filter(|index| test.binary_search(index).is_err())
        .collect();
    Ok(Splits {
        train: Arc::new(Subset::new(all.clone(), train)?),
        test: Arc::new(Subset::new(all, test)?),
    })
}

/// 64 values from 0 to 16 and a label from 0 to 9 in every line.
fn parse(text: &str) -> Result<MemoryDataset> {
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for (line, row) in text.lines().enumerate() {
        let wrong = || {
            Error::format(
                NAME,
                format!("line {} is not 64 values of 0 to 16 and a label", line + 1),
            )
        };
        let values: Vec<u8> = row
            .split(',')
            .map(|field| field.trim().parse().map_err(|_| wrong()))
            .collect::<Result<_>>()?;
        let Some((&label, image)) = values.split_last().filter(|(_, image)| image.len() == 64)
        else {
            return Err(wrong());
        };
        if image.iter().any(|&value| value > 16) {
            return Err(wrong());
        }
        // Rounded, so that 16 becomes 255 and 8 becomes 128.
        pixels.extend(
            image
                .iter()
                .map(|&value| ((u16::from(value) * 255 + 8) / 16) as u8),
        );
        labels.push(u32::from(label));
    }
    let images = Array4::from_shape_vec((labels.len(), 1, 8, 8), pixels)
        .map_err(|error| Error::format(Path::new(NAME), error.to_string()))?;
    MemoryDataset::new(
        "digits",
        images,
        labels,
        (0..10).map(|digit| digit.to_string()).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_digits_have_a_fixed_stratified_split() {
        let Splits { train, test } = digits().unwrap();
        assert_eq!((train.len(), test.len()), (1437, 360));
        for class in 0..10 {
            let (n, all) = (
                count(&*test, class),
                count(&*test, class) + count(&*train, class),
            );
            assert!(
                (n as f64 - all as f64 * 360.0 / 1797.0).abs() < 1.0,
                "class {class}: {n} of {all}"
            );
        }
        let brightest = (0..test.len())
            .filter_map(|i| test.image(i).unwrap().iter().copied().max())
            .max();
        assert_eq!(brightest, Some(255));
        // The very images: a change of this sum is a change of every figure measured on digits.
        let sum: u64 = (0..test.len())
            .map(|i| {
                test.image(i)
                    .unwrap()
                    .iter()
                    .map(|&v| u64::from(v))
                    .sum::<u64>()
            })
            .sum();
        let place: usize = test
            .labels()
            .iter()
            .enumerate()
            .map(|(i, &label)| i * label as usize)
            .sum();
        assert_eq!((sum, place), (1_783_051, 302_173));
    }

    fn count(set: &dyn Dataset, class: u32) -> usize {
        set.labels().iter().filter(|&&label| label == class).count()
    }

    #[test]
    fn a_short_line_is_named() {
        assert_eq!(
            parse("1,2,3\n").unwrap_err().to_string(),
            "digits.csv.gz: line 1 is not 64 values of 0 to 16 and a label"
        );
    }
}
