//! The host layer on wgpu's `noop` backend: everything but the numbers, without a driver. wgpu validates every call as
//! on a real device.
use std::sync::LazyLock;

use proptest::prelude::*;
use weightnorm::internals::Kind;
use weightnorm::{
    Activation, Adam, ArgumentError, Axis, Conv, Cosine, CosineBackward, DType, DataDependentInit, Decompose,
    DeviceError, Eps, Error, Gpu, Gradients, LimitError, Linear, LinearBackward, MeanOnlyBatchNorm,
    MeanOnlyBatchNormBackward, NormalizeBackward, Options, Parameter, ParameterPassing, Recorder, SetMember, Sgd,
    Tensor, Tile, WeightNorm,
};

use crate::{misuse, ranges};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];
const AXES: [Axis; 3] = [Axis::Kept(0), Axis::Kept(1), Axis::Whole];

fn adopt(parameters: ParameterPassing, change: impl FnOnce(&mut wgpu::Limits)) -> Result<Gpu, Error> {
    let mut required_limits = wgpu::Limits { max_immediate_size: 64, ..wgpu::Limits::default() };
    change(&mut required_limits);
    let required_features = wgpu::Features::IMMEDIATES;
    let descriptor = wgpu::DeviceDescriptor { required_features, required_limits, ..Default::default() };
    let (device, queue) = wgpu::Device::noop(&descriptor);
    Gpu::from_wgpu(device, queue, Options::default().parameter_passing(parameters).kind(Kind::Gpu))
}

fn noop() -> Gpu {
    adopt(ParameterPassing::Auto, |_| ()).expect("WebGPU's default limits will do")
}

/// The dispatches that `record` records.
fn dispatches(gpu: &Gpu, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>) -> Result<u64, Error> {
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut ops = gpu.record(&mut encoder);
    record(&mut ops)?;
    let count = ops.dispatch_count();
    drop(ops);
    gpu.queue().submit([encoder.finish()]);
    Ok(count)
}

#[test]
fn noop_misuse_is_refused() {
    misuse::is_refused(&noop(), &noop()).unwrap();
    misuse::tensors_are_refused(&noop()).unwrap();
}

#[test]
fn noop_numbers_out_of_range_are_refused() {
    ranges::are_refused(&noop()).unwrap();
}

/// Both norms are those of the product.
#[test]
fn noop_cosine_is_one_dispatch() {
    let gpu = noop();
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32).unwrap();
    let (x, v, g, y) = (zeros(&[64, 384]), zeros(&[4096, 384]), zeros(&[4096]), zeros(&[64, 4096]));
    let weight = WeightNorm::new(&v, &g);
    assert_eq!(dispatches(&gpu, |ops| ops.cosine(Cosine::new(&x, weight), &y)).unwrap(), 1);
    // The factors and the gain, x̂, both products, and x from x̂.
    let (u, dx, dv, dg) = (zeros(&[64, 4096]), zeros(&[64, 384]), zeros(&[4096, 384]), zeros(&[4096]));
    let wanted = Gradients::default().dx(&dx).dv(&dv).dg(&dg);
    let backward = CosineBackward::new(&x, weight.norms(&g), &y).u(&u).tile(Tile::Tile64x64);
    assert_eq!(dispatches(&gpu, |ops| ops.cosine_backward(backward, &wanted)).unwrap(), 5);
}

#[test]
fn noop_tensors_come_back() {
    misuse::tensors_come_back(&noop()).unwrap();
}

fn no_uniforms(limits: &mut wgpu::Limits, buffers: u32, bytes: u64) {
    limits.max_immediate_size = 0;
    limits.max_uniform_buffers_per_shader_stage = buffers;
    limits.max_uniform_buffer_binding_size = bytes;
}

