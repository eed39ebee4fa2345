//! The bytes and operations of every operator against formulas written out, through profiles on wgpu's `noop` backend.
use weightnorm::internals::Kind;
use weightnorm::{
    Activation, ActivationBackward, Adam, Axis, Conv, Cosine, CosineBackward, Cost, DType, DataDependentInit,
    Decompose, Dora, DoraWeight, Element, Eps, Error, Gpu, Gradients, Linear, LinearBackward, MeanOnlyBatchNorm,
    MeanOnlyBatchNormBackward, NormalizeBackward, Options, Parameter, Recorder, Recurrent, RecurrentSaved, Sgd, Tensor,
    Timing, WeightNorm,
};

fn noop() -> Gpu {
    let (device, queue) = wgpu::Device::noop(&wgpu::DeviceDescriptor::default());
    Gpu::from_wgpu(device, queue, Options::default().kind(Kind::Gpu)).expect("WebGPU's default limits will do")
}

/// The work of the one operator that `record` records.
fn work(gpu: &Gpu, name: &str, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>) -> [u64; 3] {
    let mut dispatch_count = 0;
    let profile = gpu.profile_by(Timing::Wall, |ops| {
        record(ops)?;
        dispatch_count = ops.dispatch_count();
        Ok(())
    });
    let profile = profile.unwrap();
    assert_eq!(profile.dispatch_count() as u64, dispatch_count, "{name}");
    let [operator] = &profile.operators[..] else { panic!("{name}: {:?}", profile.operators) };
    assert_eq!(operator.name, name);
    let Cost { read, written, operations } = operator.cost;
    [read, written, operations]
}

/// x `[B, K]` in f16, v `[N, K]` in bf16, the others f32.
const B: u64 = 10;
const K: u64 = 14;
const N: u64 = 6;

struct Layer {
    gpu: Gpu,
    x: Tensor,
    v: Tensor,
    g: Tensor,
    bias: Tensor,
    norms: Tensor,
    u: Tensor,
    y: Tensor,
}

impl Layer {
    fn new() -> Layer {
        let gpu = noop();
        let zeros = |shape: &[u64], dtype| {
            let shape: Vec<usize> = shape.iter().map(|&s| s as usize).collect();
            gpu.zeros(&shape, dtype).unwrap()
        };
        let (x, v) = (zeros(&[B, K], DType::F16), zeros(&[N, K], DType::Bf16));
        let [g, bias, norms] = [(); 3].map(|()| zeros(&[N], DType::F32));
        let [u, y] = [(); 2].map(|()| zeros(&[B, N], DType::F32));
        Layer { x, v, g, bias, norms, u, y, gpu }
    }

    fn zeros(&self, shape: &[u64]) -> Tensor {
        let shape: Vec<usize> = shape.iter().map(|&s| s as usize).collect();
        self.gpu.zeros(&shape, f32::DTYPE).unwrap()
    }
}

#[test]
fn work_of_rows() {
    let Layer { gpu, v, g, norms, .. } = &Layer::new();
    let weight = WeightNorm::new(v, g);
    let w = gpu.zeros(v.shape(), DType::F32).unwrap();
    let run = |name, record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| work(gpu, name, record);
    let (v_bytes, rows) = (2 * N * K, 4 * N);
    assert_eq!(
        run("row_norms", &|ops| ops.row_norms(WeightNorm::unit(v).eps(Eps::None), norms)),
        [v_bytes, rows, 2 * N * K]
    );
    assert_eq!(run("normalize", &|ops| ops.normalize(weight, &w)), [v_bytes + rows, 4 * N * K, 3 * N * K]);
    assert_eq!(run("normalize", &|ops| ops.normalize(weight.norms(norms), &w)), [v_bytes + 2 * rows, 4 * N * K, N * K]);
    assert_eq!(
        run("normalize_in_place", &|ops| ops.normalize_in_place(WeightNorm::unit(v))),
        [v_bytes, v_bytes, 3 * N * K]
    );
    let copy = gpu.zeros(v.shape(), v.dtype()).unwrap();
    assert_eq!(
        run("decompose", &|ops| ops.decompose(Decompose::new(v).eps(Eps::None), &copy, norms)),
        [v_bytes, v_bytes + rows, 2 * N * K]
    );
    let (dv, dg) = (gpu.zeros(v.shape(), v.dtype()).unwrap(), gpu.zeros(g.shape(), DType::F32).unwrap());
    assert_eq!(
        run("normalize_backward", &|ops| ops
            .normalize_backward(NormalizeBackward::new(&w, weight), &Gradients::default().dv(&dv).dg(&dg))),
        [4 * N * K + v_bytes + rows, v_bytes + rows, 7 * N * K]
    );
    assert_eq!(
        run("normalize_backward", &|ops| {
            ops.normalize_backward(
                NormalizeBackward::new(&w, weight.norms(norms)),
                &Gradients::default().dg(&dg).accumulate(true),
            )
        }),
        [4 * N * K + v_bytes + 3 * rows, rows, 2 * N * K]
    );
}

