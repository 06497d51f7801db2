//! The model file: a safetensors file whose header also holds the network as JSON, a version and a checksum, and whose tensors are laid
//! out as the kernels read them, so that it is mapped and used in place.
//!
//! A weight matrix has one row for each input of an output (row, column, channel of the kernel window; channels last) and comes in
//! blocks of 64 outputs, `[block][row][64]`; the last block is as wide as the outputs left, rounded up to 16. Fully connected layers
//! and convolutions on the smallest maps have blocks whose rows are 4096 bytes (the first layer has not): few of them are read, and seldom
//! twice, and memory gives far more of long rows.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::network::{Geometry, LayerSpec, Network, NetworkSpec, Precision, Shape};
use crate::{Dense, Error, Result};

/// Outputs of a block, and bits of the word that their spikes make.
pub(crate) const BLOCK: usize = 64;
/// Bytes of a row of a wide block.
const WIDE_BYTES: usize = 4096;
/// Outputs are padded to a multiple of this.
pub(crate) const UNIT: usize = 16;

const FORMAT: &str = "fewstep-events";
const VERSION: &str = "1";

/// Where a matrix and what belongs to its outputs lie in the file's data.
#[derive(Debug, Clone)]
pub(crate) enum Matrix {
    Float32(Range<usize>),
    /// Eight bits, and the scale of each output.
    Int8(Range<usize>, Range<usize>),
}

/// A matrix with its bias.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    pub matrix: Matrix,
    pub bias: Range<usize>,
}

/// Where a layer's numbers lie.
#[derive(Debug, Clone)]
pub(crate) struct LayerData {
    pub main: Weights,
    pub projection: Option<Weights>,
    /// θ and λ; none for the read-out.
    pub neuron: Option<[Range<usize>; 2]>,
}

/// What a file says.
#[derive(Debug)]
pub(crate) struct Contents {
    pub spec: NetworkSpec,
    pub shapes: Vec<Shape>,
    pub layers: Vec<LayerData>,
}

struct Tensor<'a> {
    dtype: Dtype,
    bytes: Cow<'a, [u8]>,
}

/// Writes down a network.
pub(crate) fn encode(network: &Network, precision: Precision) -> Result<Vec<u8>> {
    let spec = network.spec(precision);
    let shapes = spec.shapes()?;
    let mut tensors = BTreeMap::new();
    for (i, (layer, shape)) in network.layers.iter().zip(&shapes).enumerate() {
        let check = Check { layer: &layer.name };
        let behind_pool = |source: Option<usize>| match source {
            Some(s) if network.layers[s].pool => 0.25,
            _ => 1.,
        };
        let kind = match i {
            0 => Precision::Float32,
            _ => precision,
        };
        let factor = behind_pool(i.checked_sub(1));
        check.weights(
            &layer.name,
            &layer.dense,
            &shape.main,
            kind,
            factor,
            &mut tensors,
        )?;
        if let (Some(s), Some(geometry)) = (&layer.shortcut, &shape.projection)
            && let Some((_, dense)) = &s.projection
        {
            let name = format!("{}.projection", layer.name);
            check.weights(
                &name,
                dense,
                geometry,
                kind,
                behind_pool(Some(s.from)),
                &mut tensors,
            )?;
        }
        let readout = i + 1 == network.layers.len();
        for (what, values, padding) in [
            ("threshold", &layer.threshold, f32::INFINITY),
            ("leak", &layer.leak, 0.),
        ] {
            if readout && values.is_empty() {
                continue;
            }
            if readout || !(values.len() == 1 || values.len() == layer.outputs) {
                let (n, found) = (layer.outputs, values.len());
                let expected = if readout {
                    "no neurons in the read-out".to_string()
                } else {
                    format!("1 or {n} values")
                };
                return check.wrong(format!("{what}: expected {expected}, found {found}"));
            }
            check.finite(what, values)?;
            let each = (0..layer.outputs).map(|c| values[c % values.len()]);
            tensors.insert(
                format!("{}.{what}", layer.name),
                floats(each, layer.outputs, padding),
            );
        }
    }
    assemble(&spec, &tensors)
}

