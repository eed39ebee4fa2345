//! Everything that a caller can get wrong, as one table: the error, and that nothing was recorded.
//! Needs a device, and no GPU: it runs on wgpu's `noop` backend too.
use weightnorm::{
    Activation, ActivationBackward, Axis, Cosine, CosineBackward, DType, Decompose, Dora, DoraBackward, DoraWeight,
    Element, Eps, Error, Gpu, Gradients, LimitError, Linear, LinearBackward, MeanOnlyBatchNormBackward,
    NormalizeBackward, Recorder, Tensor, Tile, WeightNorm,
};

/// Records each misuse and compares its error with the text that belongs to it.
pub fn is_refused(gpu: &Gpu, other: &Gpu) -> Result<(), String> {
    let zeros = |shape: &[usize]| gpu.zeros(shape, DType::F32).expect("a small tensor");
    let poison = |shape: &[usize]| gpu.upload(&vec![7f32; shape.iter().product()], shape).expect("a small tensor");
    let (x, v, g, bias) = (zeros(&[3, 5]), zeros(&[4, 5]), zeros(&[4]), zeros(&[4]));
    let (y, w, norms) = (poison(&[3, 4]), poison(&[4, 5]), poison(&[4]));
    let half = gpu.zeros(&[4], DType::F16).expect("a small tensor");
    let foreign = other.zeros(&[4, 5], DType::F32).expect("a small tensor");
    let usage = wgpu::BufferUsages::COPY_SRC;
    let descriptor = wgpu::BufferDescriptor { label: None, size: 256, usage, mapped_at_creation: false };
    let no_storage =
        Tensor::from_buffer(gpu, &gpu.device().create_buffer(&descriptor), 0, &[4, 5], DType::F32).expect("it fits");
    // Two tensors in one buffer, and views of it that overlap.
    let shared = poison(&[64]);
    let part = |offset: u64, shape: &[usize]| {
        Tensor::from_buffer(gpu, shared.buffer().unwrap(), offset, shape, DType::F32).expect("it fits")
    };
    let (front, back, tail) = (part(0, &[4, 5]), part(128, &[4, 5]), part(200, &[4]));
    // And two that overlap the first: by much, and by one word.
    let (middle, edge) = (part(40, &[4, 5]), part(76, &[4]));

    let weight = WeightNorm::new(&v, &g);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut ops = gpu.record(&mut encoder);
    let mut failures = vec![];
    // The error's text, or its beginning if that ends in dots.
    let mut refused = |text: &str, record: &dyn Fn(&mut Recorder<'_, '_>) -> Result<(), Error>| {
        let result = record(&mut ops);
        let fits = result.as_ref().is_err_and(|e| match text.strip_suffix("..") {
            Some(beginning) => e.to_string().starts_with(beginning),
            None => e.to_string() == text,
        });
        if !fits || ops.dispatch_count() != 0 {
            failures.push(format!("{result:?} after {} dispatches, expected {text:?}", ops.dispatch_count()));
        }
    };
    // Shapes and ranks.
    refused("row_norms: norms has shape [3, 4], expected [4, 1] or [4]", &|o| {
        o.row_norms(WeightNorm::unit(&v).eps(Eps::None), &y)
    });
    refused("row_norms: norms has shape [4], expected [1, 5] or [5]", &|o| {
        o.row_norms(WeightNorm::unit(&v).axis(Axis::Kept(1)).eps(Eps::None), &norms)
    });
    refused("normalize: w has shape [3, 4], expected [4, 5]", &|o| o.normalize(weight, &y));
    refused("normalize: g has shape [3, 5], expected [4, 1] or [4]", &|o| o.normalize(WeightNorm::new(&v, &x), &w));
    refused("normalize: g has shape [4], expected [1, 5] or [5]", &|o| o.normalize(weight.axis(Axis::Kept(1)), &w));
    refused("normalize: g has shape [4], expected [1, 1] or [1]", &|o| o.normalize(weight.axis(Axis::Whole), &w));
    refused("normalize: norms has shape [3, 5], expected [4, 1] or [4]", &|o| o.normalize(weight.norms(&x), &w));
    refused("normalize_in_place: g has shape [4], expected [3, 1] or [3]", &|o| {
        o.normalize_in_place(WeightNorm::new(&y, &g))
    });
    refused("decompose: v has shape [3, 4], expected [4, 5]", &|o| {
        o.decompose(Decompose::new(&v).eps(Eps::None), &y, &norms)
    });
    refused("decompose: g has shape [3, 4], expected [4, 1] or [4]", &|o| {
        o.decompose(Decompose::new(&v).eps(Eps::None), &w, &y)
    });
    refused("linear: weight has shape [4], expected [out_features, in_features]", &|o| {
        o.linear(Linear::new(&x, &g), &y)
    });
    refused("linear: x has shape [3, 4], expected [.., 5]", &|o| o.linear(Linear::new(&y, weight), &y));
    refused("linear: y has shape [4, 5], expected [3, 4]", &|o| o.linear(Linear::new(&x, weight), &w));
    refused("linear: bias has shape [3, 5], expected [4]", &|o| o.linear(Linear::new(&x, weight).bias(&x), &y));
    refused("linear: g has shape [3, 5], expected [4, 1] or [4]", &|o| {
        o.linear(Linear::new(&x, WeightNorm::new(&v, &x)), &y)
    });
    refused("linear: g has shape [4], expected [1, 5] or [5]", &|o| {
        o.linear(Linear::new(&x, weight.axis(Axis::Kept(1))), &y)
    });
    refused("linear: norms has shape [4, 5], expected [4, 1] or [4]", &|o| {
        o.linear(Linear::new(&x, weight).norms(&w), &y)
    });
    refused("linear: norms has shape [4], expected a weight with norms", &|o| {
        o.linear(Linear::new(&x, &v).norms(&norms), &y)
    });
    // The u of a forward pass: its own shape is named, and one that is missing is missing.
    refused("linear: u has shape [4], expected [3, 4]", &|o| o.linear(Linear::new(&x, weight).u(&norms), &y));
    let gradients = Gradients::default().dv(&w);
    refused("linear_backward: u is missing: the forward pass saves it (Linear::u)", &|o| {
        o.linear_backward(LinearBackward::new(&x, weight, &y), &gradients)
    });
    refused("linear_backward: u has shape [4, 5], expected [3, 4]", &|o| {
        o.linear_backward(LinearBackward::new(&x, weight, &y).u(&v), &gradients)
    });
    // Behind an activation every gradient wants u, whatever the weight; bias, slope and u are looked at there too.
    let behind = LinearBackward::new(&x, &v, &y).activation(Activation::Relu);
    let dbias = Gradients::default().dbias(&norms);
    refused("linear_backward: u is missing: the forward pass saves it (Linear::u)", &|o| {
        o.linear_backward(behind, &dbias)
    });
    let (u, half_u) = (zeros(&[3, 4]), gpu.zeros(&[3, 4], DType::F16).expect("a small tensor"));
    refused("linear_backward: u is F16, expected F32", &|o| o.linear_backward(behind.u(&half_u), &dbias));
    refused("linear_backward: bias has shape [3, 5], expected [4]", &|o| {
        o.linear_backward(behind.u(&u).bias(&x), &dbias)
    });
    refused("linear_backward: output dbias overlaps input bias...", &|o| {
        o.linear_backward(behind.u(&u).bias(&norms), &dbias)
    });
    for slope in [f32::NAN, f32::INFINITY] {
        let leaky = Activation::LeakyRelu(slope);
        let text = "linear_backward: the slope of leaky ReLU is ..";
        refused(text, &|o| o.linear_backward(behind.u(&u).activation(leaky), &dbias));
        let text = "activation_backward: the slope of leaky ReLU is ..";
        refused(text, &|o| o.activation_backward(ActivationBackward::new(leaky, &u, &u), &y));
    }
    refused("activation_backward: dy has shape [4, 5], expected [3, 4]", &|o| {
        o.activation_backward(ActivationBackward::new(Activation::Relu, &u, &v), &y)
    });
    refused("activation_backward: dz has shape [4, 5], expected [3, 4]", &|o| {
        o.activation_backward(ActivationBackward::new(Activation::Relu, &u, &u), &w)
    });
    refused("activation_backward: output dz overlaps input z...", &|o| {
        o.activation_backward(ActivationBackward::new(Activation::Relu, &y, &u), &y)
    });
    refused("activation_backward: output dz overlaps input dy...", &|o| {
        o.activation_backward(ActivationBackward::new(Activation::Relu, &v, &front), &middle)
    });
    for shut in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::LeakyRelu(0.0),
        Activation::LeakyRelu(-0.5),
    ] {
        let text = format!("activation_backward: the forced variant {shut:?} from its output cannot run: ..");
        refused(&text, &|o| o.activation_backward(ActivationBackward::new(shut, &u, &u).from_output(), &y));
    }
    // What an operator computes, and gradients that it has not.
    refused("row_norms: norms are computed, known ones are not taken", &|o| o.row_norms(weight.norms(&g), &norms));
    refused("normalize_backward: dx has shape [4, 5], expected none: the operator has no such gradient", &|o| {
        o.normalize_backward(NormalizeBackward::new(&v, weight), &Gradients::default().dx(&w))
    });
    refused("normalize_backward: dbias has shape [4], expected none: the operator has no such gradient", &|o| {
        o.normalize_backward(NormalizeBackward::new(&v, weight), &Gradients::default().dv(&w).dbias(&norms))
    });
    refused(
        "mean_only_batch_norm_backward: dv has shape [4, 5], expected none: the operator has no such gradient",
        &|o| o.mean_only_batch_norm_backward(MeanOnlyBatchNormBackward::new(&x), &Gradients::default().dv(&w)),
    );
    // Axes.
    refused("kept axis 2 of a tensor of rank 2", &|o| {
        o.row_norms(WeightNorm::unit(&v).axis(Axis::Kept(2)).eps(Eps::None), &norms)
    });
    refused("kept axis 18446744073709551615 of a tensor of rank 2", &|o| {
        o.row_norms(WeightNorm::unit(&v).axis(Axis::Kept(usize::MAX)).eps(Eps::None), &norms)
    });
    refused("kept axis 2 of a tensor of rank 2", &|o| o.normalize(weight.axis(Axis::Kept(2)), &w));
    refused("kept axis 2 of a tensor of rank 2", &|o| o.normalize_in_place(WeightNorm::unit(&w).axis(Axis::Kept(2))));
    refused("kept axis 2 of a tensor of rank 2", &|o| {
        o.decompose(Decompose::new(&v).axis(Axis::Kept(2)).eps(Eps::None), &w, &norms)
    });
    refused("kept axis 2 of a tensor of rank 2", &|o| o.linear(Linear::new(&x, weight.axis(Axis::Kept(2))), &y));
    // Storage types.
    refused("row_norms: norms is F16, expected F32", &|o| o.row_norms(WeightNorm::unit(&v).eps(Eps::None), &half));
    refused("linear: norms is F16, expected F32", &|o| o.linear(Linear::new(&x, weight.norms(&half)), &y));
    refused("decompose: v is F32, expected F16", &|o| o.decompose(Decompose::new(&half).eps(Eps::None), &norms, &g));
    // Buffers.
    refused("row_norms: v belongs to another device", &|o| {
        o.row_norms(WeightNorm::unit(&foreign).eps(Eps::None), &norms)
    });
    refused("normalize: w belongs to another device", &|o| o.normalize(weight, &foreign));
    refused("linear: weight belongs to another device", &|o| o.linear(Linear::new(&x, &foreign), &y));
    refused("row_norms: the buffer of v lacks BufferUsages(STORAGE)", &|o| {
        o.row_norms(WeightNorm::unit(&no_storage).eps(Eps::None), &norms)
    });
    refused("normalize: the buffer of w lacks BufferUsages(STORAGE)", &|o| o.normalize(weight, &no_storage));
    refused("normalize_in_place: the buffer of v lacks BufferUsages(STORAGE)", &|o| {
        o.normalize_in_place(WeightNorm::unit(&no_storage))
    });
    refused("linear: the buffer of weight lacks BufferUsages(STORAGE)", &|o| {
        o.linear(Linear::new(&x, &no_storage), &y)
    });
    refused("normalize: output w overlaps input v...", &|o| o.normalize(WeightNorm::unit(&w), &w));
    refused("normalize: output w overlaps input v...", &|o| o.normalize(WeightNorm::unit(&front), &middle));
    refused("normalize_in_place: output v overlaps input g...", &|o| {
        o.normalize_in_place(WeightNorm::new(&front, &edge))
    });
    refused("normalize_in_place: output v overlaps input norms...", &|o| {
        o.normalize_in_place(WeightNorm::unit(&front).norms(&edge))
    });
    refused("row_norms: output norms overlaps input v...", &|o| {
        o.row_norms(WeightNorm::unit(&front).eps(Eps::None), &edge)
    });
    refused("decompose: output g overlaps input w...", &|o| {
        o.decompose(Decompose::new(&front).eps(Eps::None), &w, &edge)
    });
    refused("linear: output norms overlaps input weight...", &|o| {
        o.linear(Linear::new(&x, WeightNorm::unit(&front)).norms(&edge), &y)
    });
    refused("linear: output norms overlaps input known norms...", &|o| {
        o.linear(Linear::new(&x, weight.norms(&norms)).norms(&norms), &y)
    });
    refused("decompose: outputs v and g overlap", &|o| o.decompose(Decompose::new(&v).eps(Eps::None), &back, &tail));
    refused("linear: outputs y and norms overlap", &|o| {
        o.linear(Linear::new(&x, weight).norms(&part(44, &[4])), &part(0, &[3, 4]))
    });
    // Cosine and DoRA.
    refused("cosine: weight has shape [4, 5], expected kept axis 0", &|o| {
        o.cosine(Cosine::new(&x, WeightNorm::unit(&v).axis(Axis::Kept(1))), &y)
    });
    refused("cosine: y has shape [4, 5], expected [3, 4]", &|o| o.cosine(Cosine::new(&x, weight), &w));
    let cosine = CosineBackward::new(&x, weight, &y);
    refused("cosine_backward: u is missing: the forward pass saves it (Linear::u)", &|o| {
        o.cosine_backward(cosine, &gradients)
    });
    refused("cosine_backward: dbias has shape [4], expected none: the operator has no such gradient", &|o| {
        o.cosine_backward(cosine, &dbias)
    });
    let (a, b) = (zeros(&[2, 5]), zeros(&[4, 2]));
    let adapted = |scaling| DoraWeight::new(&v, &a, &b, &g, scaling);
    refused("dora: a has shape [4, 2], expected [rank, 5], a rank of 1 or more", &|o| {
        o.dora(Dora::new(&x, DoraWeight::new(&v, &b, &b, &g, 1.0)), &y)
    });
    refused("dora: b has shape [4, 2], expected [4, 3]", &|o| {
        o.dora(Dora::new(&x, DoraWeight::new(&v, &x, &b, &g, 1.0)), &y)
    });
    refused("dora: magnitude has shape [3, 5], expected [4, 1] or [4]", &|o| {
        o.dora(Dora::new(&x, DoraWeight::new(&v, &a, &b, &x, 1.0)), &y)
    });
    refused("dora: the scaling is NaN, expected a finite f32", &|o| o.dora(Dora::new(&x, adapted(f32::NAN)), &y));
    refused("dora: hidden has shape [4, 2], expected [3, 2]", &|o| o.dora(Dora::new(&x, adapted(1.0)).hidden(&b), &y));
    refused("dora_norms: norms are computed, known ones are not taken", &|o| {
        o.dora_norms(adapted(1.0).norms(&norms), &bias)
    });
    refused("dora_merge: w has shape [3, 4], expected [4, 5]", &|o| o.dora_merge(adapted(1.0), &y));
    refused("dora_merge: output w overlaps input base...", &|o| o.dora_merge(adapted(1.0), &v));
    let adapter = DoraBackward::new(&x, adapted(1.0).norms(&norms), &y);
    refused("dora_backward: u is missing: the forward pass saves it (Linear::u)", &|o| {
        o.dora_backward(adapter, &Gradients::default().dg(&bias))
    });
    refused("dora_backward: u is missing: the forward pass saves it (Linear::u)", &|o| {
        o.dora_backward(adapter.through_norms(true), &Gradients::default().da(&a))
    });
    refused("dora_backward: dv has shape [4, 5], expected none: the operator has no such gradient", &|o| {
        o.dora_backward(adapter, &gradients)
    });
    refused("linear_backward: da has shape [2, 5], expected none: the operator has no such gradient", &|o| {
        o.linear_backward(LinearBackward::new(&x, weight, &y), &Gradients::default().da(&a))
    });
    // Variants.
    refused("linear: the forced variant split_length 0, Tile64x64 cannot run: a split has 1 to ..", &|o| {
        o.linear(Linear::new(&x, weight).split_length(0), &y)
    });
    let text = "linear: the forced variant split_length 4294967295, Tile32x32 cannot run: a split has 1 to ..";
    refused(text, &|o| o.linear(Linear::new(&x, weight).tile(Tile::Tile32x32).split_length(u32::MAX), &y));
    for e in [0.0, -1e-6, 1e-40, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.8e38, f32::MAX] {
        for eps in [Eps::InsideSqrt(e), Eps::Clamp(e), Eps::After(e)] {
            let text = format!("eps is {e:e}, expected a positive normal number of at most 2^126");
            refused(&text, &|o| o.row_norms(WeightNorm::unit(&v).eps(eps), &norms));
            refused(&text, &|o| o.normalize(weight.eps(eps), &w));
            refused(&text, &|o| o.normalize_in_place(WeightNorm::unit(&w).eps(eps)));
            refused(&text, &|o| o.decompose(Decompose::new(&v).eps(eps), &w, &norms));
            refused(&text, &|o| o.linear(Linear::new(&x, weight.eps(eps)).bias(&bias), &y));
        }
    }
    if let Some(first) = failures.first() {
        return Err(format!("{} misuses, the first: {first}", failures.len()));
    }
    drop(ops);
    gpu.queue().submit([encoder.finish()]);
    for tensor in [&y, &w, &norms, &shared] {
        let words = tensor.read::<f32>().map_err(|e| e.to_string())?;
        if words.iter().any(|&a| a != 7.0) {
            return Err(format!("an output was written: {words:?}"));
        }
    }
    // Outputs and inputs may share a buffer as long as no output overlaps anything.
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut ops = gpu.record(&mut encoder);
    let fits = ops.linear(Linear::new(&x, weight).bias(&bias).norms(&part(48, &[4])), &part(0, &[3, 4]));
    fits.map_err(|e| e.to_string())?;
    ops.normalize(WeightNorm::unit(&front), &back).map_err(|e| e.to_string())?;
    if ops.dispatch_count() < 2 { Err("it was not recorded".into()) } else { Ok(()) }
}