#[test]
fn work_of_linear() {
    let Layer { gpu, x, v, g, bias, norms, u, y } = &Layer::new();
    let weight = WeightNorm::new(v, g);
    let run = |record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| work(gpu, "linear", record);
    let (inputs, y_bytes, row, product) = (2 * B * K + 2 * N * K, 4 * B * N, 4 * N, 2 * B * N * K);
    assert_eq!(run(&|ops| ops.linear(Linear::new(x, v), y)), [inputs, y_bytes, product]);
    assert_eq!(
        run(&|ops| ops.linear(Linear::new(x, weight).bias(bias), y)),
        [inputs + 2 * row, y_bytes, product + 2 * N * K]
    );
    assert_eq!(run(&|ops| ops.linear(Linear::new(x, weight.norms(norms)), y)), [inputs + 2 * row, y_bytes, product]);
    assert_eq!(
        run(&|ops| ops.linear(Linear::new(x, weight).norms(norms).u(u), y)),
        [inputs + row, 2 * y_bytes + row, product + 2 * N * K]
    );
    let (one, whole_y) = (gpu.zeros(&[1], DType::F32).unwrap(), WeightNorm::unit(v).axis(Axis::Whole));
    assert_eq!(run(&|ops| ops.linear(Linear::new(x, whole_y), y)), [inputs, y_bytes, product + 2 * N * K]);
    assert_eq!(run(&|ops| ops.linear(Linear::new(x, whole_y.norms(&one)), y)), [inputs + 4, y_bytes, product]);
}

#[test]
fn work_of_linear_backward() {
    let layer = Layer::new();
    let Layer { gpu, x, v, g, bias: dbias, norms, u, y: dy } = &layer;
    let (dx, dv, dg) = (layer.zeros(&[B, K]), layer.zeros(&[N, K]), layer.zeros(&[N]));
    let known = WeightNorm::new(v, g).norms(norms);
    let none = Gradients::default();
    let run = |record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| work(gpu, "linear_backward", record);
    let (x_bytes, v_bytes, y_bytes, row, product) = (2 * B * K, 2 * N * K, 4 * B * N, 4 * N, 2 * B * N * K);

    let all = none.dx(&dx).dv(&dv).dg(&dg).dbias(dbias);
    assert_eq!(
        run(&|ops| ops.linear_backward(LinearBackward::new(x, known, dy).u(u), &all)),
        [x_bytes + v_bytes + 2 * y_bytes + 2 * row, 4 * (B * K + N * K) + 2 * row, 2 * product + 3 * B * N]
    );
    // Gradients that are added to are read as well; dx never is.
    assert_eq!(
        run(&|ops| ops.linear_backward(LinearBackward::new(x, known, dy).u(u), &all.accumulate(true))),
        [x_bytes + v_bytes + 2 * y_bytes + 4 * row + 4 * N * K, 4 * (B * K + N * K) + 2 * row, 2 * product + 3 * B * N]
    );
    let unknown = WeightNorm::new(v, g);
    assert_eq!(
        run(&|ops| ops.linear_backward(LinearBackward::new(x, unknown, dy).u(u), &none.dx(&dx))),
        [v_bytes + y_bytes + row, 4 * B * K, product + 2 * N * K]
    );
    assert_eq!(
        run(&|ops| ops.linear_backward(LinearBackward::new(x, known, dy).u(u), &none.dg(&dg))),
        [2 * y_bytes + row, row, 2 * B * N]
    );
    assert_eq!(
        run(&|ops| ops.linear_backward(LinearBackward::new(x, v, dy), &none.dv(&dv).dbias(dbias))),
        [x_bytes + y_bytes, 4 * N * K + row, product + B * N]
    );
    // Behind an activation u, g and the bias tell where its derivative is taken, and dz is an operation on each element.
    let behind = LinearBackward::new(x, known, dy).activation(Activation::Silu).u(u).bias(norms);
    assert_eq!(run(&|ops| ops.linear_backward(behind, &none.dbias(dbias))), [2 * y_bytes + 2 * row, row, 2 * B * N]);
    let request = ActivationBackward::new(Activation::Silu, u, dy);
    let of_activation = |dz| work(gpu, "activation_backward", |ops| ops.activation_backward(request, dz));
    assert_eq!([of_activation(&layer.zeros(&[B, N])), of_activation(dy)], [[2 * y_bytes, y_bytes, B * N]; 2]);
    // Kept axis 1: dg takes the product of dy and v.
    let (g_in, norms_in, dg_in) = (layer.zeros(&[K]), layer.zeros(&[K]), layer.zeros(&[K]));
    let of_inputs = WeightNorm::new(v, &g_in).axis(Axis::Kept(1)).norms(&norms_in);
    assert_eq!(
        run(&|ops| ops.linear_backward(LinearBackward::new(x, of_inputs, dy), &none.dg(&dg_in))),
        [x_bytes + v_bytes + y_bytes + 8 * K, 4 * K, product + 2 * B * K]
    );
}