/// A device with less than WebGPU's defaults, limit by limit.
#[test]
fn noop_small_devices_are_unsupported() {
    type Change = fn(&mut wgpu::Limits);
    let lower: [(&str, Change); 12] = [
        ("storage buffers", |l| l.max_storage_buffers_per_shader_stage = 7),
        ("workgroup memory", |l| l.max_compute_workgroup_storage_size = 16_383),
        ("invocations in a workgroup", |l| l.max_compute_invocations_per_workgroup = 127),
        ("invocations along x", |l| l.max_compute_workgroup_size_x = 127),
        ("workgroups in a dimension", |l| l.max_compute_workgroups_per_dimension = 0),
        ("bindings in a bind group", |l| l.max_bindings_per_bind_group = 15),
        ("bindings of 8192 bytes", |l| l.max_storage_buffer_binding_size = 8191),
        ("multiples of 256", |l| l.min_storage_buffer_offset_alignment = 512),
        // Neither immediates nor a uniform buffer.
        ("64 bytes of immediates, or a uniform buffer", |l| no_uniforms(l, 0, 0)),
        ("64 bytes of immediates, or a uniform buffer", |l| no_uniforms(l, 1, 48)),
        ("64 bytes of immediates, or a uniform buffer", |l| no_uniforms(l, 0, 65_536)),
        ("64 bytes of immediates, or a uniform buffer", |l| no_uniforms(l, 0, 64)),
    ];
    for (what, change) in lower {
        match adopt(ParameterPassing::Auto, change) {
            Err(Error::Device(DeviceError::Unsupported { what: text })) => assert!(text.contains(what), "{text}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

/// Uniform parameters where the device has no immediates, or too few of them.
#[test]
fn noop_parameters_follow_the_device() {
    // No uniform buffer is needed with immediates, unless it is asked for.
    let bare = |l: &mut wgpu::Limits| l.max_uniform_buffers_per_shader_stage = 0;
    let gpu = adopt(ParameterPassing::Auto, bare).unwrap();
    gpu.row_norms(WeightNorm::unit(&gpu.zeros(&[2, 2], DType::F32).unwrap()).axis(Axis::Whole).eps(Eps::None)).unwrap();
    match adopt(ParameterPassing::Uniform, bare) {
        Err(Error::Device(DeviceError::Unsupported { what })) => {
            assert!(what.contains("uniform buffers of 128 bytes"), "{what}")
        }
        other => panic!("{other:?}"),
    }
    // The parameters of convolutions are more than 64 bytes.
    let small = |uniforms| {
        adopt(ParameterPassing::Auto, move |l| {
            (l.max_immediate_size, l.max_uniform_buffers_per_shader_stage) = (64, uniforms);
        })
    };
    for uniforms in [0, 1] {
        let gpu = small(uniforms).unwrap();
        let (x, v) = (gpu.zeros(&[1, 2, 9], DType::F32).unwrap(), gpu.zeros(&[3, 2, 3], DType::F32).unwrap());
        match gpu.conv(Conv::new(&x, &v)) {
            Ok(_) if uniforms == 1 => {}
            Err(Error::Device(DeviceError::Unsupported { what })) if uniforms == 0 => {
                assert!(what.contains("convolutions"))
            }
            other => panic!("{uniforms}: {other:?}"),
        }
    }
    assert!(noop().report().immediates);
    assert!(!adopt(ParameterPassing::Uniform, |_| ()).unwrap().report().immediates);
    assert!(!adopt(ParameterPassing::Auto, |l| l.max_immediate_size = 60).unwrap().report().immediates);
}

/// More than a buffer of the device can hold.
#[test]
fn noop_too_large() {
    let gpu = adopt(ParameterPassing::Auto, |l| l.max_buffer_size = 1 << 20).unwrap();
    for bytes in [1 << 21, 1 << 63, u64::MAX] {
        assert!(matches!(gpu.reserve(bytes), Err(Error::Limit(LimitError::TooLarge { limit: 1_048_576, .. }))));
    }
    gpu.reserve(1 << 20).unwrap();
    let error = gpu.zeros(&[2, 1 << 18], DType::F32).unwrap_err().to_string();
    let text = "zeros: a tensor of shape [2, 262144] has 2097152 bytes, the limit is 1048576. Make it in parts";
    assert_eq!(error, text);
    let (x, v) = (gpu.zeros(&[1024, 1], DType::F32).unwrap(), gpu.zeros(&[1024, 1], DType::F32).unwrap());
    let error = gpu.linear(Linear::new(&x, &v)).unwrap_err().to_string();
    assert!(error.starts_with("linear: y: a tensor of shape [1024, 1024] has 4194304 bytes"), "{error}");
}

/// Every variant of every kernel becomes a pipeline, with either kind of parameters, and wgpu finds no fault in the
/// layouts, the bindings or the dispatches.
#[test]
fn noop_builds_every_variant() {
    for parameters in [ParameterPassing::Auto, ParameterPassing::Uniform] {
        // Short bindings, so that windows are part of it.
        let gpu = adopt(parameters, |l| l.max_storage_buffer_binding_size = 16 << 10).unwrap();
        let zeros = |shape: &[usize], dtype| gpu.zeros(shape, dtype).unwrap();
        for dtype in DTYPES {
            for shape in [&[70, 90][..], &[3, 5], &[2, 40_001], &[9, 40, 7], &[2, 3, 300]] {
                let v = zeros(shape, dtype);
                for axis in AXES {
                    let kept = if let Axis::Kept(k) = axis { shape[k] } else { 1 };
                    let g = zeros(&[kept], DType::F32);
                    let weight = WeightNorm::new(&v, &g).axis(axis);
                    gpu.normalize(weight).unwrap();
                    gpu.normalize(weight.norms(&g)).unwrap();
                    gpu.normalize_in_place(weight).unwrap();
                    gpu.decompose(Decompose::new(&v).axis(axis).eps(Eps::None)).unwrap();
                    for w_dtype in DTYPES {
                        let w = zeros(shape, w_dtype);
                        dispatches(&gpu, |ops| ops.normalize(weight, &w)).unwrap();
                    }
                }
            }
            let (x, v) = (zeros(&[70, 90], dtype), zeros(&[80, 90], dtype));
            let bias = zeros(&[80], DType::F32);
            let activations = [
                Activation::None,
                Activation::Relu,
                Activation::LeakyRelu(0.1),
                Activation::Elu,
                Activation::Gelu,
                Activation::GeluTanh,
                Activation::Silu,
                Activation::Tanh,
            ];
            for axis in AXES {
                let kept = if let Axis::Kept(k) = axis { v.shape()[k] } else { 1 };
                let g = zeros(&[kept], DType::F32);
                let norms = zeros(&[kept], DType::F32);
                let (unit, weight) = (WeightNorm::unit(&v).axis(axis), WeightNorm::new(&v, &g).axis(axis));
                for split in [None, Some(32)] {
                    for tile in Tile::all_on(&gpu) {
                        gpu.linear(Linear::new(&x, weight).split_length(split).tile(tile)).unwrap();
                    }
                    for activation in activations {
                        gpu.linear(Linear::new(&x, weight).bias(&bias).split_length(split).activation(activation))
                            .unwrap();
                    }
                    gpu.linear(Linear::new(&x, unit).bias(&bias).split_length(split).norms(&norms)).unwrap();
                    gpu.linear(Linear::new(&x, unit.norms(&g)).bias(&bias).split_length(split)).unwrap();
                    gpu.linear(Linear::new(&x, &v).bias(&bias).split_length(split)).unwrap();
                    for y_dtype in DTYPES {
                        let y = zeros(&[70, 80], y_dtype);
                        dispatches(&gpu, |ops| ops.linear(Linear::new(&x, weight).split_length(split), &y)).unwrap();
                    }
                }
            }
        }
        assert!(gpu.pipeline_count() > 100, "{}", gpu.pipeline_count());
    }
}

/// The fewest invocations in a workgroup: the one tile that wants more is refused, all else becomes pipelines.
#[test]
fn noop_small_workgroups() {
    let gpu = adopt(ParameterPassing::Auto, |l| {
        l.max_compute_invocations_per_workgroup = 128;
        l.max_compute_workgroup_size_x = 128;
    })
    .unwrap();
    assert!(!Tile::Tile128x128.runs_on(&gpu) && Tile::Tile128x128.runs_on(&noop()));
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32).unwrap();
    let (x, v, g, dy) = (zeros(&[70, 90]), zeros(&[80, 90]), zeros(&[80]), zeros(&[70, 80]));
    let (dx, dv, u) = (zeros(&[70, 90]), zeros(&[80, 90]), zeros(&[70, 80]));
    let weight = WeightNorm::new(&v, &g);
    let run = |tile| {
        gpu.linear(Linear::new(&x, weight).tile(tile))?;
        let wanted = Gradients::default().dx(&dx).dv(&dv);
        dispatches(&gpu, |ops| ops.linear_backward(LinearBackward::new(&x, weight, &dy).u(&u).tile(tile), &wanted))
    };
    for tile in Tile::all_on(&gpu) {
        run(tile).unwrap();
    }
    assert!(matches!(run(Tile::Tile128x128), Err(Error::Argument(ArgumentError::Variant { .. }))));
}

/// The dispatches that the documentation promises.
#[test]
fn noop_dispatch_counts() {
    let gpu = noop();
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F16).unwrap();
    let f32s = |shape: &[usize]| gpu.zeros(shape, DType::F32).unwrap();
    let eps = Eps::default();

    for (shape, axis, norm_count) in [
        (&[64, 512][..], Axis::Kept(0), 1),
        (&[100_000, 3], Axis::Kept(0), 1),
        (&[64, 512], Axis::Kept(1), 2),
        (&[8, 1_000_000], Axis::Kept(0), 2),
        (&[30, 40, 3], Axis::Kept(1), 2),
        (&[30, 40, 300], Axis::Kept(1), 2),
        (&[10, 10], Axis::Whole, 1),
        (&[1000, 1000], Axis::Whole, 2),
        (&[0, 5], Axis::Kept(1), 1),
        (&[0, 5], Axis::Kept(0), 0),
    ] {
        let (v, w) = (zeros(shape), zeros(shape));
        let kept = if let Axis::Kept(k) = axis { shape[k] } else { 1 };
        let norms = f32s(&[kept]);
        let known = f32s(&[kept]);
        let copy = u64::from(!v.is_empty());
        let weight = WeightNorm::unit(&v).axis(axis);
        let count = |record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| dispatches(&gpu, record).unwrap();
        assert_eq!(
            count(&|o| o.row_norms(WeightNorm::unit(&v).axis(axis).eps(eps), &norms)),
            norm_count,
            "{shape:?} {axis:?}"
        );
        // One in all where a workgroup holds the rows: here whole 16 bytes.
        let held = *shape == [64, 512] && axis == Axis::Kept(0);
        let both = if held { 1 } else { norm_count + copy };
        assert_eq!(count(&|o| o.normalize(weight, &w)), both, "{shape:?} {axis:?}");
        assert_eq!(count(&|o| o.normalize_in_place(weight)), both, "{shape:?} {axis:?}");
        assert_eq!(
            count(&|o| o.decompose(Decompose::new(&v).axis(axis).eps(eps), &w, &norms)),
            norm_count + copy,
            "{shape:?} {axis:?}"
        );
        let known_count = count(&|o| o.normalize(weight.norms(&known), &w));
        assert_eq!(known_count, u64::from(kept > 0) + copy, "{shape:?} {axis:?}, known");
    }

    // The second makes few workgroups, which a GPU fills with pieces of sums.
    for (batch, outs, ins, finish) in [(1, 512, 512, 0), (65, 130, 6_000, 1), (4096, 33, 7, 0), (2, 3, 100_000, 1)] {
        let (x, v, y) = (zeros(&[batch, ins]), zeros(&[outs, ins]), zeros(&[batch, outs]));
        for (axis, kept) in [(Axis::Kept(0), outs), (Axis::Kept(1), ins), (Axis::Whole, 1)] {
            let (g, norms) = (f32s(&[kept]), f32s(&[kept]));
            let weight = WeightNorm::new(&v, &g).axis(axis);
            let norm_count = if axis == Axis::Kept(0) {
                0
            } else {
                dispatches(&gpu, |o| o.row_norms(WeightNorm::unit(&v).axis(axis).eps(eps), &norms)).unwrap()
            };
            let known_count = u64::from(axis != Axis::Kept(0));
            for (weight, norm_count) in [(weight, norm_count), (weight.norms(&g), known_count)] {
                let count = dispatches(&gpu, |o| o.linear(Linear::new(&x, weight), &y)).unwrap();
                assert_eq!(count, norm_count + 1 + finish, "{batch} {outs} {ins} {axis:?}");
            }
            let with_norms = dispatches(&gpu, |o| o.linear(Linear::new(&x, weight).norms(&norms), &y)).unwrap();
            assert_eq!(with_norms, norm_count + 1 + finish, "{batch} {outs} {ins} {axis:?}, norms out");
        }
        assert_eq!(dispatches(&gpu, |o| o.linear(Linear::new(&x, &v), &y)).unwrap(), 1 + finish);
    }
}

/// One more dispatch for each window: bindings that hold a quarter of v, of w or of y.
#[test]
fn noop_dispatch_counts_of_windows() {
    // 64 KiB for tensors, and the largest alignment.
    let gpu = adopt(ParameterPassing::Auto, |l| l.max_storage_buffer_binding_size = (64 << 10) + 256).unwrap();
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32).unwrap();
    let v = zeros(&[256, 256]);
    let norms = zeros(&[256]);
    assert_eq!(dispatches(&gpu, |o| o.row_norms(WeightNorm::unit(&v).eps(Eps::None), &norms)).unwrap(), 4);
    let w = zeros(&[256, 256]);
    // Where a workgroup holds the rows they are read once; on a software driver so many are read twice.
    for (kind, expected) in [(Kind::Gpu, 4), (Kind::Software, 4 + 4)] {
        let gpu = gpu.as_kind(kind).unwrap();
        let count = dispatches(&gpu, |o| o.normalize(WeightNorm::unit(&v), &w)).unwrap();
        assert_eq!(count, expected, "{kind:?}");
    }
    // Windows share no words, whatever the storage types.
    let halves = gpu.zeros(&[256, 256], DType::F16).unwrap();
    assert_eq!(dispatches(&gpu, |o| o.normalize(WeightNorm::unit(&v), &halves)).unwrap(), 4 + 4);
    let (x, y) = (zeros(&[4, 256]), zeros(&[4, 256]));
    assert_eq!(dispatches(&gpu, |o| o.linear(Linear::new(&x, WeightNorm::unit(&v)), &y)).unwrap(), 4);
    let (x, v, y) = (zeros(&[1024, 64]), zeros(&[64, 64]), zeros(&[1024, 64]));
    assert_eq!(dispatches(&gpu, |o| o.linear(Linear::new(&x, WeightNorm::unit(&v)), &y)).unwrap(), 4);
}

/// Work that no binding holds a row of: the gradients of an empty batch, and rows that are projected.
#[test]
fn noop_long_rows() {
    let gpu = &*TINY;
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32).unwrap();
    let (v, dv) = (zeros(&[5, 6000]), zeros(&[5, 6000]));
    for (x, y) in [([0, 6000], [0, 5]), ([3, 6000], [3, 5])] {
        let (x, y, g) = (zeros(&x), zeros(&y), zeros(&[5]));
        for axis in AXES {
            let weight = WeightNorm::unit(&v).axis(axis);
            let (_, saved) = gpu.linear_saved(Linear::new(&x, weight)).unwrap();
            match gpu.linear_backward(LinearBackward::new(&x, weight, &y).saved(&saved)) {
                Ok(_) => {}
                // A sum over the batch reads some rows of x at once, which this device cannot bind.
                Err(Error::Limit(LimitError::TooLarge { .. })) if x.shape()[0] > 0 => {}
                Err(other) => panic!("batch {}, {axis:?}: {other}", x.shape()[0]),
            }
        }
        gpu.linear(Linear::new(&x, WeightNorm::new(&v, &g))).unwrap();
    }
    for kind in [Kind::Gpu, Kind::Software] {
        let gpu = gpu.as_kind(kind).unwrap();
        let trainable = Parameter::new(&v, &dv).normalize_direction(Axis::Kept(0), Eps::default());
        let state = gpu.adam_state(&v, None).unwrap();
        gpu.adam_step(trainable, &state, 1, &Adam::new(0.1)).unwrap();
    }
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    let size = prop_oneof![8 => 0usize..40, 1 => Just(257), 1 => Just(1031), 1 => Just(6000), 1 => Just(usize::MAX), 1 => Just(1 << 31)];
    prop::collection::vec(size, 0..6)
}

