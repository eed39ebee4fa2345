//! Convolutions of real models, each kind once: forward, backward and both, beside `linear` of as many rows, columns
//! and steps.
use weightnorm::{
    Axis, Conv, ConvGeometry, DType, Eps, Error, Gpu, Gradients, Recorder, Tensor, Weight, WeightNorm, cpu,
};

use crate::problem::{Failure, Form, numbers, read, relative_error, sample};
use crate::ratio::Call;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConvOp {
    Forward,
    Backward,
    Step,
}

impl ConvOp {
    pub const ALL: [ConvOp; 3] = [ConvOp::Forward, ConvOp::Backward, ConvOp::Step];
}

/// A layer of a model, and the size of its x.
#[derive(Debug, Clone, Copy)]
pub struct Layer {
    pub name: &'static str,
    transposed: bool,
    x_shape: &'static [usize],
    v_shape: &'static [usize],
    axis: Axis,
    geometry: ConvGeometry,
}

/// A second of audio each, or a training batch of a discriminator.
pub fn layers() -> Vec<Layer> {
    let geometry = ConvGeometry::default;
    let conv = |name, x_shape, v_shape, geometry| {
        let (transposed, axis) = (false, Axis::Kept(0));
        Layer { name, transposed, x_shape, v_shape, axis, geometry }
    };
    let transposed =
        |name, x_shape, v_shape, geometry| Layer { transposed: true, ..conv(name, x_shape, v_shape, geometry) };
    vec![
        conv("hifigan_pre", &[1, 80, 172], &[512, 80, 7], geometry().padding(3)),
        transposed("hifigan_up", &[1, 512, 172], &[512, 256, 16], geometry().stride(8).padding(4)),
        conv("hifigan_256_k11_d5", &[1, 256, 1376], &[256, 256, 11], geometry().padding(25).dilation(5)),
        conv("hifigan_128_k7_d3", &[1, 128, 11_008], &[128, 128, 7], geometry().padding(9).dilation(3)),
        conv("hifigan_64_k7_d3", &[1, 64, 22_016], &[64, 64, 7], geometry().padding(9).dilation(3)),
        conv("hifigan_32_k3", &[1, 32, 44_032], &[32, 32, 3], geometry().padding(1)),
        conv("hifigan_post", &[1, 32, 44_032], &[1, 32, 7], geometry().padding(3)),
        conv("mpd_512", &[4, 512, 152, 2], &[1024, 512, 5, 1], geometry().padding([2, 0]).stride([3, 1])),
        conv("msd_256_g16", &[4, 256, 512], &[512, 16, 41], geometry().padding(20).stride(4).groups(16)),
        conv("snac_depthwise", &[1, 768, 688], &[768, 1, 7], geometry().padding(3).groups(768)),
        conv("waveglow_k1", &[1, 256, 2000], &[512, 256, 1], geometry()),
        conv("tcn_25_k7_d32", &[32, 25, 784], &[25, 25, 7], geometry().padding((192, 0)).dilation(32)),
        Layer {
            axis: Axis::Kept(2),
            ..conv("wav2vec2", &[1, 768, 499], &[768, 48, 128], geometry().padding((64, 63)).groups(16))
        },
    ]
}

impl Layer {
    pub fn y_shape(&self) -> Result<Vec<usize>, Error> {
        let shape = if self.transposed { ConvGeometry::conv_transposed_shape } else { ConvGeometry::conv_shape };
        shape(&self.geometry, self.x_shape, self.v_shape)
    }

    /// Multiply-adds.
    pub fn work(&self) -> usize {
        let y: usize = self.y_shape().map_or(0, |shape| shape.iter().product());
        let windows = if self.transposed { self.x_shape.iter().product() } else { y };
        windows * self.v_shape[1..].iter().product::<usize>()
    }