struct Check<'a> {
    layer: &'a str,
}

impl Check<'_> {
    fn wrong<T>(&self, reason: String) -> Result<T> {
        Err(Error::Layer {
            layer: self.layer.into(),
            reason,
        })
    }

    fn finite(&self, what: &str, values: &[f32]) -> Result<()> {
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => self.wrong(format!("{what}: element {i} is {}", values[i])),
            None => Ok(()),
        }
    }

    /// Puts a matrix and its bias down.
    fn weights(
        &self,
        name: &str,
        dense: &Dense,
        geometry: &Geometry,
        precision: Precision,
        factor: f32,
        into: &mut BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let (rows, outputs) = (geometry.rows(), geometry.output[0]);
        let (expected, found) = (rows * outputs, dense.weight.len());
        if found != expected {
            return self.wrong(format!(
                "`{name}`: expected {expected} weights, found {found}"
            ));
        }
        let biases = dense.bias.len();
        if ![0, outputs].contains(&biases) {
            return self.wrong(format!(
                "`{name}`: expected {outputs} biases, found {biases}"
            ));
        }
        self.finite(&format!("{name}.weight"), &dense.weight)?;
        self.finite(&format!("{name}.bias"), &dense.bias)?;
        let [kh, kw] = geometry.kernel;
        let channels = geometry.input[0];
        // From [out, channel, row, column] of the kernel to (row, column, channel).
        let at = |row: usize, out: usize| {
            let (tap, c) = (row / channels, row % channels);
            dense.weight[((out * channels + c) * kh + tap / kw) * kw + tap % kw]
        };
        let bias = (0..outputs).map(|o| dense.bias.get(o).copied().unwrap_or(0.));
        into.insert(format!("{name}.bias"), floats(bias, outputs, 0.));
        let width = match precision {
            Precision::Float32 => block_width(geometry, 4),
            Precision::Int8 => block_width(geometry, 1),
        };
        let places = places(rows, outputs, width);
        let matrix = match precision {
            Precision::Float32 => {
                let mut bytes = Vec::with_capacity(4 * rows * padded(outputs));
                for (row, out) in places {
                    let w = if out < outputs {
                        at(row, out) * factor
                    } else {
                        0.
                    };
                    bytes.extend_from_slice(&w.to_le_bytes());
                }
                Tensor {
                    dtype: Dtype::F32,
                    bytes: bytes.into(),
                }
            }
            Precision::Int8 => {
                let scales: Vec<f32> = (0..outputs)
                    .map(|o| {
                        let largest = (0..rows).fold(0f32, |m, r| m.max(at(r, o).abs()));
                        if largest > 0. { largest / 127. } else { 1. }
                    })
                    .collect();
                let mut bytes: Vec<u8> = places
                    .map(|(row, out)| match out < outputs {
                        true => ((at(row, out) / scales[out]).round() as i8).cast_unsigned(),
                        false => 0,
                    })
                    .collect();
                bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
                let scales = scales.into_iter().map(|s| s * factor);
                into.insert(format!("{name}.scale"), floats(scales, outputs, 0.));
                Tensor {
                    dtype: Dtype::I8,
                    bytes: bytes.into(),
                }
            }
        };
        into.insert(format!("{name}.weight"), matrix);
        Ok(())
    }
}

/// `outputs` rounded up.
pub(crate) fn padded(outputs: usize) -> usize {
    outputs.next_multiple_of(UNIT)
}

/// Outputs of a block of a matrix whose elements have this many bytes.
pub(crate) fn block_width(geometry: &Geometry, bytes: usize) -> usize {
    match geometry.wide {
        true => WIDE_BYTES / bytes,
        false => BLOCK,
    }
}