fn axis() -> impl Strategy<Value = Axis> {
    prop_oneof![4 => (0usize..6).prop_map(Axis::Kept), 1 => Just(Axis::Whole), 1 => Just(Axis::Kept(usize::MAX))]
}

fn eps() -> impl Strategy<Value = Eps> {
    let e = prop_oneof![Just(1e-12f32), any::<f32>()];
    (0usize..4, e).prop_map(|(policy, e)| [Eps::None, Eps::InsideSqrt(e), Eps::Clamp(e), Eps::After(e)][policy])
}

/// A tensor within 4 MiB, or `None`.
fn tensor(gpu: &Gpu, shape: &[usize], dtype: DType) -> Option<Tensor> {
    match gpu.zeros(shape, dtype) {
        Ok(tensor) => Some(tensor),
        Err(Error::Limit(LimitError::TensorTooLarge { .. })) => None,
        Err(other) => panic!("{other:?} for {shape:?}"),
    }
}

static TINY: LazyLock<Gpu> = LazyLock::new(|| {
    let tiny = adopt(ParameterPassing::Auto, |l| {
        l.max_storage_buffer_binding_size = 8 << 10;
        l.max_buffer_size = 4 << 20;
        l.max_compute_workgroups_per_dimension = 3;
    });
    tiny.expect("it can run the kernels")
});

