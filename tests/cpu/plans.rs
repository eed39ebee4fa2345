//! Plans of dispatches, without any device: every operator, on devices of several sizes, at sizes past their limits.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use weightnorm::wgpu::{AdapterInfo, Backend, DeviceType, Features, Limits};
use weightnorm::{
    Activation, ActivationBackward, ArgumentError, Axis, DType, DeviceError, Eps, Error, Facts, Gradients, Launch,
    LimitError, Linear, LinearBackward, NormalizeBackward, Planned, PlannedBinding, Recorder, SCRATCH_BUFFERS, Tensor,
    WeightNorm,
};

/// What was planned: names, workgroups and bindings.
#[derive(Debug, PartialEq, Clone)]
pub struct Listed {
    pub entry: &'static str,
    workgroups: [u32; 3],
    bindings: Vec<PlannedBinding>,
    parameters: Vec<u8>,
}

/// A launcher that holds each dispatch to the limits, and keeps it.
pub struct Listing<'a> {
    pub limits: &'a Limits,
    /// Bytes of each tensor's buffer, by number.
    pub buffers: &'a BTreeMap<u64, u64>,
    pub scratch: [u64; SCRATCH_BUFFERS],
    pub listed: Vec<Listed>,
}

const SCRATCH: u64 = 1000;

/// The variants whose texts were looked at.
static VALID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Launch for Listing<'_> {
    fn scratch(&mut self, which: usize, bytes: u64) -> Result<u64, Error> {
        self.scratch[which] = self.scratch[which].max(bytes);
        Ok(SCRATCH + which as u64)
    }

    fn launch(&mut self, dispatch: &Planned<'_>) -> Result<(), Error> {
        let entry = dispatch.entry_point();
        let bindings: Vec<_> = dispatch.bindings().collect();
        for binding in &bindings {
            let Some(buffer) = binding.buffer else { continue };
            let size = match buffer.checked_sub(SCRATCH) {
                Some(which) => self.scratch[which as usize],
                None => self.buffers[&buffer],
            };
            let alignment = u64::from(self.limits.min_storage_buffer_offset_alignment);
            assert!(binding.offset.is_multiple_of(alignment) && binding.size.is_multiple_of(4), "{entry}: {binding:?}");
            assert!(binding.size <= self.limits.max_storage_buffer_binding_size, "{entry}: {binding:?}");
            assert!(binding.offset + binding.size <= size.next_multiple_of(4), "{entry}: {binding:?} of {size}");
        }
        let workgroups = dispatch.workgroups();
        assert!(workgroups.iter().all(|&n| n >= 1 && n <= self.limits.max_compute_workgroups_per_dimension), "{entry}");
        assert!(dispatch.parameters().len() <= 128, "{entry}");
        if VALID.lock().unwrap().insert(dispatch.label()) {
            is_plain(&dispatch.plain_wgsl(), entry, &bindings);
        }
        let parameters = dispatch.parameters().to_vec();
        self.listed.push(Listed { entry, workgroups, bindings, parameters });
        Ok(())
    }
}

/// The text is valid, has no overrides, and of its entry point the bindings 0, 1, ..
fn is_plain(text: &str, entry: &str, bindings: &[PlannedBinding]) {
    let module = naga::front::wgsl::parse_str(text).unwrap_or_else(|e| panic!("{entry}: {}", e.emit_to_string(text)));
    let capabilities = naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities).validate(&module);
    let info = info.unwrap_or_else(|e| panic!("{entry}: {}", e.emit_to_string(text)));
    assert!(module.overrides.is_empty(), "{entry}");
    let index = module.entry_points.iter().position(|e| e.name == entry).expect("it is there");
    let used = info.get_entry_point(index);
    let mut numbers: Vec<_> = (module.global_variables.iter())
        .filter(|(handle, _)| !used[*handle].is_empty())
        .filter_map(|(_, variable)| variable.binding.map(|b| b.binding))
        .collect();
    numbers.sort_unstable();
    // What a variant does not use may not be there.
    assert!(numbers.iter().all(|&n| n as usize <= bindings.len()), "{entry}: {numbers:?}");
    assert_eq!(numbers.last(), Some(&(bindings.len() as u32)), "{entry}: the parameters are last");
}

