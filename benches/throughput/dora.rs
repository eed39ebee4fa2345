//! DoRA beside plain LoRA by the same kernels: y = x·W0ᵀ + s·(x·Aᵀ)·Bᵀ of three products, without norms.
use weightnorm::{
    Activation, DType, Dora, DoraWeight, Eps, Error, Gpu, Gradients, Linear, LinearBackward, Recorder, Tensor, cpu,
};

use crate::problem::{Failure, numbers, read, relative_error, sample};
use crate::ratio::Call;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoraForm {
    /// Norms of each call, as in training; those of W0 are known.
    Fused,
    /// With the norms of all known, as in inference.
    Known,
    /// Without norms and magnitude.
    Lora,
}

/// Batch, in_features, out_features and rank.
pub type Size = [usize; 4];

pub const SIZES: [Size; 3] = [[2048, 512, 512, 8], [2048, 1024, 1024, 16], [1, 1024, 1024, 16]];

const SCALING: f32 = 2.0;

/// A layer on the device.
pub struct Prepared {
    gpu: Gpu,
    size: Size,
    form: DoraForm,
    /// Of x, W0, A, B and m.
    inputs: [Vec<f32>; 5],
    tensors: [Tensor; 5],
    base_norms: Tensor,
    norms: Tensor,
    /// s·Bᵀ, as LoRA multiplies by it, and A·xᵀ.
    scaled_b: Tensor,
    hidden: Tensor,
    y: Tensor,
    /// Of y's shape.
    like: Tensor,
}

impl Prepared {
    pub fn new(gpu: &Gpu, size: Size, form: DoraForm) -> Result<Prepared, Error> {
        let [batch, ins, outs, rank] = size;
        let shapes: [&[usize]; 5] = [&[batch, ins], &[outs, ins], &[rank, ins], &[outs, rank], &[outs]];
        let mut seed = 0;
        let inputs = shapes.map(|shape| {
            seed += 1;
            numbers(seed, shape.iter().product())
        });
        let upload = |i: usize| gpu.upload(&inputs[i], shapes[i]);
        let tensors = [upload(0)?, upload(1)?, upload(2)?, upload(3)?, upload(4)?];
        let [_, base, a, b, magnitude] = &tensors;
        let base_norms = gpu.row_norms(weightnorm::WeightNorm::unit(base))?;
        let norms = gpu.dora_norms(DoraWeight::new(base, a, b, magnitude, SCALING))?;
        let scaled_b: Vec<f32> = (0..rank * outs).map(|at| SCALING * inputs[3][at % outs * rank + at / outs]).collect();
        let (hidden, y) = (gpu.zeros(&[rank, batch], DType::F32)?, gpu.zeros(&[batch, outs], DType::F32)?);
        let like = gpu.zeros(&[batch, outs], DType::F32)?;
        let (scaled_b, gpu) = (gpu.upload(&scaled_b, &[rank, outs])?, gpu.clone());
        Ok(Prepared { gpu, size, form, inputs, tensors, base_norms, norms, scaled_b, hidden, y, like })
    }

    pub fn name(&self) -> String {
        let form = match self.form {
            DoraForm::Fused => "dora fused",
            DoraForm::Known => "dora known",
            DoraForm::Lora => "lora",
        };
        let [batch, ins, outs, rank] = self.size;
        format!("{form} f32 {batch}x{ins}x{outs} r{rank}")
    }

    /// One call, and the check of some rows of y. Returns the dispatches it takes.
    pub fn record_and_check(&self) -> Result<u64, Failure> {
        let dispatches = self.submit(1)?;
        self.gpu.check()?;
        let [batch, ins, outs, rank] = self.size;
        let [x, base, a, b, magnitude] = self.inputs.each_ref().map(|values| cpu::widen(values));
        let rows = sample(batch, 3);
        let of_rows = |all: &[f64], width: usize| -> Vec<f64> {
            rows.iter().flat_map(|&row| &all[row * width..][..width]).copied().collect()
        };
        let mut w = base;
        for (j, row) in w.chunks_mut(ins).enumerate() {
            for (r, b) in b[j * rank..][..rank].iter().enumerate() {
                row.iter_mut().zip(&a[r * ins..]).for_each(|(w, a)| *w += f64::from(SCALING) * b * a);
            }
        }
        if self.form != DoraForm::Lora {
            w = cpu::normalize(&w, &[outs, ins], Some(&magnitude), weightnorm::Axis::Kept(0), Eps::default())?;
        }
        let x = of_rows(&x, ins);
        let expected = cpu::linear(&x, &[rows.len(), ins], &w, &[outs, ins], None, Activation::None)?;
        let got = of_rows(&read(&self.y)?, outs);
        relative_error(&|| self.name(), "y", DType::F32, ins + rank, &got, &expected)?;
        Ok(dispatches)
    }
}

impl Call for Prepared {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let [x, base, a, b, magnitude] = &self.tensors;
        let weight = DoraWeight::new(base, a, b, magnitude, SCALING).base_norms(&self.base_norms);
        match self.form {
            DoraForm::Fused => ops.dora(Dora::new(x, weight), &self.y),
            DoraForm::Known => ops.dora(Dora::new(x, weight.norms(&self.norms)), &self.y),
            DoraForm::Lora => {
                ops.linear(Linear::new(x, base), &self.y)?;
                ops.linear(Linear::new(a, x), &self.hidden)?;
                // y += (A·xᵀ)ᵀ·(s·Bᵀ), as the gradient of a weight of y's shape, of which the shape alone matters.
                let onto = LinearBackward::new(&self.scaled_b, &self.like, &self.hidden);
                ops.linear_backward(onto, &Gradients::default().dv(&self.y).accumulate(true))
            }
        }
    }
}