/// A table of very many members takes no more for each: checks of every tensor against every other one took minutes
/// here.
#[test]
fn noop_sets_of_very_many_members_are_made_at_once() {
    const MEMBERS: usize = 30_000;
    let gpu = noop();
    let made = |shape: &[usize]| gpu.tensors(&vec![(shape, DType::F32); MEMBERS]).unwrap();
    let [v, w, dw, dv] = [(); 4].map(|()| made(&[2, 8]));
    let [g, norms, dg] = [(); 3].map(|()| made(&[2]));
    let member = |i: usize| {
        let member = SetMember::new(WeightNorm::new(&v[i], &g[i])).w(&w[i]).norms(&norms[i]);
        member.dw(&dw[i]).dv(&dv[i]).dg(&dg[i])
    };
    let members: Vec<_> = (0..MEMBERS).map(member).collect();
    let start = std::time::Instant::now();
    gpu.weight_set(&members).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(seconds < 20.0, "{seconds} s");
    // The very last one is looked at as well.
    let mut twice = members;
    twice[MEMBERS - 1] = twice[MEMBERS - 1].dg(&dg[0]);
    let error = gpu.weight_set(&twice).unwrap_err().to_string();
    assert_eq!(error, "normalize_backward_set: outputs dg and dg overlap");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever shapes, axes and policies come, an operator works or gives a typed error: none of wgpu's, no panic.
    #[test]
    fn noop_never_panics(
        shapes in prop::array::uniform4(sizes()),
        (axis, eps) in (axis(), eps()),
        dtype in prop::sample::select(DTYPES.to_vec()),
        split in prop::option::of(any::<u32>()),
        tile in prop::option::of(prop::sample::select(Tile::ALL.to_vec())),
        fit in any::<bool>(),
    ) {
        let gpu = &*TINY;
        let [v_shape, mut x_shape, mut g_shape, bias_shape] = shapes;
        if fit {
            if let (Some(x), Some(v)) = (x_shape.last_mut(), v_shape.get(1)) {
                *x = *v;
            }
            if let Axis::Kept(k) = axis {
                g_shape = v_shape.get(k).map_or(vec![], |&d| vec![d]);
            }
        }
        let (Some(v), Some(x)) = (tensor(gpu, &v_shape, dtype), tensor(gpu, &x_shape, dtype)) else { return Ok(()) };
        let (Some(g), Some(bias)) = (tensor(gpu, &g_shape, DType::F32), tensor(gpu, &bias_shape, DType::F32)) else {
            return Ok(());
        };
        let weight = WeightNorm::new(&v, &g).axis(axis).eps(eps);
        let results = [
            gpu.row_norms(WeightNorm::unit(&v).axis(axis).eps(eps)).map(drop),
            gpu.normalize(weight).map(drop),
            gpu.normalize(WeightNorm::unit(&v).axis(axis).norms(&g)).map(drop),
            gpu.normalize_in_place(weight),
            gpu.decompose(Decompose::new(&v).axis(axis).eps(eps)).map(drop),
            gpu.linear(Linear::new(&x, weight).bias(&bias).split_length(split).tile(tile)).map(drop),
            gpu.linear(Linear::new(&x, WeightNorm::unit(&v)).split_length(split).tile(tile).norms(&g)).map(drop),
            gpu.linear(Linear::new(&x, &v).split_length(split).tile(tile)).map(drop),
            v.reshape(&x_shape).map(drop),
        ];
        for result in results {
            let foreseen = !matches!(
                result,
                Err(Error::Device(DeviceError::Wgpu { .. }) | Error::Device(DeviceError::Lost { .. }) | Error::Device(DeviceError::OutOfMemory { .. }) | Error::Argument(ArgumentError::Alias { .. }))
            );
            prop_assert!(foreseen, "{:?}", result);
        }
    }
}

