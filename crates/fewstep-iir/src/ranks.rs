//! What ranks tell each other beside gradients. Rank 0 alone reads and writes files; a rank that stops says why as it leaves its group, so
//! nobody asks whether it worked.

use fewstep_datasets::{Loader, Shard};
use fewstep_spiking::Share;
use fewstep_torch::Group;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// This process's part in the work on each batch.
pub(crate) fn shard(group: &Group) -> Shard {
    Shard {
        rank: group.rank(),
        world: group.world(),
    }
}

/// One rank's images and labels of a batch.
pub(crate) struct Part<'a> {
    /// `[N, C, H, W]`; an image of zeros where the part is empty, which must not count.
    pub(crate) images: Tensor,
    /// `[N]`.
    pub(crate) labels: Tensor,
    /// Where it lies in the batch.
    pub(crate) share: Share<'a>,
}

impl<'a> Part<'a> {
    /// Batch number `number` of `loader`, of which this rank has `own` images and labels.
    pub(crate) fn new(
        group: &'a Group,
        loader: &Loader,
        number: usize,
        own: Option<(Tensor, Tensor)>,
        device: Device,
    ) -> Result<Self> {
        let share = Share {
            group,
            part: group.part(loader.images_in(number) as i64),
        };
        let (images, labels) = match own {
            Some(own) => own,
            None => {
                let shape = loader.shape();
                let shape = [1, shape.channels, shape.height, shape.width].map(|n| n as i64);
                (
                    Tensor::f_zeros(shape, (Kind::Float, device))?,
                    Tensor::f_zeros([1], (Kind::Int64, device))?,
                )
            }
        };
        Ok(Self {
            images,
            labels,
            share,
        })
    }

    /// How much of the batch it is, 0 to 1.
    pub(crate) fn weight(&self) -> f64 {
        self.share.part.weight()
    }
}

/// The words of the lowest rank that has any.
pub(crate) fn first_words(group: &Group, words: Option<String>) -> Result<Option<String>> {
    if group.world() == 1 {
        return Ok(words);
    }
    // All ranks send as much: more than the name of a layer needs.
    let mut mine = words.unwrap_or_default().into_bytes();
    mine.resize(512, 0);
    for theirs in group.all_gather("where it went wrong", &Tensor::f_from_slice(&mine)?)? {
        let text = Vec::<u8>::try_from(theirs)?;
        let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
        if end > 0 {
            return Ok(Some(String::from_utf8_lossy(&text[..end]).into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_the_group_divide_a_batch_alike() {
        for world in [1, 2, 3, 5] {
            let found = Group::of_threads(world, std::time::Duration::from_secs(60), |group| {
                (0..12)
                    .map(|n| {
                        let part = group.part(n).numbers();
                        (
                            shard(group).of(n as usize),
                            part.start as usize..part.end as usize,
                        )
                    })
                    .all(|(shard, part)| shard == part)
            });
            assert_eq!(found.unwrap(), vec![true; world]);
        }
    }
}
