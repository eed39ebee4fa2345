//! Sets of weights in a few dispatches, against one call for each and against one weight of as many elements.
use weightnorm::{
    Axis, DType, Eps, Error, Gpu, Gradients, NormalizeBackward, Recorder, SetMember, Tensor, WeightNorm, WeightSet, cpu,
};

use crate::problem::{Failure, numbers, read, relative_error, sample};
use crate::ratio::Call;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetOp {
    RowNorms,
    Normalize,
    Backward,
}

impl SetOp {
    pub const ALL: [SetOp; 3] = [SetOp::RowNorms, SetOp::Normalize, SetOp::Backward];

    pub fn name(self) -> &'static str {
        match self {
            SetOp::RowNorms => "row_norms",
            SetOp::Normalize => "normalize",
            SetOp::Backward => "normalize_backward",
        }
    }
}

/// How the layers are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetForm {
    Set,
    OneByOne,
}

/// The layers of a network, all with kept axis 0.
#[derive(Debug, Clone)]
pub struct Network {
    pub name: &'static str,
    pub layers: Vec<Vec<usize>>,
}

impl Network {
    pub fn elements(&self) -> usize {
        self.layers.iter().map(|shape| shape.iter().product::<usize>()).sum()
    }

    /// HiFi-GAN v1: conv_pre, four transposed convolutions (kept axis in), in each of their four stages three residual
    /// blocks of six convolutions, conv_post.
    pub fn generator() -> Network {
        let mut layers = vec![vec![512, 80, 7]];
        for (channels, kernel) in [(512, 16), (256, 16), (128, 4), (64, 4)] {
            layers.push(vec![channels, channels / 2, kernel]);
            for kernel in [3, 7, 11] {
                layers.extend(vec![vec![channels / 2, channels / 2, kernel]; 6]);
            }
        }
        layers.push(vec![1, 32, 7]);
        Network { name: "hifigan_generator", layers }
    }

    /// Its discriminators: MPD, five alike for the periods 2, 3, 5, 7, 11 (2-D convolutions), and of MSD, three alike
    /// (grouped 1-D convolutions), the two that are weight-normalized.
    pub fn discriminators() -> Network {
        let mut layers = vec![];
        for _period in [2, 3, 5, 7, 11] {
            for (out, ins, kernel) in
                [(32, 1, 5), (128, 32, 5), (512, 128, 5), (1024, 512, 5), (1024, 1024, 5), (1, 1024, 3)]
            {
                layers.push(vec![out, ins, kernel, 1]);
            }
        }
        for _scale in 0..2 {
            for (out, ins, kernel) in [
                (128, 1, 15),
                (128, 32, 41),
                (256, 8, 41),
                (512, 16, 41),
                (1024, 32, 41),
                (1024, 64, 41),
                (1024, 1024, 5),
                (1, 1024, 3),
            ] {
                layers.push(vec![out, ins, kernel]);
            }
        }
        Network { name: "hifigan_discriminators", layers }
    }

    /// 100 layers from 1x128 to 1024x5120, each some 11 % larger than the one before; columns in multiples of 8.
    pub fn hundred() -> Network {
        let layer = |i: usize| {
            let share = i as f64 / 99.0;
            let columns = 128.0 * 40f64.powf(share) / 8.0;
            vec![1024f64.powf(share).round() as usize, 8 * columns.round() as usize]
        };
        Network { name: "100_layers", layers: (0..100).map(layer).collect() }
    }

    /// As many elements in one weight of as many columns as the last layer has, to within a row.
    pub fn as_one(&self) -> Network {
        let columns = self.layers.last().map_or(1, |shape| shape[1..].iter().product());
        Network { name: "one_weight", layers: vec![vec![self.elements() / columns, columns]] }
    }
}

/// A network on the device, its tensors of each kind in one buffer.
pub struct Prepared {
    gpu: Gpu,
    network: Network,
    op: SetOp,
    form: SetForm,
    v: Vec<Tensor>,
    g: Vec<Tensor>,
    dw: Vec<Tensor>,
    w: Vec<Tensor>,
    norms: Vec<Tensor>,
    data: [Vec<f32>; 3],
    set: WeightSet,
}

impl Prepared {
    pub fn new(gpu: &Gpu, network: &Network, dtype: DType, op: SetOp, form: SetForm) -> Result<Prepared, Failure> {
        let count: usize = network.elements();
        let norms: usize = network.layers.iter().map(|shape| shape[0]).sum();
        let all = |wanted: bool, dtype| {
            let shapes: Vec<_> = network.layers.iter().map(|s| (if wanted { &s[..] } else { &[0] }, dtype)).collect();
            gpu.tensors(&shapes)
        };
        let flat: Vec<[usize; 1]> = network.layers.iter().map(|s| [s[0]]).collect();
        let vectors = || gpu.tensors(&flat.iter().map(|s| (&s[..], DType::F32)).collect::<Vec<_>>());
        let backward = op == SetOp::Backward;
        let (v, dw) = (all(true, dtype)?, all(backward, dtype)?);
        let (w, g, per_norm) = (all(op != SetOp::RowNorms, dtype)?, vectors()?, vectors()?);
        let data = [numbers(1, count), numbers(2, norms), numbers(3, if backward { count } else { 0 })];
        for (tensors, data) in [&v, &g, &dw].into_iter().zip(&data) {
            let mut at = 0;
            for tensor in tensors {
                let own = &data[at..at + tensor.len()];
                at += tensor.len();
                let bytes = match tensor.dtype() {
                    DType::F32 => bytemuck::cast_slice(own).to_vec(),
                    DType::F16 => bytes_of(own, |a| half::f16::from_f32(a).to_ne_bytes()),
                    DType::Bf16 => bytes_of(own, |a| half::bf16::from_f32(a).to_ne_bytes()),
                };
                let whole = bytes.len() / 4 * 4;
                gpu.queue().write_buffer(tensor.buffer()?, tensor.offset(), &bytes[..whole]);
                if whole < bytes.len() {
                    let last = [bytes[whole], bytes[whole + 1], 0, 0];
                    gpu.queue().write_buffer(tensor.buffer()?, tensor.offset() + whole as u64, &last);
                }
            }
        }
        let member = |i: usize| {
            let member = SetMember::new(WeightNorm::new(&v[i], &g[i]));
            match op {
                SetOp::RowNorms => member.norms(&per_norm[i]),
                SetOp::Normalize => member.w(&w[i]),
                SetOp::Backward => member.dw(&dw[i]).dv(&w[i]).dg(&per_norm[i]),
            }
        };
        let set = gpu.weight_set(&(0..v.len()).map(member).collect::<Vec<_>>())?;
        let (gpu, network) = (gpu.clone(), network.clone());
        Ok(Prepared { gpu, network, op, form, v, g, dw, w, norms: per_norm, data, set })
    }