/// (row, output) of every element of a matrix in its order.
fn places(rows: usize, outputs: usize, block: usize) -> impl Iterator<Item = (usize, usize)> {
    let padded = padded(outputs);
    (0..padded).step_by(block).flat_map(move |first| {
        let width = block.min(padded - first);
        (0..rows).flat_map(move |row| (0..width).map(move |i| (row, first + i)))
    })
}

fn floats<'a>(values: impl Iterator<Item = f32>, outputs: usize, padding: f32) -> Tensor<'a> {
    let rest = std::iter::repeat_n(padding, padded(outputs) - outputs);
    let bytes: Vec<u8> = values.chain(rest).flat_map(f32::to_le_bytes).collect();
    Tensor {
        dtype: Dtype::F32,
        bytes: bytes.into(),
    }
}

/// Tensors of one length of element after another, each a multiple of 64 bytes, and a header filled up to one: so every tensor begins
/// at a cache line.
fn assemble(spec: &NetworkSpec, tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let json = |e: serde_json::Error| Error::Network(format!("can't be written as JSON: {e}"));
    let network = serde_json::to_string(spec).map_err(json)?;
    let mut header = serde_json::Map::new();
    let mut body = Vec::new();
    let mut sum = crc32c::crc32c(network.as_bytes());
    let order = |float: bool| {
        tensors
            .iter()
            .filter(move |(_, t)| (t.dtype == Dtype::F32) == float)
    };
    for (name, tensor) in order(true).chain(order(false)) {
        let width = if tensor.dtype == Dtype::F32 { 4 } else { 1 };
        let begin = body.len();
        body.extend_from_slice(&tensor.bytes);
        let entry = json!({
            "dtype": if width == 4 { "F32" } else { "I8" },
            "shape": [tensor.bytes.len() / width],
            "data_offsets": [begin, body.len()],
        });
        sum = fold(sum, name, tensor.dtype, &tensor.bytes);
        header.insert(name.clone(), entry);
    }
    header.insert(
        "__metadata__".into(),
        json!({"format": FORMAT, "version": VERSION, "network": network, "checksum": format!("{sum:08x}")}),
    );
    let mut text = serde_json::to_string(&header).map_err(json)?;
    while (8 + text.len()) % BLOCK != 0 {
        text.push(' ');
    }
    let mut all = Vec::with_capacity(8 + text.len() + body.len());
    all.extend_from_slice(&(text.len() as u64).to_le_bytes());
    all.extend_from_slice(text.as_bytes());
    all.extend_from_slice(&body);
    Ok(all)
}

/// The checksum goes over everything that has a meaning: the network, and each tensor's name, type and bytes, in the order of the file.
fn fold(sum: u32, name: &str, dtype: Dtype, bytes: &[u8]) -> u32 {
    let sum = crc32c::crc32c_append(sum, name.as_bytes());
    let sum = crc32c::crc32c_append(sum, if dtype == Dtype::F32 { b"F32" } else { b"I8" });
    crc32c::crc32c_append(sum, bytes)
}