/// What tensors refuse: lengths, offsets, sizes, storage types, usages.
pub fn tensors_are_refused(gpu: &Gpu) -> Result<(), String> {
    let usage = wgpu::BufferUsages::STORAGE;
    let descriptor = wgpu::BufferDescriptor { label: None, size: 64, usage, mapped_at_creation: false };
    let buffer = gpu.device().create_buffer(&descriptor);
    let adopt = |offset, shape: &[usize], dtype| Tensor::from_buffer(gpu, &buffer, offset, shape, dtype).map(drop);
    let six = gpu.upload(&[0f32; 6], &[2, 3]).map_err(|e| e.to_string())?;
    let upload = |shape: &[usize]| gpu.upload(&[0f32; 5], shape).map(drop);
    let cases = [
        (upload(&[2, 3]), "5 elements for shape [2, 3], which holds 6"),
        (upload(&[5, 0]), "5 elements for shape [5, 0], which holds 0"),
        (upload(&[]), "5 elements for shape [], which holds 1"),
        (six.reshape(&[7]).map(drop), "6 elements for shape [7], which holds 7"),
        (six.reshape(&[3, 0]).map(drop), "6 elements for shape [3, 0], which holds 0"),
        (adopt(2, &[4], DType::F16), "a tensor starts at byte 2, expected a multiple of 4"),
        (adopt(1, &[0], DType::F32), "a tensor starts at byte 1, expected a multiple of 4"),
        (adopt(4, &[16], DType::F32), "a tensor ends at byte 68 (whole words), but its buffer at 64"),
        // The last half of its last word is missing.
        (adopt(0, &[33], DType::F16), "a tensor ends at byte 68 (whole words), but its buffer at 64"),
        (
            adopt(u64::MAX - 3, &[4], DType::F32),
            "a tensor ends at byte 18446744073709551615 (whole words), but its buffer at 64",
        ),
        (six.read::<half::f16>().map(drop), "read: T is F16, expected F32"),
        (pollster::block_on(six.read_async::<half::bf16>()).map(drop), "read: T is Bf16, expected F32"),
        (
            Tensor::from_buffer(gpu, &buffer, 0, &[4], DType::F32).and_then(|t| t.read::<f32>()).map(drop),
            "read: the buffer of the tensor lacks BufferUsages(COPY_SRC)",
        ),
    ];
    for (result, text) in cases {
        match result {
            Err(error) if error.to_string() == text => {}
            other => return Err(format!("{other:?}, expected {text:?}")),
        }
    }
    for shape in
        [&[1 << 16, 1 << 16][..], &[usize::MAX, 2, 0], &[usize::MAX], &[0, usize::MAX, usize::MAX], &[1 << 40, 0]]
    {
        let all = [
            gpu.zeros(shape, DType::F16).map(drop),
            gpu.upload::<f32>(&[], shape).map(drop),
            adopt(0, shape, DType::Bf16),
            six.reshape(shape).map(drop),
        ];
        for result in all {
            if !matches!(result, Err(Error::Limit(LimitError::TensorTooLarge { unit: "elements", .. }))) {
                return Err(format!("{result:?} for {shape:?}"));
            }
        }
    }
    // A y of 2^32 elements from inputs of none.
    let (x, v) = (gpu.zeros(&[1 << 16, 0], DType::F32), gpu.zeros(&[1 << 16, 0], DType::F32));
    let (x, v) = (x.map_err(|e| e.to_string())?, v.map_err(|e| e.to_string())?);
    match gpu.linear(Linear::new(&x, &v)) {
        Err(Error::Limit(LimitError::TensorTooLarge { what: "linear: y", .. })) => Ok(()),
        other => Err(format!("{other:?} for 2^32 elements")),
    }
}