    /// Some rows of every layer against the CPU reference. Returns the dispatches it takes.
    pub fn record_and_check(&self) -> Result<u64, Failure> {
        let dispatches = self.submit(1)?;
        let (mut element, mut norm) = (0, 0);
        for (i, shape) in self.network.layers.iter().enumerate() {
            let length: usize = shape[1..].iter().product();
            let rows = sample(shape[0], 3);
            let dtype = self.v[i].dtype();
            let matrix = |data: &[f32]| -> Vec<f64> {
                let row = |&r: &usize| data[element + r * length..element + (r + 1) * length].iter();
                rows.iter().flat_map(row).map(|&a| stored(a, dtype)).collect()
            };
            let of_rows = |tensor: &Tensor, width: usize| -> Result<Vec<f64>, Error> {
                let all = read(tensor)?;
                Ok(rows.iter().flat_map(|&r| all[r * width..(r + 1) * width].to_vec()).collect())
            };
            let (v, small) = (matrix(&self.data[0]), [rows.len(), length]);
            let g: Vec<f64> = rows.iter().map(|&r| self.data[1][norm + r].into()).collect();
            let (axis, eps) = (Axis::Kept(0), Eps::default());
            let close =
                |what: &str, got: Vec<f64>, expected: Vec<f64>, dtype| self.close(i, what, &got, &expected, dtype);
            match self.op {
                SetOp::RowNorms => {
                    let expected = cpu::row_norms(&v, &small, axis, eps)?;
                    close("norms", of_rows(&self.norms[i], 1)?, expected, DType::F32)?;
                }
                SetOp::Normalize => {
                    let expected = cpu::normalize(&v, &small, Some(&g), axis, eps)?;
                    close("w", of_rows(&self.w[i], length)?, expected, dtype)?;
                }
                SetOp::Backward => {
                    let dw = matrix(&self.data[2]);
                    let (dv, dg) = cpu::normalize_backward(&dw, &v, &small, Some(&g), axis, eps)?;
                    close("dv", of_rows(&self.w[i], length)?, dv, dtype)?;
                    close("dg", of_rows(&self.norms[i], 1)?, dg, DType::F32)?;
                }
            }
            element += shape[0] * length;
            norm += shape[0];
        }
        Ok(dispatches)
    }

    /// The relative error of all elements together, as `problem.rs` has it.
    fn close(&self, layer: usize, what: &str, got: &[f64], expected: &[f64], dtype: DType) -> Result<(), Failure> {
        let length: usize = self.network.layers[layer][1..].iter().product();
        let name = || format!("set {} {} layer {layer}", self.op.name(), self.network.name);
        relative_error(&name, what, dtype, length, got, expected)
    }
}

impl Call for Prepared {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let weight = |i: usize| WeightNorm::new(&self.v[i], &self.g[i]);
        match (self.form, self.op) {
            (SetForm::Set, SetOp::RowNorms) => ops.row_norms_set(&self.set),
            (SetForm::Set, SetOp::Normalize) => ops.normalize_set(&self.set),
            (SetForm::Set, SetOp::Backward) => ops.normalize_backward_set(&self.set, false),
            (SetForm::OneByOne, SetOp::RowNorms) => {
                (0..self.v.len()).try_for_each(|i| ops.row_norms(WeightNorm::unit(&self.v[i]), &self.norms[i]))
            }
            (SetForm::OneByOne, SetOp::Normalize) => {
                (0..self.v.len()).try_for_each(|i| ops.normalize(weight(i), &self.w[i]))
            }
            (SetForm::OneByOne, SetOp::Backward) => (0..self.v.len()).try_for_each(|i| {
                let (dv, dg) = (Some(&self.w[i]), Some(&self.norms[i]));
                ops.normalize_backward(
                    NormalizeBackward::new(&self.dw[i], weight(i)),
                    &Gradients::default().dv(dv).dg(dg),
                )
            }),
        }
    }
}

fn bytes_of(values: &[f32], to: impl Fn(f32) -> [u8; 2]) -> Vec<u8> {
    values.iter().flat_map(|&a| to(a)).collect()
}

fn stored(a: f32, dtype: DType) -> f64 {
    match dtype {
        DType::F32 => a.into(),
        DType::F16 => half::f16::from_f32(a).into(),
        DType::Bf16 => half::bf16::from_f32(a).into(),
    }
}