#[test]
fn work_of_batches() {
    let Layer { gpu, x, v, g, bias, norms: mean, u: t, y } = &Layer::new();
    let (t_bytes, row) = (4 * B * N, 4 * N);
    assert_eq!(
        work(gpu, "data_dependent_init", |ops| ops.data_dependent_init(DataDependentInit::new(x, v), g, bias)),
        [2 * B * K + 2 * N * K, 2 * row, 2 * B * N * K + 2 * N * K + 3 * B * N]
    );
    assert_eq!(
        work(gpu, "mean_only_batch_norm", |ops| ops
            .mean_only_batch_norm(MeanOnlyBatchNorm::new(t).bias(bias).running_mean(mean, 0.1), y)),
        [t_bytes + 2 * row, t_bytes + row, 2 * B * N]
    );
    assert_eq!(
        work(gpu, "mean_only_batch_norm", |ops| ops.mean_only_batch_norm(MeanOnlyBatchNorm::new(t).eval(mean), y)),
        [t_bytes + row, t_bytes, B * N]
    );
    assert_eq!(
        work(gpu, "mean_only_batch_norm_backward", |ops| {
            ops.mean_only_batch_norm_backward(
                MeanOnlyBatchNormBackward::new(t),
                &Gradients::default().dx(y).dbias(bias).accumulate(true),
            )
        }),
        [t_bytes + row, t_bytes + row, 2 * B * N]
    );
}

#[test]
fn work_of_optimizers() {
    let Layer { gpu, v, g, bias: dg, .. } = &Layer::new();
    let dv = gpu.zeros(v.shape(), v.dtype()).unwrap();
    let weight = Parameter::new(v, &dv).gain(g, dg);
    let (adam, sgd) = (gpu.adam_state(v, Some(g)).unwrap(), gpu.sgd_state(v, None).unwrap());
    // m and s are f32.
    let (v_bytes, row, state) = (2 * N * K, 4 * N, 8 * (N * K + N));
    assert_eq!(
        work(gpu, "adam_step", |ops| ops.adam_step(weight, &adam, 1, &Adam::new(0.1))),
        [2 * v_bytes + 2 * row + state, v_bytes + row + state, 15 * (N * K + N)]
    );
    let plain = Parameter::new(v, &dv).normalize_direction(Axis::Kept(1), Eps::default());
    assert_eq!(
        work(gpu, "sgd_step", |ops| ops.sgd_step(plain, &sgd, 1, &Sgd::new(0.1))),
        [2 * v_bytes, v_bytes, (4 + 3) * N * K]
    );
}

/// Each output position, or input position of a transposed one, goes through all taps of its group.
#[test]
fn work_of_convolutions() {
    let gpu = noop();
    let zeros = |shape: &[usize], dtype| gpu.zeros(shape, dtype).unwrap();
    let (x, v) = (zeros(&[2, 6, 20], DType::F16), zeros(&[8, 3, 5], DType::F32));
    let (g, y) = (zeros(&[8], DType::F32), zeros(&[2, 8, 16], DType::F32));
    let layer = Conv::new(&x, WeightNorm::new(&v, &g)).groups(2);
    let forward = work(&gpu, "conv", |ops| ops.conv(layer, &y));
    assert_eq!(forward, [2 * 240 + 4 * 120 + 4 * 8, 4 * 256, 2 * 256 * 15 + 2 * 120]);

    let (back_x, back_y) = (zeros(&[2, 8, 16], DType::F32), zeros(&[2, 6, 20], DType::F16));
    let back = Conv::new(&back_x, &v).groups(2);
    let transposed = work(&gpu, "conv_transposed", |ops| ops.conv_transposed(back, &back_y));
    assert_eq!(transposed, [4 * 256 + 4 * 120, 2 * 240, 2 * 256 * 15]);

    let (dx, dbias) = (zeros(&[2, 6, 20], DType::F32), zeros(&[8], DType::F32));
    let wanted = Gradients::default().dx(&dx).dbias(&dbias);
    let backward = work(&gpu, "conv_backward", |ops| ops.conv_backward(layer, &y, &wanted));
    assert_eq!(backward, [4 * 120 + 4 * 8 + 4 * 256, 4 * 240 + 4 * 8, 2 * 256 * 15 + 2 * 120]);
}

