//! The table of numbers.
use safetensors::Dtype;
use weightnorm::{cpu, half};
use weightnorm_checkpoint::{Checkpoint, Inspection, Problem, Range, Rules, Spelling, inspect};

use crate::common::*;
use crate::files::{Folder, Made, made, of_numbers, vocoder, write};

fn look(tensors: &[Made], rules: &Rules) -> Inspection {
    let folder = Folder::new("inspect");
    let path = folder.join("model.safetensors");
    write(&path, tensors, &[]);
    let (mut last, mut total) = (0, 0);
    let mut progress = |p: weightnorm_checkpoint::Progress<'_>| {
        assert!(p.done > last && p.done <= p.total);
        (last, total) = (p.done, p.total);
    };
    let inspection = inspect(&Checkpoint::open(&path).unwrap(), rules, &mut progress).unwrap();
    assert_eq!(last, total);
    inspection
}

#[test]
fn inspect_equals_the_reference_whatever_the_window() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        let mut tensors = vocoder(Spelling::Suffixes, dtype);
        // More rows than are looked at together: one behind the other, and slices apart.
        let many: [(&str, &[usize], &[usize]); 3] = [
            ("x.weight", &[1031, 3], &[1031, 1]),
            ("y.weight", &[7, 1031], &[1, 1031]),
            ("z.weight", &[3, 257, 2], &[257]),
        ];
        for (seed, (name, shape, g_shape)) in (20..).zip(many) {
            tensors.push(made(&format!("{name}_v"), dtype, shape, seed));
            tensors.push(made(&format!("{name}_g"), dtype, g_shape, seed + 10));
        }
        let inspection = look(&tensors, &Rules::default());
        assert_eq!((inspection.rows.len(), inspection.others), (10, 5));
        assert!(inspection.findings.iter().all(|f| f.problem == Problem::Narrowed));
        for row in &inspection.rows {
            let numbers = |name: String| widened(tensors.iter().find(|t| t.name == name).unwrap());
            let (v, g) = (numbers(format!("{}_v", row.weight.name)), numbers(format!("{}_g", row.weight.name)));
            let norms = cpu::row_norms(&v, &row.weight.shape, row.weight.axis, weightnorm::Eps::None).unwrap();
            let near = |range: Option<Range>, expected: &mut dyn Iterator<Item = f64>| {
                let expected: Vec<f64> = expected.collect();
                let Range { min, max } = range.unwrap();
                for (got, expected) in [
                    (min, expected.iter().copied().fold(f64::INFINITY, f64::min)),
                    (max, expected.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
                ] {
                    // Sums of up to 640 squares in f64, in another order.
                    assert!((got - expected).abs() <= 1e-12 * expected.abs(), "{}: {got} {expected}", row.weight.name);
                }
            };
            near(row.norm, &mut norms.iter().copied());
            near(row.ratio, &mut g.iter().zip(&norms).map(|(g, n)| g / n));
            assert_eq!((row.zero_rows, row.non_finite), (0, 0));
        }
        let small = look(&tensors, &Rules::default().window(1));
        for (a, b) in small.rows.iter().zip(&inspection.rows) {
            assert_eq!((&a.weight, a.zero_rows), (&b.weight, b.zero_rows));
            let (a, b) = (a.norm.unwrap(), b.norm.unwrap());
            assert!((a.min - b.min).abs() <= 1e-12 * b.min && (a.max - b.max).abs() <= 1e-12 * b.max);
        }
    }
}

fn widened(tensor: &Made) -> Vec<f64> {
    let chunks = tensor.bytes.chunks(tensor.dtype.bitsize() / 8);
    match tensor.dtype {
        Dtype::F32 => chunks.map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::F64 => chunks.map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
        Dtype::F16 => chunks.map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        _ => chunks.map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).into()).collect(),
    }
}

#[test]
fn inspect_counts_zero_rows_and_numbers_that_are_none() {
    let nan = f32::NAN;
    let v = [0.0, -0.0, 3.0, 4.0, nan, 1.0, f32::INFINITY, f32::NEG_INFINITY];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let tensors = [
            of_numbers("m.weight_g", dtype, &[4, 1], [1.0, -10.0, 1.0, nan]),
            of_numbers("m.weight_v", dtype, &[4, 2], v),
        ];
        let inspection = look(&tensors, &Rules::default());
        let row = &inspection.rows[0];
        assert_eq!((row.zero_rows, row.non_finite), (1, 4));
        assert_eq!(row.norm, Some(Range { min: 0.0, max: 5.0 }));
        assert_eq!(row.ratio, Some(Range { min: -2.0, max: -2.0 }));
        let problems: Vec<_> = inspection.findings.into_iter().map(|f| f.problem).collect();
        assert_eq!(problems, [Problem::ZeroRows { count: 1 }, Problem::NonFinite { count: 4 }]);
    }
}

#[test]
fn inspect_empty_weights() {
    let tensors =
        [of_numbers("m.weight_g", Dtype::F32, &[4, 1], [1.0; 4]), of_numbers("m.weight_v", Dtype::F32, &[4, 0], [])];
    let row = &look(&tensors, &Rules::default()).rows[0];
    assert_eq!((row.zero_rows, row.norm), (0, Some(Range { min: 0.0, max: 0.0 })));
}

/// The trained network of `tests/data`: all its layers but one are weight-normalized.
#[test]
fn inspect_a_trained_network() {
    let path = root().join("tests/data/round_cross.safetensors");
    let inspection = inspect(&Checkpoint::open(&path).unwrap(), &Rules::default(), &mut |_| ()).unwrap();
    assert_eq!(inspection.findings, []);
    let file = File::load(&path).unwrap();
    let pairs = file.tensors.keys().filter(|name| name.ends_with("original0")).count();
    assert_eq!(inspection.rows.len(), pairs);
    assert!(pairs > 3 && inspection.rows.iter().all(|row| row.norm.unwrap().min > 0.0));
}

/// 2 Mi rows, of two elements that lie far apart and of one: not in memory all at once.
#[test]
fn inspect_many_rows_in_bounded_memory() {
    let folder = Folder::new("many-rows");
    let rows = 1 << 21;
    let tensors = [
        made("a.weight_v", Dtype::F32, &[2, rows], 1),
        made("a.weight_g", Dtype::F32, &[1, rows], 2),
        made("b.weight_v", Dtype::F16, &[rows], 3),
        made("b.weight_g", Dtype::F16, &[rows], 4),
    ];
    write(&folder.join("model.safetensors"), &tensors, &[]);
    // In a process of its own, since other tests need memory too.
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["checkpoint::inspect::inspect_child", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, &folder.0)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

const FOLDER: &str = "WEIGHTNORM_TEST_INSPECT";

/// Started by the test above.
#[test]
#[ignore = "does nothing by itself"]
fn inspect_child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let checkpoint = Checkpoint::open(&std::path::Path::new(&folder).join("model.safetensors")).unwrap();
    let before = peak();
    let inspection = inspect(&checkpoint, &Rules::default().window(1 << 20), &mut |_| ()).unwrap();
    assert_eq!(inspection.rows.len(), 2);
    if let (Some(before), Some(after)) = (before, peak()) {
        println!("peak memory: {} KiB more", (after - before) >> 10);
        assert!(after - before < 4 << 20, "{} KiB", (after - before) >> 10);
    }
}