/// What comes back is what went in, for each storage type, also from byte offsets within a buffer.
pub fn tensors_come_back(gpu: &Gpu) -> Result<(), Error> {
    fn check<T: Element + PartialEq + std::fmt::Debug>(gpu: &Gpu, make: impl Fn(f32) -> T) -> Result<(), Error> {
        for n in [0, 1, 2, 3, 37, 257, 65_537] {
            let data: Vec<T> = (0..n).map(|i| make(i as f32 / 8.0 - 3.0)).collect();
            let tensor = gpu.upload(&data, &[n])?;
            assert_eq!((tensor.len(), tensor.is_empty(), tensor.dtype(), tensor.offset()), (n, n == 0, T::DTYPE, 0));
            assert_eq!(tensor.read::<T>()?, data);
            assert_eq!(pollster::block_on(tensor.read_async::<T>())?, data);
            assert_eq!(tensor.reshape(&[1, n, 1])?.shape(), [1, n, 1]);
            assert_eq!(tensor.reshape(&[1, n, 1])?.read::<T>()?, data);
            assert_eq!(gpu.zeros(&[n], T::DTYPE)?.read::<T>()?, vec![make(0.0); n]);
            for offset in [4, 8, 256 + 12].into_iter().filter(|o| o + 40 < n as u64 * T::DTYPE.size()) {
                let first = (offset / T::DTYPE.size()) as usize;
                let part = Tensor::from_buffer(gpu, tensor.buffer()?, offset, &[13], T::DTYPE)?;
                assert_eq!(part.read::<T>()?, data[first..first + 13], "from byte {offset}");
            }
        }
        Ok(())
    }
    check::<f32>(gpu, |a| a)?;
    check::<half::f16>(gpu, half::f16::from_f32)?;
    check::<half::bf16>(gpu, half::bf16::from_f32)
}