/// Tensors of one buffer each.
#[derive(Default)]
pub struct Buffers(pub BTreeMap<u64, u64>);

impl Buffers {
    pub fn tensor(&mut self, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
        let bytes = shape.iter().product::<usize>() as u64 * if dtype == DType::F32 { 4 } else { 2 };
        let number = self.0.len() as u64;
        // One element into its buffer, so that bindings do not start with the tensor.
        self.0.insert(number, 4 + bytes);
        Tensor::of_launcher(number, 4, shape, dtype)
    }

    pub fn list(
        &self,
        (info, limits): &(AdapterInfo, Limits),
        record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>,
    ) -> Result<Vec<Listed>, Error> {
        let facts = Facts::new(info, limits, Features::empty())?;
        let mut listing = Listing { limits, buffers: &self.0, scratch: [0; SCRATCH_BUFFERS], listed: vec![] };
        let mut recorder = Recorder::launching(facts, &mut listing);
        record(&mut recorder)?;
        let count = recorder.dispatch_count();
        drop(recorder);
        assert_eq!(count, listing.listed.len() as u64);
        Ok(listing.listed)
    }
}

/// Every byte of the tensor is within what is bound to be written, all dispatches together.
pub fn writes_all(listed: &[Listed], number: u64, bytes: u64) {
    let written = listed.iter().flat_map(|l| &l.bindings).filter(|b| b.written && b.buffer == Some(number));
    let mut ranges: Vec<_> = written.map(|b| (b.offset, b.offset + b.size)).collect();
    ranges.sort_unstable();
    let mut reached = 4;
    for (begin, end) in ranges {
        assert!(begin <= reached, "buffer {number}: {reached} .. {begin} is not written");
        reached = reached.max(end);
    }
    assert!(reached >= 4 + bytes, "buffer {number}: written up to {reached} of {}", 4 + bytes);
}

pub fn devices() -> Vec<(AdapterInfo, Limits)> {
    let small = Limits {
        max_storage_buffer_binding_size: 1 << 20,
        max_compute_workgroups_per_dimension: 100,
        ..Limits::default()
    };
    let wide = Limits { max_storage_buffer_binding_size: 1 << 31, ..Limits::default() };
    let mut all = vec![];
    for device_type in [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::Other, DeviceType::Cpu] {
        for limits in [&Limits::default(), &small, &wide] {
            all.push((AdapterInfo::new(device_type, Backend::Vulkan), limits.clone()));
        }
    }
    all.push((AdapterInfo::new(DeviceType::Other, Backend::BrowserWebGpu), Limits::default()));
    all.push((AdapterInfo::new(DeviceType::Other, Backend::Gl), Limits::default()));
    all
}

