//! The diffusion transformer (DiT, arXiv 2212.09748) with adaLN-Zero, in the layout and with the tensor names of its official code.
//!
//! A block has two sub-modules, attention and MLP, and asks a [`Reuse`] for the output of each, before the gate. Whoever answers
//! without computing pays for the gate and the addition only.

mod config;
mod embed;
mod linear;
mod reuse;

use std::collections::BTreeMap;
use std::path::Path;

use fewstep_torch::ops::{self, Activation};
use fewstep_torch::{Checkpoint, checkpoint};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::random::{self, Use};
use crate::{Error, Result};

pub use config::{Convention, DitConfig, Macs};
use linear::{CONDITION_ROWS, Linear, kernels_are_fixed};
pub use reuse::{ComputeAll, Reuse, SubModule, SubModuleKind};

#[derive(Debug)]
struct Block {
    modulation: Linear,
    qkv: Linear,
    projection: Linear,
    fc1: Linear,
    fc2: Linear,
}

/// What adaLN makes of timestep and label for one sub-module, each `[N, 1, width]`.
#[derive(Debug)]
struct Modulation {
    shift: Tensor,
    /// 1 + scale.
    factor: Tensor,
    gate: Tensor,
}

/// The part of a forward pass that does not depend on what is reused: tokens and modulations.
#[derive(Debug)]
pub struct Prepared {
    tokens: Tensor,
    modules: Vec<Modulation>,
    last: (Tensor, Tensor),
}

impl Prepared {
    /// What the first block gets: `[N, P, width]` with P patches.
    pub fn tokens(&self) -> &Tensor {
        &self.tokens
    }
}

/// A diffusion transformer.
#[derive(Debug)]
pub struct Dit {
    config: DitConfig,
    patch: Linear,
    position: Tensor,
    timestep: [Linear; 2],
    labels: Tensor,
    blocks: Vec<Block>,
    last_modulation: Linear,
    last: Linear,
}

impl Dit {
    /// With the published initialisation: Xavier-uniform linear layers, normal embeddings (0.02), and zero modulation and last layer.
    ///
    /// # Errors
    /// The config makes no sense, or there is no memory for the weights.
    pub fn new(config: &DitConfig, seed: u64) -> Result<Self> {
        let mut dit = Self::empty(config)?;
        let _guard = tch::no_grad_guard();
        for (place, (name, t)) in dit.tensors().into_iter().enumerate() {
            let mut rng = random::generator(seed, Use::Weights, &[place as u64]);
            let size = t.size();
            let mut t = t;
            if name == "pos_embed" {
                continue;
            } else if name.starts_with("t_embedder") && name.ends_with("weight")
                || name.starts_with("y_embedder")
            {
                t.f_copy_(&(random::normal(&mut rng, &size)? * 0.02))?;
            } else if name.contains("adaLN") || name.starts_with("final") || name.ends_with("bias")
            {
                let _ = t.f_zero_()?;
            } else {
                let (out, inputs) = (size[0] as f64, size[1..].iter().product::<i64>() as f64);
                let bound = (6. / (out + inputs)).sqrt();
                t.f_copy_(&random::uniform(&mut rng, &size, bound)?)?;
            }
        }
        dit.position = embed::position(config)?;
        Ok(dit)
    }

