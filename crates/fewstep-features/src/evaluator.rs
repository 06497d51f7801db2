//! From images, batch by batch, to figures.

use fewstep_metrics::{
    FeatureRows, FeatureStatistics, InceptionScore, KernelOptions, Score, Splits, frechet_distance,
    kernel_distance, precision_recall,
};
use ndarray::{ArrayView4, Axis};

use crate::{Error, FeatureNetwork, Result};

/// Neighbours that the balls of precision and recall reach to, in all published figures.
const NEIGHBOURS: usize = 3;
/// Samples in a split of the Inception Score, as in ADM's evaluation.
const SPLIT: u64 = 5000;
/// Images that go through the network at once.
const BATCH: usize = 32;
/// Rows that statistics take at once: every call touches the whole covariance.
const ROWS: usize = 256;

/// A published figure of generation quality.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The Fréchet distance on the pooled features: `fid` with Inception, [`FeatureNetwork::distance_name`] with others.
    Fid,
    /// The Fréchet distance on the spatial features (Nash et al. 2021, arXiv 2103.03841).
    Sfid,
    /// The Inception Score of the samples alone.
    InceptionScore,
    /// Improved precision.
    Precision,
    /// Improved recall.
    Recall,
    /// The kernel distance.
    Kid,
}

impl Metric {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 6] = [
        Self::Fid,
        Self::Sfid,
        Self::InceptionScore,
        Self::Precision,
        Self::Recall,
        Self::Kid,
    ];

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fid => "fid",
            Self::Sfid => "sfid",
            Self::InceptionScore => "inception_score",
            Self::Precision => "precision",
            Self::Recall => "recall",
            Self::Kid => "kid",
        }
    }

    /// Whether it compares every image with every other, so that features of all images are kept.
    pub fn keeps_features(self) -> bool {
        matches!(self, Self::Precision | Self::Recall | Self::Kid)
    }
}

/// Takes images batch by batch. Memory: twice dim² f64 (64 MB for Inception), and the features of all images if a metric
/// [keeps](Metric::keeps_features) them (8 kB an image).
pub struct Evaluator<'a> {
    network: &'a dyn FeatureNetwork,
    batch: usize,
    count: u64,
    pooled: Option<Buffered>,
    spatial: Option<Buffered>,
    score: Option<InceptionScore>,
    rows: Option<FeatureRows>,
    wanted: Vec<Metric>,
}

/// Statistics that get their rows in large portions.
struct Buffered {
    statistics: FeatureStatistics,
    waiting: Vec<f32>,
}

impl Buffered {
    fn new(dim: usize) -> Result<Self> {
        Ok(Self {
            statistics: FeatureStatistics::new(dim)?,
            waiting: Vec::new(),
        })
    }