/// In one dispatch where nothing is past a limit, in more where something is; the same every time.
#[test]
fn plans_of_weights_keep_every_limit() -> Result<(), Error> {
    let shapes: [&[usize]; 6] = [&[512, 256, 3], &[1, 1], &[4, 10_000_019], &[3_000_001, 7], &[16, 8, 70_001], &[0, 5]];
    for (shape, dtype) in shapes.into_iter().zip([DType::F32, DType::F16, DType::Bf16].into_iter().cycle()) {
        for axis in [Axis::Kept(0), Axis::Kept(1), Axis::Whole] {
            let mut buffers = Buffers::default();
            let kept = if let Axis::Kept(kept) = axis { shape[kept] } else { 1 };
            let (v, w, dw, dv) = (
                buffers.tensor(shape, dtype)?,
                buffers.tensor(shape, dtype)?,
                buffers.tensor(shape, DType::F32)?,
                buffers.tensor(shape, dtype)?,
            );
            let (g, norms, dg) = (
                buffers.tensor(&[kept], DType::F32)?,
                buffers.tensor(&[kept], DType::F32)?,
                buffers.tensor(&[kept], DType::F32)?,
            );
            let weight = WeightNorm::new(&v, &g).axis(axis).eps(Eps::Clamp(1e-6));
            let (bytes, per_norm) = (v.len() as u64 * if dtype == DType::F32 { 4 } else { 2 }, 4 * kept as u64);
            for device in devices() {
                let record = |ops: &mut Recorder<'_, '_>| {
                    ops.row_norms(WeightNorm::unit(&v).axis(axis).eps(Eps::None), &norms)?;
                    ops.normalize(weight, &w)?;
                    ops.normalize_backward(NormalizeBackward::new(&dw, weight), &Gradients::default().dv(&dv).dg(&dg))
                };
                let listed = buffers.list(&device, record)?;
                assert_eq!(listed, buffers.list(&device, record)?);
                if v.is_empty() {
                    continue;
                }
                for (number, bytes) in [(1, bytes), (3, bytes), (5, per_norm), (6, per_norm)] {
                    writes_all(&listed, number, bytes);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn plans_of_products_keep_every_limit() -> Result<(), Error> {
    for [batch, outs, ins] in
        [[64, 512, 259], [1, 4096, 4096], [3_000_001, 40, 7], [33, 257, 100_003], [7, 3_000_001, 8], [2, 3, 0]]
    {
        let layers = [Axis::Kept(0), Axis::Kept(1), Axis::Whole].map(|axis| (axis, Activation::None));
        for (axis, activation) in layers.into_iter().chain([(Axis::Kept(0), Activation::Gelu)]) {
            let mut buffers = Buffers::default();
            let kept = [outs, ins, 1][if let Axis::Kept(kept) = axis { kept } else { 2 }];
            let mut f32s = |shape: &[usize]| buffers.tensor(shape, DType::F32);
            let (x, v, y, dy) =
                (f32s(&[batch, ins])?, f32s(&[outs, ins])?, f32s(&[batch, outs])?, f32s(&[batch, outs])?);
            let (dx, dv, u) = (f32s(&[batch, ins])?, f32s(&[outs, ins])?, f32s(&[batch, outs])?);
            let (g, norms, dg, bias, dbias) =
                (f32s(&[kept])?, f32s(&[kept])?, f32s(&[kept])?, f32s(&[outs])?, f32s(&[outs])?);
            let weight = WeightNorm::new(&v, &g).axis(axis);
            let saves_u = axis != Axis::Kept(1);
            let u = saves_u.then_some(&u);
            let gradients = Gradients::default().dx(&dx).dv(&dv).dg(&dg).dbias(&dbias);
            for device in devices() {
                let record = |ops: &mut Recorder<'_, '_>| {
                    let layer = Linear::new(&x, weight).bias(&bias).activation(activation);
                    ops.linear(layer.norms(&norms).u(u), &y)?;
                    let backward = LinearBackward::new(&x, weight.norms(&norms), &dy).bias(&bias);
                    ops.linear_backward(backward.activation(activation).u(u), &gradients)
                };
                let listed = match buffers.list(&device, record) {
                    // Of x, dy and v 16 rows have to fit a binding.
                    Err(Error::Limit(LimitError::TooLarge { what: "16 rows of a matrix in bytes", size, limit })) => {
                        assert!(size == 64 * ins.max(outs) as u64 && size > limit, "{size} of {limit}");
                        continue;
                    }
                    listed => listed?,
                };
                assert_eq!(listed, buffers.list(&device, record)?);
                let size = |elements: usize| 4 * elements as u64;
                for (number, bytes) in [
                    (2, size(batch * outs)),
                    (4, size(batch * ins)),
                    (5, size(outs * ins)),
                    (9, size(kept)),
                    (11, size(outs)),
                ] {
                    if bytes > 0 {
                        writes_all(&listed, number, bytes);
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn plans_of_activations_keep_every_limit() -> Result<(), Error> {
    let [f32, f16] = [DType::F32, DType::F16];
    for (shape, dtypes) in
        [(&[3_000_001, 7][..], [f32; 3]), (&[5, 7, 3], [f16; 3]), (&[10_000_003], [f32, f16, f16]), (&[0, 5], [f32; 3])]
    {
        let mut buffers = Buffers::default();
        let [z, dy, dz] = [0, 1, 2].map(|i| buffers.tensor(shape, dtypes[i]));
        let (z, dy, dz) = (z?, dy?, dz?);
        for device in devices() {
            for (number, dz) in [(2, &dz), (1, &dy)] {
                let request = ActivationBackward::new(Activation::Gelu, &z, &dy);
                let listed = buffers.list(&device, |ops| ops.activation_backward(request, dz))?;
                if !z.is_empty() {
                    writes_all(&listed, number, dz.len() as u64 * dz.dtype().size());
                }
            }
        }
    }
    Ok(())
}

/// A device's tensors and a launcher's do not mix; what has no device cannot be read, and has no buffer.
#[test]
fn plans_take_tensors_of_launchers_alone() -> Result<(), Error> {
    let mut buffers = Buffers::default();
    let v = buffers.tensor(&[4, 4], DType::F32)?;
    assert!(matches!(v.read::<f32>(), Err(Error::Device(DeviceError::Unsupported { .. }))));
    assert!(matches!(v.buffer(), Err(Error::Device(DeviceError::Unsupported { .. }))));
    let norms = buffers.tensor(&[4], DType::F32)?;
    let device = &devices()[0];
    let error =
        buffers.list(device, |ops| ops.row_norms(WeightNorm::unit(&v).eps(Eps::None), &norms.reshape(&[4, 1])?));
    assert_eq!(error?.len(), 1);
    let odd = Tensor::of_launcher(0, 2, &[4], DType::F32);
    assert!(matches!(odd, Err(Error::Argument(ArgumentError::Offset { offset: 2 }))));
    let few = Limits { max_storage_buffers_per_shader_stage: 4, ..Limits::default() };
    assert!(matches!(
        Facts::new(&device.0, &few, Features::empty()),
        Err(Error::Device(DeviceError::Unsupported { .. }))
    ));
    Ok(())
}

/// An output beside the inputs in one buffer: their bindings are written as `read_write`; overlapping ranges are
/// refused, and in browsers those that would be bound together.
#[test]
fn plans_of_arenas() -> Result<(), Error> {
    let device = &devices()[0];
    let v = Tensor::of_launcher(0, 0, &[4, 5], DType::F16)?;
    let at = |offset: u64| Tensor::of_launcher(0, offset, &[4], DType::F32);
    struct Text(String);
    impl Launch for Text {
        fn scratch(&mut self, which: usize, _: u64) -> Result<u64, Error> {
            Ok(SCRATCH + which as u64)
        }
        fn launch(&mut self, dispatch: &Planned<'_>) -> Result<(), Error> {
            self.0 = dispatch.wgsl();
            Ok(())
        }
    }
    let planned = |(info, limits): &(AdapterInfo, Limits), norms: &Tensor| {
        let facts = Facts::new(info, limits, Features::empty())?;
        let mut text = Text(String::new());
        Recorder::launching(facts, &mut text).row_norms(WeightNorm::unit(&v).eps(Eps::None), norms)?;
        Ok::<_, Error>(text.0)
    };
    let declared =
        |text: &str, what: &str| text.lines().any(|line| line.starts_with("@group(0)") && line.contains(what));
    let apart = planned(device, &Tensor::of_launcher(1, 0, &[4], DType::F32)?)?;
    assert!(declared(&apart, "var<storage, read> v:"));
    for offset in [40, 256] {
        let text = planned(device, &at(offset)?)?;
        assert!(declared(&text, "var<storage, read_write> v:"));
        assert!(naga::front::wgsl::parse_str(&text).is_ok());
    }
    for offset in [0, 20, 36] {
        let error = planned(device, &at(offset)?).unwrap_err();
        assert_eq!(error, Error::Argument(ArgumentError::Alias { op: "row_norms", output: "norms", input: "v" }));
    }
    let browser = (AdapterInfo::new(DeviceType::Other, Backend::BrowserWebGpu), Limits::default());
    assert!(matches!(planned(&browser, &at(40)?), Err(Error::Argument(ArgumentError::Alias { .. }))));
    assert!(planned(&browser, &at(256)?).is_ok());
    Ok(())
}