/// All of the input goes through W, all of y through U; c is read and written.
#[test]
fn work_of_recurrent_cells() {
    let gpu = noop();
    let zeros = |shape: &[usize], dtype| gpu.zeros(shape, dtype).unwrap();
    let (x, v, u) = (zeros(&[3, 2, 5], DType::F16), zeros(&[16, 5], DType::F32), zeros(&[16, 4], DType::F32));
    let (g, of_u, y, c) =
        (zeros(&[16], DType::F32), zeros(&[16], DType::F32), zeros(&[3, 2, 4], DType::F32), zeros(&[2, 4], DType::F32));
    let layer = Recurrent::lstm(&x, WeightNorm::new(&v, &g), WeightNorm::new(&u, &of_u));
    let forward = work(&gpu, "recurrent", |ops| ops.recurrent(layer.c(&c), &y));
    let weights = 4 * (80 + 16 + 64 + 16);
    assert_eq!(forward, [2 * 30 + weights + 4 * 8, 4 * 24 + 4 * 8, 2 * (30 + 24) * 16 + 2 * (80 + 64)]);

    let saved = RecurrentSaved::new(&layer, |shape| gpu.zeros(shape, DType::F32)).unwrap();
    let dx = zeros(&[3, 2, 5], DType::F32);
    let (dy, wanted, none) = (zeros(&[3, 2, 4], DType::F32), Gradients::default().dx(&dx), Gradients::default());
    let ready = layer.saved(&saved).output(&y);
    let backward = work(&gpu, "recurrent_backward", |ops| ops.recurrent_backward(ready, &dy, &wanted, &none));
    // Gates are read and written, c and norms read.
    let (gates, states, norms) = (4 * 3 * 2 * 16, 4 * 4 * 2 * 4, 4 * 32);
    let read = weights + 2 * 4 * 24 + gates + states + norms;
    assert_eq!(backward, [read, gates + 4 * 30, 2 * (30 + 24) * 16]);
}

/// As `linear`, and the norms of the rows of x besides; their gradient as that of v.
#[test]
fn work_of_cosine() {
    let layer = Layer::new();
    let Layer { gpu, x, v, g, norms, y, .. } = &layer;
    let (x_bytes, v_bytes, y_bytes, row, product) = (2 * B * K, 2 * N * K, 4 * B * N, 4 * N, 2 * B * N * K);
    let forward = work(gpu, "cosine", |ops| ops.cosine(Cosine::new(x, WeightNorm::new(v, g)), y));
    assert_eq!(forward, [x_bytes + v_bytes + row, y_bytes, product + 2 * N * K + 2 * B * K]);
    let dx = layer.zeros(&[B, K]);
    let backward = CosineBackward::new(x, WeightNorm::new(v, g).norms(norms), y);
    let backward = work(gpu, "cosine_backward", |ops| ops.cosine_backward(backward, &Gradients::default().dx(&dx)));
    assert_eq!(backward, [x_bytes + v_bytes + y_bytes + 2 * row, 4 * B * K, product + 7 * B * K]);
}

/// x·W0ᵀ, x·Aᵀ and what B makes of that; norms by A·W0ᵀ, A·Aᵀ and B, and those of W0 unless they are known.
#[test]
fn work_of_dora() {
    const R: u64 = 3;
    let layer = Layer::new();
    let Layer { gpu, x, v: base, g: magnitude, bias, norms, y, .. } = &layer;
    let (a, b, w) = (layer.zeros(&[R, K]), layer.zeros(&[N, R]), layer.zeros(&[N, K]));
    let weight = DoraWeight::new(base, &a, &b, magnitude, 2.0);
    let (parts, row) = (2 * N * K + 4 * R * K + 4 * N * R, 4 * N);
    let products = 2 * (B * K * N + B * K * R + B * R * N);
    let of_norms = 2 * R * (N * K + R * K + N * R);
    let run = |weight| work(gpu, "dora", |ops| ops.dora(Dora::new(x, weight), y));
    let (read, y_bytes) = (2 * B * K + parts + row, 4 * B * N);
    assert_eq!(run(weight), [read, y_bytes, products + of_norms + 2 * N * K]);
    assert_eq!(run(weight.base_norms(norms)), [read + row, y_bytes, products + of_norms]);
    assert_eq!(run(weight.norms(norms)), [read + row, y_bytes, products]);
    let alone = work(gpu, "dora_norms", |ops| ops.dora_norms(weight, bias));
    assert_eq!(alone, [parts, row, of_norms + 2 * N * K]);
    let merged = work(gpu, "dora_merge", |ops| ops.dora_merge(weight, &w));
    assert_eq!(merged, [parts + row, 4 * N * K, (2 * R + 4) * N * K]);
}