    /// All weights zero, to be filled.
    fn empty(config: &DitConfig) -> Result<Self> {
        config.validate().map_err(Error::setting)?;
        let c = config;
        let (width, hidden) = (c.width, c.hidden());
        let linear = |out: i64, inputs: i64| -> Result<Linear> {
            let options = (Kind::Float, Device::Cpu);
            Ok(Linear {
                weight: Tensor::f_zeros([out, inputs], options)?,
                bias: Tensor::f_zeros([out], options)?,
            })
        };
        Ok(Self {
            patch: linear(width, c.channels * c.patch * c.patch)?,
            position: embed::position(c)?,
            timestep: [linear(width, embed::FREQUENCIES)?, linear(width, width)?],
            labels: Tensor::f_zeros([c.label_rows(), width], (Kind::Float, Device::Cpu))?,
            blocks: (0..c.depth)
                .map(|_| {
                    Ok(Block {
                        modulation: linear(6 * width, width)?,
                        qkv: linear(3 * width, width)?,
                        projection: linear(width, width)?,
                        fc1: linear(hidden, width)?,
                        fc2: linear(width, hidden)?,
                    })
                })
                .collect::<Result<_>>()?,
            last_modulation: linear(2 * width, width)?,
            last: linear(c.patch * c.patch * c.output_channels(), width)?,
            config: c.clone(),
        })
    }