    /// Rows, steps and columns of `linear` that multiplies as much, and all groups of it as one.
    pub fn as_linear(&self) -> Result<[usize; 3], Error> {
        let (y, taps) = (self.y_shape()?, self.v_shape[1..].iter().product::<usize>());
        let positions = |shape: &[usize]| shape[0] * shape[2..].iter().product::<usize>();
        let stride = positions(&y).div_ceil(positions(self.x_shape));
        Ok(match self.transposed {
            false => [positions(&y), taps, self.v_shape[0]],
            // A row is a position of x, a column a channel at a phase of the stride.
            true => [positions(self.x_shape), self.work() / positions(self.x_shape) / (y[1] * stride), y[1] * stride],
        })
    }
}

/// A layer on the device.
pub struct Prepared {
    gpu: Gpu,
    layer: Layer,
    op: ConvOp,
    form: Form,
    inputs: [Vec<f32>; 5],
    x: Tensor,
    v: Tensor,
    g: Tensor,
    bias: Tensor,
    dy: Tensor,
    y: Tensor,
    dx: Tensor,
    dv: Tensor,
    dg: Tensor,
    dbias: Tensor,
}

impl Prepared {
    pub fn new(gpu: &Gpu, layer: Layer, op: ConvOp, form: Form) -> Result<Prepared, Error> {
        let y_shape = layer.y_shape()?;
        let norms = match layer.axis {
            Axis::Kept(axis) => layer.v_shape[axis],
            Axis::Whole => 1,
        };
        let shapes: [&[usize]; 5] = [layer.x_shape, layer.v_shape, &[norms], &[y_shape[1]], &y_shape];
        let mut seed = 0;
        let inputs = shapes.map(|shape| {
            seed += 1;
            numbers(seed, shape.iter().product())
        });
        let upload = |i: usize| gpu.upload(&inputs[i], shapes[i]);
        let zeros = |i: usize| gpu.zeros(shapes[i], DType::F32);
        let [x, v, g, bias, dy] = [upload(0)?, upload(1)?, upload(2)?, upload(3)?, upload(4)?];
        let [dx, dv, dg, dbias, y] = [zeros(0)?, zeros(1)?, zeros(2)?, zeros(3)?, zeros(4)?];
        let gpu = gpu.clone();
        Ok(Prepared { gpu, layer, op, form, inputs, x, v, g, bias, dy, y, dx, dv, dg, dbias })
    }

    pub fn name(&self) -> String {
        let op = match self.op {
            ConvOp::Forward => "conv",
            ConvOp::Backward => "conv_backward",
            ConvOp::Step => "conv_step",
        };
        let form = if self.form == Form::Plain { "plain" } else { "fused" };
        format!("{op} {form} f32 {}", self.layer.name)
    }

    /// One call and the check of what it leaves: some elements of y, and of the gradients what they have to give when
    /// they are multiplied by what they belong to, since the layer is linear in each.
    pub fn record_and_check(&self) -> Result<(), Failure> {
        self.wall(1)?;
        if self.op != ConvOp::Backward {
            self.check_y()?;
        }
        if self.op == ConvOp::Forward {
            return Ok(());
        }
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let [x, v, g, _, dy] = self.wide();
        let (dx, dv, dg) = (read(&self.dx)?, read(&self.dv)?, read(&self.dg)?);
        let of_y = dot(&dx, &x);
        let of_weight = if self.form == Form::Plain { dot(&dv, &v) } else { dot(&dg, &g) };
        // Errors of the terms are of either sign.
        let size = dx.iter().zip(&x).map(|(a, b)| (a * b).powi(2)).sum::<f64>().sqrt();
        if (of_y - of_weight).abs() > 1e-4 * size {
            return Err(format!("{}: Σ dx·x is {of_y}, of the weight {of_weight}", self.name()).into());
        }
        let channels = self.dy.shape()[1];
        let positions = dy.len() / channels / self.dy.shape()[0];
        let mut dbias = vec![0.0; channels];
        dy.iter().enumerate().for_each(|(at, dy)| dbias[at / positions % channels] += dy);
        self.compare("dbias", positions, &read(&self.dbias)?, &dbias)
    }

