//! Weights taken apart, and folded again.
use safetensors::{Dtype, SafeTensors};
use weightnorm::{Axis, DType, Eps, Gpu, cpu};
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Error, FileDType, Problem, Report, Rules, Spelling};

use crate::checkpoint::{computed, fold_to, numbers, open};
use crate::common::{compare, norm_bound, norm_chain, weight_bound};
use crate::files::{Folder, Made, made, of_numbers, write};
use crate::{Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("split::split_and_fold", Needs::Nothing, split_and_fold);
    suite.test("split::split_refuses", Needs::Nothing, split_refuses);
}

/// g is within the bound of a norm, v is w byte for byte, and folded they are w within the roundings of both.
fn split_and_fold(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("split");
    let [from, output, back] = ["a", "b", "c"].map(|name| folder.join(&format!("{name}.safetensors")));
    let shapes: [(&str, &[usize], Axis, &[usize]); 4] = [
        ("conv.weight", &[16, 8, 7], Axis::Kept(0), &[16, 1, 1]),
        ("pos.weight", &[24, 6, 16], Axis::Kept(2), &[1, 1, 16]),
        ("whole.weight", &[9, 200], Axis::Whole, &[]),
        ("row.weight", &[3, 2501], Axis::Kept(0), &[3, 1]),
    ];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        let mut tensors: Vec<Made> =
            shapes.iter().enumerate().map(|(i, &(name, shape, ..))| made(name, dtype, shape, i as u64 + 1)).collect();
        tensors.push(made("conv.bias", dtype, &[16], 9));
        tensors.push(made("norm.scale_v", dtype, &[4], 10));
        write(&from, &tensors, &[("format", "pt")]);
        for (spelling, window, gain) in
            [(Spelling::Suffixes, 1 << 20, None), (Spelling::Parametrizations, 4096, Some(DType::F32))]
        {
            let mut rules = Rules::default().include("*.weight").window(window);
            rules.gain = gain;
            for (name, _, axis, _) in shapes {
                rules = rules.axis(name, axis);
            }
            let report = checkpoint::split(gpu, &open(&from)?, &output, spelling, &rules, &mut |_| ())?;
            assert_eq!((report.weights.len(), report.copied), (4, 2));
            let bytes = std::fs::read(&output)?;
            let parted = SafeTensors::deserialize(&bytes)?;
            let (storage, stored) = computed(dtype);
            let g_storage = gain.unwrap_or(storage);
            for (tensor, (name, shape, axis, g_shape)) in tensors.iter().zip(shapes) {
                let (g, v) = (parted.tensor(&spelling.g(name))?, parted.tensor(&spelling.v(name))?);
                assert_eq!((g.shape(), v.shape(), v.dtype()), (g_shape, shape, stored));
                let w = numbers(dtype, &tensor.bytes);
                assert_eq!(numbers(stored, v.data()), w);
                let norms = cpu::row_norms(&w, shape, axis, Eps::default())?;
                let chain = norm_chain(w.len() / norms.len());
                let bound = |j: usize| norm_bound(chain, norms[j]) + storage_error(g_storage, norms[j]);
                compare(&numbers(g.dtype(), g.data()), &norms, Some(g_storage), bound)?;
            }
            // The other spelling would do as well: the names say which it is.
            let axes = rules.axes.clone();
            let mut rules = Rules::default().window(window);
            rules.axes = axes;
            fold_to(gpu, &output, &back, &rules)?;
            let bytes = std::fs::read(&back)?;
            let folded = SafeTensors::deserialize(&bytes)?;
            for (tensor, (name, ..)) in tensors.iter().zip(shapes) {
                let (w, got) = (numbers(dtype, &tensor.bytes), folded.tensor(name)?);
                let chain = norm_chain(w.len());
                let bound = |i: usize| weight_bound(2 * chain, w[i], storage) + storage_error(g_storage, w[i]) * 1.01;
                compare(&numbers(stored, got.data()), &w, Some(storage), bound)?;
            }
        }
    }
    Ok(())
}

/// Half a unit in the last place.
fn storage_error(dtype: DType, x: f64) -> f64 {
    x.abs()
        * 2f64.powi(match dtype {
            DType::F32 => -24,
            DType::F16 => -11,
            DType::Bf16 => -8,
        })
}

fn split_refuses(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("split-refuses");
    let (from, output) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
    let split = |tensors: &[Made], rules: &Rules| {
        write(&from, tensors, &[]);
        let (mut done, mut total) = (0, 0);
        let report = checkpoint::split(gpu, &Checkpoint::open(&from)?, &output, Spelling::Suffixes, rules, &mut |p| {
            (done, total) = (p.done, p.total);
        })?;
        assert_eq!((done, total), (report.bytes, report.bytes));
        Ok(report)
    };
    let problems = |result: Result<Report, Error>| match result {
        Err(Error::Findings { findings }) => Ok(findings.into_iter().map(|f| f.problem).collect::<Vec<_>>()),
        other => Err(format!("{other:?}")),
    };
    // Norms of 1e5, beyond f16.
    let large = [of_numbers("m.weight", Dtype::F16, &[2, 4], [5e4, 5e4, 5e4, 5e4, 1.0, 1.0, 1.0, 1.0])];
    let all = Rules::default().include("*");
    assert_eq!(problems(split(&large, &all))?, [Problem::GainOverflow { count: 1, dtype: "F16" }]);
    assert_eq!(folder.names(), ["a.safetensors"]);
    assert_eq!(split(&large, &all.clone().gain(DType::F32))?.weights[0].g_dtype, FileDType::F32);
    std::fs::remove_file(&output)?;

    let zero = [of_numbers("m.weight", Dtype::F32, &[2, 2], [0.0, 0.0, 1.0, 1.0])];
    assert_eq!(problems(split(&zero, &all))?, [Problem::ZeroRows { count: 1 }]);
    let scalar = [made("m.weight", Dtype::F32, &[], 1), made("n.weight", Dtype::I64, &[2], 1)];
    assert_eq!(problems(split(&scalar, &all))?.len(), 2);
    // Rows without an element have norms as well; there may be more of them than there is memory, or room on any disk.
    let huge = [made("m.weight", Dtype::F32, &[1 << 57, 0], 1)];
    assert_eq!(problems(split(&huge, &all))?, [Problem::ZeroRows { count: 1 << 57 }]);
    let empty = [made("m.weight", Dtype::F32, &[3000, 0], 1)];
    assert_eq!(problems(split(&empty, &all))?, [Problem::ZeroRows { count: 3000 }]);
    split(&empty, &all.clone().allow_zero_rows().window(4096))?;
    let parted = std::fs::read(&output)?;
    assert_eq!(numbers(Dtype::F32, SafeTensors::deserialize(&parted)?.tensor("m.weight_g")?.data()), [0.0; 3000]);
    std::fs::remove_file(&output)?;
    let taken = [made("m.weight", Dtype::F32, &[2, 2], 1), made("m.weight_g", Dtype::F32, &[2, 2], 1)];
    let rules = Rules::default().include("m.weight");
    assert_eq!(problems(split(&taken, &rules))?, [Problem::NameTaken { name: "m.weight_g".into() }]);
    assert!(matches!(split(&taken, &Rules::default()), Err(Error::NothingChosen { .. })));
    assert!(matches!(split(&taken, &Rules::default().include("x")), Err(Error::NothingChosen { .. })));
    assert_eq!(folder.names(), ["a.safetensors"]);
    Ok(())
}