/// Reads a file's header and checks all of it.
pub(crate) fn decode(bytes: &[u8], path: &Path) -> Result<Contents> {
    let file = |reason: String| Error::File {
        path: path.into(),
        reason,
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| {
        file(format!(
            "expected a model of fewstep-events, found something else or a cut-off file ({e})"
        ))
    })?;
    let none = std::collections::HashMap::new();
    let texts = header.metadata().as_ref().unwrap_or(&none);
    let text = |key: &str| texts.get(key).map_or("", String::as_str);
    if text("format") != FORMAT {
        return Err(file(
            "expected a model of fewstep-events, found another safetensors file".into(),
        ));
    }
    if text("version") != VERSION {
        let found = text("version");
        return Err(file(format!(
            "expected version {VERSION} of the format, found `{found}`"
        )));
    }
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| file(format!("cut off: {e}")))?;
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, t)| t.data().as_ptr() as usize);
    let sum = order.iter().fold(
        crc32c::crc32c(text("network").as_bytes()),
        |sum, (name, t)| fold(sum, name, t.dtype(), t.data()),
    );
    if format!("{sum:08x}") != text("checksum") {
        let found = text("checksum");
        return Err(file(format!(
            "damaged: expected checksum {sum:08x}, found `{found}`"
        )));
    }
    let spec: NetworkSpec =
        serde_json::from_str(text("network")).map_err(|e| file(format!("its network: {e}")))?;
    let shapes = spec.shapes().map_err(|e| file(e.to_string()))?;
    let reader = Reader {
        tensors: &tensors,
        base: bytes.as_ptr() as usize,
    };
    let last = spec.layers.len() - 1;
    let layers = spec
        .layers
        .iter()
        .zip(&shapes)
        .enumerate()
        .map(|(i, (layer, shape))| {
            let precision = if i == 0 {
                Precision::Float32
            } else {
                spec.precision
            };
            reader.layer(layer, shape, precision, i == last)
        })
        .collect::<Result<Vec<_>, String>>()
        .map_err(file)?;
    Ok(Contents {
        spec,
        shapes,
        layers,
    })
}

struct Reader<'a, 'b> {
    tensors: &'a SafeTensors<'b>,
    base: usize,
}

impl Reader<'_, '_> {
    fn layer(
        &self,
        layer: &LayerSpec,
        shape: &Shape,
        precision: Precision,
        readout: bool,
    ) -> Result<LayerData, String> {
        let name = &layer.name;
        let outputs = padded(layer.outputs);
        Ok(LayerData {
            main: self.weights(name, &shape.main, precision)?,
            projection: match &shape.projection {
                Some(g) => Some(self.weights(&format!("{name}.projection"), g, precision)?),
                None => None,
            },
            neuron: match readout {
                true => None,
                false => Some([
                    self.range(&format!("{name}.threshold"), Dtype::F32, outputs)?,
                    self.range(&format!("{name}.leak"), Dtype::F32, outputs)?,
                ]),
            },
        })
    }

    fn weights(
        &self,
        name: &str,
        geometry: &Geometry,
        precision: Precision,
    ) -> Result<Weights, String> {
        let outputs = padded(geometry.output[0]);
        let size = geometry.rows() * outputs;
        let weight = format!("{name}.weight");
        Ok(Weights {
            matrix: match precision {
                Precision::Int8 => Matrix::Int8(
                    self.range(&weight, Dtype::I8, size.next_multiple_of(BLOCK))?,
                    self.range(&format!("{name}.scale"), Dtype::F32, outputs)?,
                ),
                Precision::Float32 => Matrix::Float32(self.range(&weight, Dtype::F32, size)?),
            },
            bias: self.range(&format!("{name}.bias"), Dtype::F32, outputs)?,
        })
    }

    fn range(&self, name: &str, dtype: Dtype, elements: usize) -> Result<Range<usize>, String> {
        let tensor = self
            .tensors
            .tensor(name)
            .map_err(|_| format!("tensor `{name}` is missing"))?;
        let width = if dtype == Dtype::F32 { 4 } else { 1 };
        let (found, shape) = (tensor.dtype(), tensor.shape());
        if found != dtype || tensor.data().len() != width * elements {
            return Err(format!(
                "tensor `{name}`: expected {elements} elements of {dtype:?}, found {shape:?} of {found:?}"
            ));
        }
        let begin = tensor.data().as_ptr() as usize - self.base;
        if !begin.is_multiple_of(width) {
            return Err(format!(
                "tensor `{name}`: expected to begin at a multiple of {width} bytes, found {begin}"
            ));
        }
        Ok(begin..begin + tensor.data().len())
    }
}