proptest! {
    // Fewer: nearly every case makes wgpu check pipelines of its own.
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// The same of what training takes, on either kind of device.
    #[test]
    fn noop_training_never_panics(
        shapes in prop::array::uniform4(sizes()),
        (axis, eps) in (axis(), eps()),
        (dtype, dv_dtype) in (prop::sample::select(DTYPES.to_vec()), prop::sample::select(DTYPES.to_vec())),
        split in prop::option::of(any::<u32>()),
        tile in prop::option::of(prop::sample::select(Tile::ALL.to_vec())),
        (fit, kind) in (any::<bool>(), prop::sample::select(vec![Kind::Gpu, Kind::Software])),
        (step, momentum) in (0u64..3, prop::sample::select(vec![0.0, 0.9])),
    ) {
        let gpu = &*TINY;
        let [v_shape, mut x_shape, mut g_shape, mut dy_shape] = shapes;
        if fit {
            if let (Some(x), &[outs, ins]) = (x_shape.last_mut(), &v_shape[..]) {
                *x = ins;
                dy_shape = x_shape.clone();
                dy_shape[x_shape.len() - 1] = outs;
            }
            if let Axis::Kept(k) = axis {
                g_shape = v_shape.get(k).map_or(vec![], |&d| vec![d]);
            }
        }
        let made = [(&v_shape, dtype), (&v_shape, dv_dtype), (&x_shape, dtype), (&g_shape, DType::F32)];
        let [Some(v), Some(dv), Some(x), Some(g)] = made.map(|(shape, dtype)| tensor(gpu, shape, dtype)) else {
            return Ok(());
        };
        let made = [(&g_shape, DType::F32), (&dy_shape, dtype), (&dy_shape, DType::F32), (&x_shape, dv_dtype)];
        let [Some(dg), Some(dy), Some(u), Some(dx)] = made.map(|(shape, dtype)| tensor(gpu, shape, dtype)) else {
            return Ok(());
        };
        let weight = WeightNorm::new(&v, &g).axis(axis).eps(eps);
        let gradients = Gradients::default().dx(&dx).dv(&dv).dg(&dg).accumulate(true);
        let plain = gradients.dg(None);
        let (sgd_state, adam_state) = (gpu.sgd_state(&v, Some(&g)), gpu.adam_state(&v, Some(&g)));
        let (Ok(sgd_state), Ok(adam_state)) = (sgd_state, adam_state) else { return Ok(()) };
        let sgd = Sgd { momentum, ..Sgd::new(0.1) };
        let trainable = Parameter::new(&v, &dv);
        let saved = gpu.linear_saved(Linear::new(&x, weight));
        let gpu = &gpu.as_kind(kind).unwrap();
        let results = [
            gpu.normalize_backward(NormalizeBackward::new(&dv, weight)).map(drop),
            gpu.normalize_backward(NormalizeBackward::new(&dv, weight.norms(&g))).map(drop),
            saved.as_ref().map_or(Ok(()), |(_, saved)| gpu.linear_backward(LinearBackward::new(&x, weight, &dy).saved(saved)).map(drop)),
            dispatches(gpu, |ops| ops.linear_backward(LinearBackward::new(&x, weight, &dy).u(&u).tile(tile).split_length(split), &gradients)).map(drop),
            dispatches(gpu, |ops| ops.linear_backward(LinearBackward::new(&x, &v, &dy).tile(tile).split_length(split), &plain)).map(drop),
            gpu.data_dependent_init(DataDependentInit::new(&x, &v).eps(eps)).map(drop),
            gpu.mean_only_batch_norm(MeanOnlyBatchNorm::new(&x).bias(&g).running_mean(&dg, 0.1)).map(drop),
            gpu.mean_only_batch_norm(MeanOnlyBatchNorm::new(&x).eval(&g)).map(drop),
            gpu.mean_only_batch_norm_backward(MeanOnlyBatchNormBackward::new(&x)).map(drop),
            gpu.sgd_step(trainable.gain(&g, &dg), &sgd_state, step, &sgd),
            gpu.sgd_step(trainable.normalize_direction(axis, eps), &sgd_state, step, &sgd),
            gpu.adam_step(trainable.gain(&g, &dg).normalize_direction(axis, eps), &adam_state, step, &Adam::new(0.1)),
            gpu.adam_step(trainable, &adam_state, step, &Adam::adamw(0.1, 0.1)),
        ];
        for result in results.into_iter().chain([saved.map(drop)]) {
            let foreseen = !matches!(
                result,
                Err(Error::Device(DeviceError::Wgpu { .. }) | Error::Device(DeviceError::Lost { .. }) | Error::Device(DeviceError::OutOfMemory { .. }) | Error::Argument(ArgumentError::Alias { .. }))
            );
            prop_assert!(foreseen, "{:?}", result);
        }
    }

    /// Outputs of which one overlaps an earlier one, and no others, against a comparison of each with all before it.
    #[test]
    fn noop_overlaps_are_found(places in prop::collection::vec((0u64..40, 0usize..6), 1..12)) {
        let gpu = noop();
        let [v, dw] = [(); 2].map(|()| gpu.zeros(&[5, 1], DType::F32).unwrap());
        let words = gpu.zeros(&[64], DType::F32).unwrap();
        let part = |&(first, len): &(u64, usize)| Tensor::from_buffer(&gpu, words.buffer().unwrap(), 4 * first, &[len, 1], DType::F32).unwrap();
        let outputs: Vec<_> = places.iter().map(part).collect();
        let weights: Vec<_> = outputs.iter().map(|t| Tensor::from_buffer(&gpu, v.buffer().unwrap(), 0, t.shape(), DType::F32).unwrap()).collect();
        let gradients: Vec<_> = outputs.iter().map(|t| Tensor::from_buffer(&gpu, dw.buffer().unwrap(), 0, t.shape(), DType::F32).unwrap()).collect();
        let member = |i: usize| {
            let member = SetMember::new(WeightNorm::unit(&weights[i])).dw(&gradients[i]);
            // Two names, to see that it is the first of the two that is named.
            if i.is_multiple_of(2) { member.dv(&outputs[i]) } else { member.dg(&outputs[i]) }
        };
        let ends = |(first, len): (u64, usize)| (first, first + len as u64);
        // What is empty is nowhere.
        let overlap = |a, b| { let ((a, b), (c, d)) = (ends(a), ends(b)); a < d && c < b && a < b && c < d };
        let name = |i: usize| if i.is_multiple_of(2) { "dv" } else { "dg" };
        let expected = (0..places.len()).find_map(|i| {
            let first = (0..i).find(|&k| overlap(places[k], places[i]))?;
            Some(format!("normalize_backward_set: outputs {} and {} overlap", name(first), name(i)))
        });
        let got = gpu.weight_set(&(0..places.len()).map(member).collect::<Vec<_>>()).err().map(|e| e.to_string());
        prop_assert_eq!(got, expected);
    }
}
