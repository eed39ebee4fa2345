//! The dispatches on one weight.
use crate::binding::offsets;
use crate::memory::Scratch;
use crate::record::Dispatch;
use crate::weight::item::{DW, G, KNOWN, LAST, OF_KNOWN, OUT, Params, SUMS, V};
use crate::weight::job::{Job, constants};
use crate::weight::place::Windows;
use crate::{Error, Recorder};

/// Records a job.
pub(crate) fn record(ops: &mut Recorder<'_, '_>, job: &Job<'_>, accumulate: bool) -> Result<(), Error> {
    let facts = ops.facts();
    let plan = job.plan(facts, None)?;
    let sums = ops.scratch(Scratch::Sums, plan.sums * job.sum_bytes())?;
    for cut in &plan.cuts {
        let draft = job.draft(cut, &cut.whole());
        let windows = Windows::default().with(&draft.places, facts.capacities);
        let words = windows.words(&draft.places);
        let mut constants = constants(job, std::slice::from_ref(&draft), false);
        constants.extend(accumulate.then_some(("ADD", 1)));
        ops.dispatch(&Dispatch {
            kernel: cut.kind.kernel(false),
            module: cut.kind.module(false, draft.in_quads),
            constants: &constants,
            // Scales of one weight are in memory that the job names.
            buffers: &windows.spans(cut.kind, [&sums, &sums]).collect::<Vec<_>>(),
            params: Params {
                part: words[SUMS],
                places: offsets([words[V], words[DW], words[G], words[OUT]]),
                more_places: cut.params.more_places | words[LAST],
                flags: draft.flags | words[KNOWN] << OF_KNOWN,
                eps: draft.eps,
                ..cut.params
            },
            groups: cut.params.count.into(),
            work: cut.work,
        })?;
    }
    Ok(())
}