    fn wide(&self) -> [Vec<f64>; 5] {
        self.inputs.each_ref().map(|values| cpu::widen(values))
    }

    /// Some images, channels and positions of y, each by its own sum.
    fn check_y(&self) -> Result<(), Failure> {
        let [x, v, g, bias, _] = self.wide();
        let w = match self.form {
            Form::Plain => v,
            _ => cpu::normalize(&v, self.layer.v_shape, Some(&g), self.layer.axis, Eps::default())?,
        };
        // One image and a few channels, whole: a group at most of each.
        let (y_shape, geometry) = (self.layer.y_shape()?, self.layer.geometry);
        let [outs, ins] = [y_shape[1], self.x.shape()[1]].map(|channels| channels / geometry.groups);
        let all = read(&self.y)?;
        let group = geometry.groups - 1;
        let (x_size, y_size) = (x.len() / self.x.shape()[0] / self.x.shape()[1], all.len() / y_shape[0] / y_shape[1]);
        let image = self.x.shape()[0] - 1;
        let x_first = (image * self.x.shape()[1] + group * ins) * x_size;
        let x = &x[x_first..x_first + ins * x_size];
        let x_shape = [&[1, ins][..], &self.layer.x_shape[2..]].concat();
        let taps: usize = self.layer.v_shape[2..].iter().product();
        let geometry = geometry.groups(1);
        let (mut got, mut expected) = (vec![], vec![]);
        for channel in sample(outs, 2) {
            let out = group * outs + channel;
            let row = |p: usize, q: usize| &w[(p * self.layer.v_shape[1] + q) * taps..][..taps];
            let (of_channel, w_shape): (Vec<f64>, _) = match self.layer.transposed {
                false => ((0..ins).flat_map(|q| row(out, q)).copied().collect(), [1, ins]),
                true => ((0..ins).flat_map(|p| row(group * ins + p, channel)).copied().collect(), [ins, 1]),
            };
            let w_shape = [&w_shape[..], &self.layer.v_shape[2..]].concat();
            let conv = if self.layer.transposed { cpu::conv_transposed } else { cpu::conv };
            let bias = Some(&bias[out..out + 1]);
            expected.extend(conv(x, &x_shape, &of_channel, &w_shape, bias, &geometry, &cpu::ConvEnds::default())?);
            got.extend(&all[(image * y_shape[1] + out) * y_size..][..y_size]);
        }
        self.compare("y", ins * taps, &got, &expected)
    }

    fn compare(&self, what: &str, depth: usize, got: &[f64], expected: &[f64]) -> Result<(), Failure> {
        relative_error(&|| self.name(), what, DType::F32, depth, got, expected)
    }

    fn request(&self) -> Conv<'_> {
        let weight = match self.form {
            Form::Plain => Weight::Plain(&self.v),
            _ => Weight::Normalized(WeightNorm::new(&self.v, &self.g).axis(self.layer.axis)),
        };
        Conv::new(&self.x, weight).geometry(self.layer.geometry)
    }
}

impl Call for Prepared {
    fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error> {
        let (conv, transposed) = (self.request(), self.layer.transposed);
        if self.op != ConvOp::Backward {
            let conv = conv.bias(&self.bias);
            if transposed { ops.conv_transposed(conv, &self.y) } else { ops.conv(conv, &self.y) }?;
        }
        if self.op == ConvOp::Forward {
            return Ok(());
        }
        let dg = (self.form != Form::Plain).then_some(&self.dg);
        let wanted = Gradients::default().dx(&self.dx).dv(&self.dv).dg(dg).dbias(&self.dbias);
        match transposed {
            false => ops.conv_backward(conv, &self.dy, &wanted),
            true => ops.conv_transposed_backward(conv, &self.dy, &wanted),
        }
    }
}