    /// From tensors under the official names; `what` names their source in errors. `pos_embed` may be absent.
    ///
    /// # Errors
    /// Lists every missing, extra and misshaped tensor; or a `pos_embed` that is not the fixed sine-cosine one.
    pub fn from_tensors(
        config: &DitConfig,
        mut tensors: BTreeMap<String, Tensor>,
        what: &str,
    ) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let dit = Self::empty(config)?;
        let position = tensors.remove("pos_embed");
        // The official patch embedding is a convolution; ours is the same numbers as a matrix.
        let expected = [config.width, config.channels, config.patch, config.patch];
        if let Some(t) = tensors.get_mut("x_embedder.proj.weight")
            && t.size() == expected
        {
            *t = t.f_reshape([config.width, -1])?;
        }
        let named: Vec<_> = dit
            .tensors()
            .into_iter()
            .filter(|(name, _)| name != "pos_embed")
            .collect();
        checkpoint::copy_into(&named, &tensors, what)?;
        if let Some(position) = position {
            let same = position.size() == dit.position.size()
                && position
                    .f_to_kind(Kind::Float)?
                    .f_sub(&dit.position)?
                    .f_abs()?
                    .f_max()?
                    .f_double_value(&[])?
                    < 1e-3;
            if !same {
                return Err(fewstep_torch::Error::Mismatch(format!(
                    "{what}: pos_embed of shape {:?} is not the sine-cosine embedding of {:?} that this model has",
                    position.size(),
                    dit.position.size()
                ))
                .into());
            }
        }
        Ok(dit)
    }

    /// All tensors under the official names, in a fixed order. They share memory with the model.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = vec![("pos_embed".to_owned(), self.position.shallow_clone())];
        let mut linear = |name: String, l: &Linear| {
            all.push((format!("{name}.weight"), l.weight.shallow_clone()));
            all.push((format!("{name}.bias"), l.bias.shallow_clone()));
        };
        linear("x_embedder.proj".into(), &self.patch);
        linear("t_embedder.mlp.0".into(), &self.timestep[0]);
        linear("t_embedder.mlp.2".into(), &self.timestep[1]);
        for (i, b) in self.blocks.iter().enumerate() {
            linear(format!("blocks.{i}.adaLN_modulation.1"), &b.modulation);
            linear(format!("blocks.{i}.attn.qkv"), &b.qkv);
            linear(format!("blocks.{i}.attn.proj"), &b.projection);
            linear(format!("blocks.{i}.mlp.fc1"), &b.fc1);
            linear(format!("blocks.{i}.mlp.fc2"), &b.fc2);
        }
        linear(
            "final_layer.adaLN_modulation.1".into(),
            &self.last_modulation,
        );
        linear("final_layer.linear".into(), &self.last);
        all.push((
            "y_embedder.embedding_table.weight".into(),
            self.labels.shallow_clone(),
        ));
        all
    }

    /// All tensors that are trained: everything but the position embedding.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let all = self.tensors().into_iter();
        all.filter(|(name, _)| name != "pos_embed").collect()
    }

    /// The shape.
    pub fn config(&self) -> &DitConfig {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.last.weight.device()
    }

    /// The type of the weights.
    pub fn kind(&self) -> Kind {
        self.last.weight.kind()
    }

    /// On another device, or with weights and arithmetic of another type (float32 or bfloat16).
    ///
    /// # Errors
    /// The device lacks the memory.
    pub fn to(mut self, device: Device, kind: Kind) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let convert = |t: &mut Tensor| -> Result<()> {
            *t = t.f_to_device(device)?.f_to_kind(kind)?;
            Ok(())
        };
        let mut linear =
            |l: &mut Linear| convert(&mut l.weight).and_then(|()| convert(&mut l.bias));
        linear(&mut self.patch)?;
        self.timestep.iter_mut().try_for_each(&mut linear)?;
        for b in &mut self.blocks {
            for l in [
                &mut b.modulation,
                &mut b.qkv,
                &mut b.projection,
                &mut b.fc1,
                &mut b.fc2,
            ] {
                linear(l)?;
            }
        }
        linear(&mut self.last_modulation)?;
        linear(&mut self.last)?;
        convert(&mut self.position)?;
        convert(&mut self.labels)?;
        Ok(self)
    }

    /// Weights in safetensors under the official names, with the shape in the string table. Half precision halves the file.
    ///
    /// # Errors
    /// The file can't be written; what stood there before stays.
    pub fn save(&self, path: &Path, kind: Kind) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let mut file =
            Checkpoint::new().with_string("dit", serde_json::json!(self.config).to_string());
        for (name, t) in self.parameters() {
            file = file.with(name, &t.f_detach()?.f_to_kind(kind)?);
        }
        Ok(file.save(path)?)
    }

    /// Reads what [`save`](Self::save) wrote, as float32 on the CPU.
    ///
    /// # Errors
    /// No such file, not one of ours, or tensors that do not fit its own shape.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::load(path)?, "", path)
    }

    /// The same from the bytes of such a file; `path` names them in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::from_bytes(bytes, path)?, "", path)
    }

    /// The model in the tensors of `file` whose names begin with `prefix`.
    pub(crate) fn from_checkpoint(file: &Checkpoint, prefix: &str, path: &Path) -> Result<Self> {
        let error = |reason: String| Error::File {
            path: path.into(),
            reason,
        };
        let config = file.string("dit").ok_or_else(|| {
            error(
                "expected a DiT saved by fewstep, found no entry `dit` in its string table".into(),
            )
        })?;
        let config: DitConfig = serde_json::from_str(config)
            .map_err(|e| error(format!("the entry `dit` describes no DiT: {e}")))?;
        Self::from_tensors(&config, file.section(prefix), &path.display().to_string())
    }

    /// A fingerprint of weights and shape: 16 hexadecimal digits of a SHA-256. Caches learned for a model name it.
    ///
    /// # Errors
    /// libtorch can't copy the weights to the CPU.
    pub fn fingerprint(&self) -> Result<String> {
        let _guard = tch::no_grad_guard();
        let mut hash = Sha256::new();
        hash.update(serde_json::json!(self.config).to_string());
        for (name, t) in self.parameters() {
            hash.update(name);
            let t = t.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?;
            let t = t.f_contiguous()?.f_flatten(0, -1)?;
            let mut numbers = vec![0f32; t.numel()];
            t.f_copy_data(&mut numbers, t.numel())?;
            numbers.iter().for_each(|n| hash.update(n.to_le_bytes()));
        }
        Ok(hash.finalize()[..8]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect())
    }

    /// Tokens and modulations for latents `x` `[N, C, H, W]`, timesteps `t` `[N]` (float) and labels `y` `[N]`, where the number
    /// of classes is the null class.
    ///
    /// # Errors
    /// Latents of another shape, or libtorch refuses.
    pub fn prepare(&self, x: &Tensor, t: &Tensor, y: &Tensor) -> Result<Prepared> {
        let c = &self.config;
        let size = x.size();
        if size.len() != 4 || size[1..] != [c.channels, c.input_size, c.input_size] {
            return Err(Error::Shape {
                what: "latents",
                expected: format!("[N, {}, {}, {}]", c.channels, c.input_size, c.input_size),
                found: size,
            });
        }
        let (n, g, p) = (size[0], c.input_size / c.patch, c.patch);
        let patches = x
            .f_to_kind(self.kind())?
            .f_view([n, c.channels, g, p, g, p])?
            .f_permute([0, 2, 4, 1, 3, 5])?
            .f_reshape([n, g * g, -1])?;
        let tokens = self
            .patch
            .forward(&patches, Activation::None)?
            .f_add(&self.position)?;
        let filled = match kernels_are_fixed(x) {
            true => (-n).rem_euclid(CONDITION_ROWS),
            false => 0,
        };
        let (t, y) = (
            t.f_constant_pad_nd([0, filled])?,
            y.f_constant_pad_nd([0, filled])?,
        );
        let frequencies = embed::timestep(&t, c.convention)?.f_to_kind(self.kind())?;
        let hidden = self.timestep[0].of_conditions(&frequencies)?.f_silu()?;
        let label = Tensor::f_embedding(&self.labels, &y, -1, false, false)?;
        let condition = self.timestep[1].of_conditions(&hidden)?;
        let condition = condition.f_add(&label)?.f_silu()?;
        let modulation = |layer: &Linear| -> Result<Tensor> {
            let all = layer.of_conditions(&condition)?;
            Ok(all.f_narrow(0, 0, n)?.f_unsqueeze(1)?)
        };
        let mut modules = Vec::with_capacity(2 * self.blocks.len());
        for block in &self.blocks {
            let all = modulation(&block.modulation)?;
            let mut parts = all.f_chunk(6, -1)?.into_iter();
            while let (Some(shift), Some(scale), Some(gate)) =
                (parts.next(), parts.next(), parts.next())
            {
                let factor = scale.f_add_scalar(1.)?;
                modules.push(Modulation {
                    shift,
                    factor,
                    gate,
                });
            }
        }
        let last = modulation(&self.last_modulation)?;
        let mut parts = last.f_chunk(2, -1)?;
        let factor = parts.remove(1).f_add_scalar(1.)?;
        Ok(Prepared {
            tokens,
            modules,
            last: (parts.remove(0), factor),
        })
    }

    /// The blocks and the last layer: `[N, C or 2C, H, W]`, float32.
    ///
    /// # Errors
    /// Of `reuse`, or libtorch refuses.
    pub fn run(&self, prepared: &Prepared, reuse: &mut dyn Reuse) -> Result<Tensor> {
        let mut x = prepared.tokens.shallow_clone();
        reuse.batch(x.size()[0]);
        // From the first sum on, nobody but this loop holds the tokens.
        let mut own = false;
        let (mut index, depth) = (0, self.blocks.len());
        loop {
            let enters = index / 2;
            let jump = reuse.enter(enters, &x, &mut || self.entering(prepared, enters, &x))?;
            if let Some((block, tokens)) = jump {
                (x, own) = (tokens, true);
                index = 2 * block.clamp(enters, depth);
            }
            let Some(modules) = prepared.modules.get(index..index + 2) else {
                break;
            };
            for m in modules {
                x = self.sub_module(index, m, x, own, reuse)?;
                own = true;
                index += 1;
            }
        }
        self.finish(prepared, &x)
    }

    /// Block `block` alone, counted from 0 (one that is not there does nothing): tokens `[N, P, width]` in and out, and the tokens that came in stay as they are. With
    /// [`finish`](Self::finish) after the last one this is [`run`](Self::run), but for [`Reuse::enter`], which is not asked.
    ///
    /// # Errors
    /// Of `reuse`, or libtorch refuses.
    pub fn block(
        &self,
        prepared: &Prepared,
        block: usize,
        tokens: &Tensor,
        reuse: &mut dyn Reuse,
    ) -> Result<Tensor> {
        let modules = prepared.modules.get(2 * block..2 * block + 2);
        let mut x = tokens.shallow_clone();
        for (n, m) in modules.unwrap_or_default().iter().enumerate() {
            x = self.sub_module(2 * block + n, m, x, n > 0, reuse)?;
        }
        Ok(x)
    }

    /// The tokens after sub-module `index`; `own`: nobody else holds `x`.
    fn sub_module(
        &self,
        index: usize,
        m: &Modulation,
        x: Tensor,
        own: bool,
        reuse: &mut dyn Reuse,
    ) -> Result<Tensor> {
        let c = &self.config;
        let module = SubModule::at(index);
        let block = &self.blocks[module.block];
        let out = reuse.run(module, &mut || {
            let eps = c.block_norm_eps(module.kind);
            let modulated = ops::modulate(&x, &m.shift, &m.factor, eps)?;
            match module.kind {
                SubModuleKind::Attention => block.attention(&modulated, c.heads),
                SubModuleKind::Mlp => block.mlp(&modulated),
            }
        })?;
        let mut x = x;
        Ok(match !own || ops::grad_enabled() {
            true => x.f_addcmul(&m.gate, &out)?,
            false => x.f_addcmul_(&m.gate, &out)?,
        })
    }

    /// The last layer: the output of tokens `[N, P, width]` that have gone through all blocks, as [`run`](Self::run) gives it.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn finish(&self, prepared: &Prepared, tokens: &Tensor) -> Result<Tensor> {
        let c = &self.config;
        let x = self.entering(prepared, self.blocks.len(), tokens)?;
        let x = self.last.forward(&x, Activation::None)?;
        let (n, g, p) = (x.size()[0], c.input_size / c.patch, c.patch);
        let x = x.f_view([n, g, g, p, p, c.output_channels()])?;
        let x = x.f_permute([0, 5, 1, 3, 2, 4])?;
        Ok(
            x.f_reshape([n, c.output_channels(), c.input_size, c.input_size])?
                .f_to_kind(Kind::Float)?,
        )
    }

    /// What the attention of `block` gets of these tokens; at the depth, what the last layer gets.
    fn entering(&self, prepared: &Prepared, block: usize, x: &Tensor) -> Result<Tensor> {
        let (shift, factor, eps) = match prepared.modules.get(2 * block) {
            Some(m) => {
                let eps = self.config.block_norm_eps(SubModuleKind::Attention);
                (&m.shift, &m.factor, eps)
            }
            None => (&prepared.last.0, &prepared.last.1, embed::NORM_EPS),
        };
        Ok(ops::modulate(x, shift, factor, eps)?)
    }

    /// [`prepare`](Self::prepare) and [`run`](Self::run).
    ///
    /// # Errors
    /// As theirs.
    pub fn forward(
        &self,
        x: &Tensor,
        t: &Tensor,
        y: &Tensor,
        reuse: &mut dyn Reuse,
    ) -> Result<Tensor> {
        self.run(&self.prepare(x, t, y)?, reuse)
    }
}

impl Block {
    fn attention(&self, x: &Tensor, heads: i64) -> Result<Tensor> {
        let (n, tokens, width) = x.size3()?;
        let qkv = self.qkv.forward(x, Activation::None)?;
        let qkv = qkv.f_view([n, tokens, 3, heads, width / heads])?;
        let qkv = qkv.f_permute([2, 0, 3, 1, 4])?;
        let out = Tensor::f_scaled_dot_product_attention(
            &qkv.f_get(0)?,
            &qkv.f_get(1)?,
            &qkv.f_get(2)?,
            None::<Tensor>,
            0.,
            false,
            None,
            false,
        )?;
        let out = out.f_transpose(1, 2)?.f_reshape([n, tokens, width])?;
        self.projection.forward(&out, Activation::None)
    }

    fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.fc1.forward(x, Activation::Gelu)?;
        self.fc2.forward(&hidden, Activation::None)
    }
}

#[cfg(test)]
mod tests;
