//! Images that lie on a device as bytes, augmented there: the CPU draws the few numbers that an augmentation needs, and the device moves,
//! mirrors, normalises and cuts.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::device::send;

/// Bytes that images may have to be put onto a GPU without having been asked.
const SMALL: usize = 1 << 31;

/// Images on a device, with their labels.
pub struct Resident {
    /// `[N, C, H·W]`, bytes.
    images: Tensor,
    /// `[N]`.
    labels: Tensor,
    /// C, H, W.
    shape: [i64; 3],
}

/// Makes batches of [`Resident`] images; holds them, without a copy.
pub struct Augmenter {
    images: Tensor,
    labels: Tensor,
    shape: [i64; 3],
    /// `[C·256]`: what a byte of a channel becomes.
    table: Tensor,
    /// `[C, 1]`: where a channel begins in the table.
    channel: Tensor,
    /// `[1, H]` and `[1, W]`: 0, 1, 2, …
    rows: Tensor,
    columns: Tensor,
}

impl Resident {
    /// Whether so many bytes of images are better off on `device`, where nobody has said so: up to 2 GiB on a GPU.
    pub fn fits(bytes: usize, device: Device) -> bool {
        matches!(device, Device::Cuda(_)) && bytes <= SMALL
    }

    /// Copies images to `device`: bytes (N, C, H, W), N labels, and C, H and W.
    ///
    /// # Errors
    /// Another number of bytes than labels and shape ask for, or the device lacks the memory.
    pub fn new(bytes: &[u8], labels: &[i64], shape: [usize; 3], device: Device) -> Result<Self> {
        let shape = shape.map(|n| n as i64);
        let size = [labels.len() as i64, shape[0], shape[1] * shape[2]];
        Ok(Self {
            images: Tensor::f_from_slice(bytes)?
                .f_view(size)?
                .f_to_device(device)?,
            labels: Tensor::f_from_slice(labels)?.f_to_device(device)?,
            shape,
        })
    }

    /// For batches in which byte b of channel c becomes `table[c][b]`, a row for each channel.
    ///
    /// # Errors
    /// The device lacks the memory.
    pub fn augmenter(&self, table: &[[f32; 256]]) -> Result<Augmenter> {
        let device = self.images.device();
        let count = |n: i64| Tensor::f_arange(n, (Kind::Int64, device));
        let [channels, height, width] = self.shape;
        Ok(Augmenter {
            images: self.images.shallow_clone(),
            labels: self.labels.shallow_clone(),
            shape: self.shape,
            table: Tensor::f_from_slice(table.as_flattened())?.f_to_device(device)?,
            channel: count(channels)?.f_mul_scalar(256)?.f_view([-1, 1])?,
            rows: count(height)?.f_view([1, -1])?,
            columns: count(width)?.f_view([1, -1])?,
        })
    }
}

impl Augmenter {
    /// Images `[n, C, H, W]` and labels `[n]`, on the device. `numbers` are eight rows of n each: the image's number; the row and the
    /// column of it that become the first (what lies outside is black, byte 0); 1 where left and right change places; the first row and
    /// the one after the last, the first column and the one after the last, of a hole of zeros.
    ///
    /// # Errors
    /// libtorch refuses: no eight rows, or an image that is not there.
    pub fn batch(&self, numbers: &[i64]) -> Result<(Tensor, Tensor)> {
        let images = &self.images;
        let [channels, height, width] = self.shape;
        // One copy carries all numbers.
        let numbers = Tensor::f_from_slice(numbers)?.f_view([8, -1, 1])?;
        let numbers = send(&numbers, images.device())?;
        let column = |k: i64| numbers.f_get(k);
        let index = column(0)?.f_flatten(0, -1)?;
        let (down, right, mirrored) = (column(1)?, column(2)?, column(3)?);
        // Where each pixel comes from: rows [n, H, 1] and columns [n, 1, W].
        let rows = self.rows.f_add(&down)?;
        let opposite = self.columns.f_neg()?.f_add_scalar(width - 1)?;
        let columns = opposite.f_where_self(&mirrored.f_gt(0)?, &self.columns)?;
        let columns = columns.f_add(&right)?;
        let within = |at: &Tensor, length: i64| at.f_ge(0)?.f_logical_and(&at.f_lt(length)?);
        let seen = within(&rows, height)?
            .f_unsqueeze(-1)?
            .f_logical_and(&within(&columns, width)?.f_unsqueeze(1)?)?;
        let source = (rows.f_clamp(0, height - 1)?.f_mul_scalar(width)?)
            .f_unsqueeze(-1)?
            .f_add(&columns.f_clamp(0, width - 1)?.f_unsqueeze(1)?)?
            .f_view([-1, 1, height * width])?
            .f_expand([-1, channels, -1], false)?;
        let bytes = images
            .f_index_select(0, &index)?
            .f_gather(2, &source, false)?
            .f_mul(&seen.f_view([-1, 1, height * width])?)?;
        let pixels = self
            .table
            .f_take(&bytes.f_to_kind(Kind::Int64)?.f_add(&self.channel)?)?
            .f_view([-1, channels, height, width])?;
        let inside = |at: &Tensor, from: i64, to: i64| {
            at.f_ge_tensor(&column(from)?)?
                .f_logical_and(&at.f_lt_tensor(&column(to)?)?)
        };
        let hole = inside(&self.rows, 4, 5)?
            .f_unsqueeze(-1)?
            .f_logical_and(&inside(&self.columns, 6, 7)?.f_unsqueeze(1)?)?;
        Ok((
            pixels.f_masked_fill(&hole.f_unsqueeze(1)?, 0)?,
            self.labels.f_index_select(0, &index)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_moved_mirrored_looked_up_and_cut() {
        // One channel of 2 × 3; byte b becomes b + 0.5.
        let table = [std::array::from_fn(|b| b as f32 + 0.5)];
        let images = Resident::new(
            &[0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6],
            &[7, 8],
            [1, 2, 3],
            Device::Cpu,
        )
        .unwrap();
        // Image 1, a row up, mirrored, with the last column of the first row cut out.
        let numbers = [1, 1, 0, 1, 0, 1, 2, 3];
        let (pixels, labels) = images.augmenter(&table).unwrap().batch(&numbers).unwrap();
        assert_eq!(pixels.size(), [1, 1, 2, 3]);
        let found = Vec::<f32>::try_from(pixels.flatten(0, -1)).unwrap();
        assert_eq!(found, [6.5, 5.5, 0., 0.5, 0.5, 0.5]);
        assert_eq!(labels, Tensor::from_slice(&[8i64]));
    }

    #[test]
    fn bytes_that_do_not_fit_their_labels_are_refused() {
        assert!(Resident::new(&[0; 5], &[1], [1, 2, 3], Device::Cpu).is_err());
        assert!(!Resident::fits(1, Device::Cpu));
        assert!(
            Resident::fits(SMALL, Device::Cuda(0)) && !Resident::fits(SMALL + 1, Device::Cuda(0))
        );
    }
}