    fn add(&mut self, rows: &[f32]) -> Result<()> {
        self.waiting.extend_from_slice(rows);
        if self.waiting.len() >= ROWS * self.statistics.dim() {
            self.statistics.add(&self.waiting)?;
            self.waiting.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<FeatureStatistics> {
        self.statistics.add(&self.waiting)?;
        Ok(self.statistics)
    }
}

impl<'a> Evaluator<'a> {
    /// Of no images yet; keeps what the metrics `wanted` need of a set. The Inception Score is taken on splits of 5000, as
    /// ADM does; [`with_splits`](Self::with_splits) changes that.
    ///
    /// # Errors
    /// A metric that is not taken on this network's features.
    pub fn new(network: &'a dyn FeatureNetwork, wanted: &[Metric]) -> Result<Self> {
        if let Some(metric) = wanted.iter().find(|m| !network.metrics().contains(m)) {
            let known = network.metrics().iter().map(|m| match m {
                Metric::Fid => network.distance_name(),
                m => m.name(),
            });
            return Err(Error::Metric {
                metric: metric.name(),
                network: network.distance_name(),
                known: known.collect::<Vec<_>>().join(", "),
            });
        }
        let widths = network.widths();
        let has = |metric| wanted.contains(&metric);
        Ok(Self {
            network,
            batch: BATCH,
            count: 0,
            pooled: has(Metric::Fid)
                .then(|| Buffered::new(widths.pooled))
                .transpose()?,
            spatial: has(Metric::Sfid)
                .then(|| Buffered::new(widths.spatial))
                .transpose()?,
            score: has(Metric::InceptionScore)
                .then(|| InceptionScore::new(widths.logits, Splits::OfSize(SPLIT)))
                .transpose()?,
            rows: wanted
                .iter()
                .any(|m| m.keeps_features())
                .then(|| FeatureRows::new(widths.pooled))
                .transpose()?,
            wanted: wanted.to_vec(),
        })
    }

    /// With other splits of the Inception Score, if it is wanted.
    ///
    /// # Errors
    /// Splits of no samples.
    pub fn with_splits(mut self, splits: Splits) -> Result<Self> {
        if self.score.is_some() {
            self.score = Some(InceptionScore::new(self.network.widths().logits, splits)?);
        }
        Ok(self)
    }

    /// With other portions than 32 images that go through the network at once; figures differ by rounding only.
    #[must_use]
    pub fn with_batch_size(mut self, images: usize) -> Self {
        self.batch = images.max(1);
        self
    }

    /// Adds images, bytes `[N, height, width, 1 or 3]`.
    ///
    /// # Errors
    /// Images of another shape, features that are not finite, or libtorch fails.
    pub fn add(&mut self, images: ArrayView4<'_, u8>) -> Result<()> {
        for batch in images.axis_chunks_iter(Axis(0), self.batch) {
            let features = self.network.features(batch)?;
            if let Some(pooled) = &mut self.pooled {
                pooled.add(&features.pooled)?;
            }
            if let Some(spatial) = &mut self.spatial {
                spatial.add(&features.spatial)?;
            }
            if let Some(score) = &mut self.score {
                score.add(&features.logits)?;
            }
            if let Some(rows) = &mut self.rows {
                rows.add(&features.pooled)?;
            }
            self.count += batch.shape()[0] as u64;
        }
        Ok(())
    }

    /// Images seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What is known of the set.
    ///
    /// # Errors
    /// No images, or fewer than the splits of the Inception Score were announced for.
    pub fn finish(self) -> Result<Measured> {
        Ok(Measured {
            distance_name: self.network.distance_name(),
            pooled: self.pooled.map(Buffered::finish).transpose()?,
            spatial: self.spatial.map(Buffered::finish).transpose()?,
            score: self.score.map(|score| score.score()).transpose()?,
            rows: self.rows,
            wanted: self.wanted,
        })
    }
}

/// What is known of a set of images, seen through one network.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    distance_name: &'static str,
    pooled: Option<FeatureStatistics>,
    spatial: Option<FeatureStatistics>,
    score: Option<Score>,
    rows: Option<FeatureRows>,
    wanted: Vec<Metric>,
}

/// A figure by its name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// `fid`, `sfid`, `inception_score`, `precision`, `recall`, `kid`, `fd-resnet56`.
    pub name: &'static str,
    /// The figure.
    pub value: f64,
    /// Its deviation over splits or subsets, where it is a mean over such.
    pub std: Option<f64>,
}

impl Measured {
    /// Published statistics in the place of a set: of the pooled and of the spatial features of `network`.
    ///
    /// # Errors
    /// Statistics of another number of features than the network has.
    pub fn from_statistics(
        network: &dyn FeatureNetwork,
        pooled: Option<FeatureStatistics>,
        spatial: Option<FeatureStatistics>,
    ) -> Result<Self> {
        let widths = network.widths();
        let pairs = [(&pooled, widths.pooled), (&spatial, widths.spatial)];
        for (statistics, expected) in pairs {
            if let Some(found) = statistics.as_ref().map(FeatureStatistics::dim)
                && found != expected
            {
                return Err(fewstep_metrics::FeatureError::Dimensions { expected, found }.into());
            }
        }
        let wanted = [
            (pooled.is_some(), Metric::Fid),
            (spatial.is_some(), Metric::Sfid),
        ];
        Ok(Self {
            distance_name: network.distance_name(),
            pooled,
            spatial,
            score: None,
            rows: None,
            wanted: wanted.into_iter().filter(|w| w.0).map(|w| w.1).collect(),
        })
    }

