//! Adapters of DoRA merged on the device, against the reference; and recurrent layers folded there.
use safetensors::Dtype;
use weightnorm::{Axis, DType, Eps, Gpu, cpu};
use weightnorm_checkpoint::{self as checkpoint, Checkpoint, Error, Problem, Rules, Scaling, Spelling};

use crate::checkpoint::{computed, fold_to, is_folded};
use crate::common::compare;
use crate::common::dora::dora_bounds;
use crate::files::{Folder, made, recurrent, write};
use crate::{Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.test("merge::dora", Needs::Nothing, |gpu| merges(gpu, &[Dtype::F32]));
    suite.test("merge::dora_types_in_full", Needs::Time, |gpu| merges(gpu, &[Dtype::F16, Dtype::BF16, Dtype::F64]));
    suite.test("merge::fold_recurrent", Needs::Nothing, fold_recurrent);
}

const OUTS: usize = 9;
const INS: usize = 70;
const RANK: usize = 3;

/// W0 of each type, an adapter in f32, f16 and bf16 in the same file, and a row without a number but zeros.
fn merges(gpu: &Gpu, dtypes: &[Dtype]) -> Outcome {
    let folder = Folder::new("merge-gpu");
    let [from, output] = ["from", "out"].map(|name| folder.join(name));
    for &dtype in dtypes {
        let mut tensors = [
            made("l.base_layer.weight", dtype, &[OUTS, INS], 1),
            made("l.lora_A.x.weight", Dtype::F32, &[RANK, INS], 2),
            made("l.lora_B.x.weight", Dtype::F16, &[OUTS, RANK], 3),
            made("l.lora_magnitude_vector.x.weight", Dtype::BF16, &[OUTS], 4),
            made("l.base_layer.bias", dtype, &[OUTS], 5),
        ];
        for zero_row in [false, true] {
            if zero_row {
                let of_a_row = INS * dtype.bitsize() / 8;
                tensors[0].bytes[..of_a_row].fill(0);
                tensors[2].bytes[..RANK * 2].fill(0);
            }
            write(&from, &tensors, &[("format", "pt")]);
            let model = Checkpoint::open(&from)?;
            let merge =
                |rules: &Rules| checkpoint::merge(gpu, &model, None, &output, Scaling::Alpha(4.5), rules, &mut |_| ());
            let mut rules = Rules::default();
            if zero_row {
                let Err(Error::Findings { findings }) = merge(&rules) else { return Err("nothing is told".into()) };
                assert_eq!(findings[0].problem, Problem::ZeroRows { count: 1 });
                rules = rules.allow_zero_rows().eps(Eps::Clamp(1e-12));
            }
            let report = merge(&rules)?;
            assert_eq!((report.merged.len(), report.warnings.len()), (1, usize::from(zero_row)));

            let [base, a, b, m] = [0, 1, 2, 3].map(|i| model.read_f64(&tensors[i].name));
            let (base, a, b, m) = (base?, a?, b?, m?);
            let (shape, eps, scaling) = ([OUTS, INS], rules.eps, 1.5);
            let weight = cpu::DoraWeight { base: &base, a: &a, b: &b, magnitude: &m, shape, rank: RANK, scaling, eps };
            let (storage, _) = computed(dtype);
            let types = [DType::F32, DType::F32, storage];
            let bounds = dora_bounds((&[1.0; INS], &[1, INS]), &weight, None, &[1.0; OUTS], false, types);
            let w = Checkpoint::open(&output)?.read_f64("l.weight")?;
            // A zero row is 0 under the clamp, and its terms are none.
            let bound = |i: usize| if bounds.w.0[i] == 0.0 { 0.0 } else { bounds.w.1[i] };
            compare(&w, &bounds.w.0, Some(storage), bound).map_err(|e| format!("{dtype:?}: {e}"))?;
            assert_eq!(w[..INS].iter().all(|&w| w == 0.0), zero_row);
            let bias = Checkpoint::open(&output)?.read_bytes("l.bias")?;
            assert_eq!(bias, tensors[4].bytes);
        }
    }
    Ok(())
}

/// A stacked, bidirectional LSTM and GRU in both spellings.
fn fold_recurrent(gpu: &Gpu) -> Outcome {
    let folder = Folder::new("fold-recurrent");
    let [from, output] = ["from", "out"].map(|name| folder.join(name));
    for (gates, spelling) in [(4, Spelling::Suffixes), (3, Spelling::Parametrizations)] {
        let tensors = recurrent(spelling, Dtype::F32, gates);
        write(&from, &tensors, &[]);
        let report = fold_to(gpu, &from, &output, &Rules::default())?;
        assert_eq!((report.weights.len(), report.copied, report.submissions), (8, 8, 1));
        is_folded(&std::fs::read(&output)?, &tensors, |_| Axis::Kept(0), Eps::None)?;
    }
    Ok(())
}