    /// Statistics from here, features of images from `images`: an ADM reference has both, of different images.
    #[must_use]
    pub fn with_features_of(mut self, images: Self) -> Self {
        self.pooled = self.pooled.or(images.pooled);
        self.spatial = self.spatial.or(images.spatial);
        self.rows = images.rows;
        for metric in images.wanted {
            if !self.wanted.contains(&metric) {
                self.wanted.push(metric);
            }
        }
        self
    }

    /// Statistics of the pooled features, if they were wanted.
    pub fn pooled(&self) -> Option<&FeatureStatistics> {
        self.pooled.as_ref()
    }

    /// Statistics of the spatial features, if they were wanted.
    pub fn spatial(&self) -> Option<&FeatureStatistics> {
        self.spatial.as_ref()
    }

    /// The Inception Score, which takes no reference, if it was wanted.
    pub fn inception_score(&self) -> Option<Figure> {
        self.score.map(|score| Figure {
            name: Metric::InceptionScore.name(),
            value: score.mean,
            std: Some(score.std),
        })
    }

    /// Whether this set, as the reference, has what the figure takes.
    pub fn can_judge(&self, metric: Metric) -> bool {
        match metric {
            Metric::Fid => self.pooled.is_some(),
            Metric::Sfid => self.spatial.is_some(),
            Metric::InceptionScore => true,
            Metric::Precision | Metric::Recall | Metric::Kid => self.rows.is_some(),
        }
    }

    /// The figures of these samples against a reference, in the order of [`Metric::ALL`]: those that were wanted of the
    /// samples and that the reference can judge. Subsets of the kernel distance are no larger than the smaller set.
    ///
    /// # Errors
    /// Too few samples, sets seen through different networks, or no figure in common.
    pub fn compare(&self, reference: &Self, kid: KernelOptions) -> Result<Vec<Figure>> {
        let wanted = |metric| self.wanted.contains(&metric) && reference.can_judge(metric);
        let mut figures = Vec::new();
        let mut push = |name, value, std| figures.push(Figure { name, value, std });
        if let (true, Some(ours), Some(theirs)) =
            (wanted(Metric::Fid), &self.pooled, &reference.pooled)
        {
            let distance = frechet_distance(ours, theirs)?;
            push(self.distance_name, distance, None);
        }
        if let (true, Some(ours), Some(theirs)) =
            (wanted(Metric::Sfid), &self.spatial, &reference.spatial)
        {
            push(Metric::Sfid.name(), frechet_distance(ours, theirs)?, None);
        }
        if let Some(score) = self.inception_score() {
            push(score.name, score.value, score.std);
        }
        if let (Some(ours), Some(theirs)) = (&self.rows, &reference.rows) {
            if wanted(Metric::Precision) || wanted(Metric::Recall) {
                let both = precision_recall(theirs, ours, NEIGHBOURS)?;
                for (metric, value) in [
                    (Metric::Precision, both.precision),
                    (Metric::Recall, both.recall),
                ] {
                    if wanted(metric) {
                        push(metric.name(), value, None);
                    }
                }
            }
            if wanted(Metric::Kid) {
                let subset_size = kid.subset_size.min(ours.count()).min(theirs.count());
                let options = KernelOptions { subset_size, ..kid };
                let distance = kernel_distance(ours, theirs, options)?;
                push(Metric::Kid.name(), distance.mean, Some(distance.std));
            }
        }
        if figures.is_empty() {
            return Err(Error::NothingInCommon);
        }
        Ok(figures)
    }
}

/// Statistics of the pooled features of images in memory, bytes `[N, height, width, 1 or 3]`; with [`ResNet56`](crate::ResNet56) two of these
/// make `fd-resnet56` by [`frechet_distance`].
///
/// # Errors
/// No images, images of another shape, or libtorch fails.
pub fn feature_statistics(
    network: &dyn FeatureNetwork,
    images: ArrayView4<'_, u8>,
) -> Result<FeatureStatistics> {
    let mut statistics = Buffered::new(network.widths().pooled)?;
    for batch in images.axis_chunks_iter(Axis(0), BATCH) {
        statistics.add(&network.features(batch)?.pooled)?;
    }
    statistics.finish()
}
