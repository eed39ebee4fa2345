//! What an output consists of, and the writing of it.
use std::collections::HashMap;
use std::path::Path;

use super::aliases::{Edit, Names, New};
use super::at::buffer;
use super::file::{self, Sink};
use super::find::{At, Wanted, find};
use super::header::{self, Header};
use super::index::Totals;
use super::{Checkpoint, Error, Finding, Found, FoundWeight, Meter, Progress, Rules, Spelling, TensorInfo};

/// What was written.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The weights that were folded, split or renamed.
    pub weights: Vec<FoundWeight>,
    /// Warnings of them.
    pub warnings: Vec<Finding>,
    /// The other tensors, copied as they are.
    pub copied: usize,
    /// Bytes of all tensors written.
    pub bytes: u64,
    /// Submissions to the GPU.
    pub submissions: u64,
}

/// Where a tensor of the output lies: (file, first byte of the data).
pub(super) type Place = (usize, u64);

/// An output, laid out.
pub(super) struct Plan<'a> {
    checkpoint: &'a Checkpoint,
    /// Name and header of each.
    files: Vec<(String, Header)>,
    texts: Vec<(String, String)>,
    copies: Vec<(At, Place)>,
    /// Tensors that no weight takes part in.
    others: usize,
    /// Of what is computed: by the old tensor that it takes the place of, and its number there.
    pub places: HashMap<(At, usize), Place>,
    bytes: u64,
}

impl<'a> Plan<'a> {
    /// The checkpoint with some names gone or changed and some tensors new. `weights`: whose they are.
    pub fn new(checkpoint: &'a Checkpoint, edit: &Edit, weights: &[FoundWeight]) -> Result<Plan<'a>, Error> {
        let mut plan = Plan {
            checkpoint,
            files: vec![],
            texts: vec![],
            copies: vec![],
            others: 0,
            places: HashMap::new(),
            bytes: 0,
        };
        let findings = edit.taken(checkpoint, weights);
        if !findings.is_empty() {
            return Err(Error::Findings { findings });
        }
        let (names, mut written) = (Names::new(checkpoint, edit), vec![]);
        for shard in 0..checkpoint.shards.len() {
            plan.lay_out(shard, edit, &names, &mut written)?;
        }
        if let Some(index) = &checkpoint.index {
            let sum = |mut totals: Totals, tensor| {
                totals.add(tensor);
                totals
            };
            let before = checkpoint.tensors().fold(Totals::default(), sum);
            let after = plan.files.iter().flat_map(|(_, header)| &header.tensors).fold(Totals::default(), sum);
            plan.texts.push((index.name.clone(), index.rewritten(written, before, after)));
        }
        Ok(plan)
    }

    fn lay_out(
        &mut self,
        shard: usize,
        edit: &Edit,
        names: &Names<'a, '_>,
        written: &mut Vec<(&'a str, Vec<(String, String)>)>,
    ) -> Result<(), Error> {
        let source = &self.checkpoint.shards[shard];
        let old = &source.header.tensors;
        let file_name = source.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let file = self.files.len();
        let metadata = source.header.metadata.as_ref().map(|entries| names.metadata(entries));
        let mut header = Header { metadata, metadata_at: source.header.metadata_at, tensors: vec![] };
        // (the old tensor, its number among the new ones in place of it, where its bytes come from), for each.
        let mut origins: Vec<(At, usize, Option<At>)> = vec![];
        for (position, tensor) in old.iter().enumerate() {
            if position == source.header.metadata_at {
                header.metadata_at = header.tensors.len();
            }
            let (at, first) = ((shard, position), header.tensors.len());
            if let Some(name) = names.kept(at) {
                let is_renamed = matches!(edit.names.get(&tensor.name), Some(Some(_)));
                self.others += usize::from(!is_renamed);
                header.tensors.push(TensorInfo { name: name.to_owned(), ..tensor.clone() });
                origins.push((at, 0, Some(at)));
            }
            for (number, New { name, dtype, shape, copy, .. }) in edit.new.get(&at).into_iter().flatten().enumerate() {
                let size = header::byte_size(shape, *dtype).unwrap_or(u64::MAX);
                let (name, shape) = (name.clone(), shape.clone());
                header.tensors.push(TensorInfo { name, dtype: *dtype, shape, begin: 0, end: size, more: vec![] });
                origins.push((at, number, *copy));
            }
            let new = header.tensors[first..].iter().map(|tensor| (tensor.name.clone(), file_name.clone()));
            written.push((&tensor.name, new.collect()));
        }
        if source.header.metadata_at == old.len() {
            header.metadata_at = header.tensors.len();
        }
        if header.tensors.is_empty() && !old.is_empty() && self.checkpoint.is_sharded() {
            return Ok(());
        }

        let mut order: Vec<usize> = (0..origins.len()).collect();
        order.sort_by_key(|&i| {
            let ((_, position), ..) = origins[i];
            (old[position].begin, old[position].end, i)
        });
        let aligned = |tensor: &TensorInfo| tensor.begin.is_multiple_of((tensor.dtype.bits() / 8).max(1));
        let too_large = |tensor: &TensorInfo| Error::Tensor {
            path: source.path.clone(),
            tensor: tensor.name.clone(),
            reason: "the output would be too large".to_owned(),
        };
        let mut end = place(&mut header.tensors, &order).map_err(too_large)?;
        if old.iter().all(aligned) && !header.tensors.iter().all(aligned) {
            order.sort_by_key(|&i| std::cmp::Reverse(header.tensors[i].dtype.bits()));
            end = place(&mut header.tensors, &order).map_err(too_large)?;
        }
        self.bytes = self.bytes.saturating_add(end);
        for (tensor, &(at, number, copy)) in header.tensors.iter().zip(&origins) {
            let place = (file, tensor.begin);
            match copy {
                Some(from) => self.copies.push((from, place)),
                None => drop(self.places.insert((at, number), place)),
            }
        }
        self.files.push((file_name, header));
        Ok(())
    }

    /// Checks, before any work, that the output may be written.
    pub fn check_target(&self, output: &Path) -> Result<(), Error> {
        if self.checkpoint.is_sharded() { file::check_folder_target(output) } else { file::check_file_target(output) }
    }

    /// Writes it: what `compute` computes, then what is copied.
    pub fn write(
        &self,
        output: &Path,
        rules: &Rules,
        progress: &mut dyn FnMut(Progress<'_>),
        compute: impl FnOnce(&[Sink], &mut Meter<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut meter = Meter { report: progress, done: 0, total: self.bytes };
        let write = |sinks: &[Sink]| {
            compute(sinks, &mut meter)?;
            self.copy(sinks, rules, &mut meter)
        };
        match &self.files[..] {
            [(_, header)] if !self.checkpoint.is_sharded() => file::write_file(output, header, write),
            files => file::write_folder(output, files, &self.texts, write),
        }
    }

    fn copy(&self, sinks: &[Sink], rules: &Rules, meter: &mut Meter<'_>) -> Result<(), Error> {
        let mut room = buffer(rules.window_bytes().min(4 << 20) as usize, &self.checkpoint.path)?;
        for &(from, (file, to)) in &self.copies {
            let (source, tensor) = (&self.checkpoint.shards[from.0], self.checkpoint.at(from));
            let mut done = 0;
            while done < tensor.bytes() {
                let count = (tensor.bytes() - done).min(room.len() as u64);
                let part = &mut room[..count as usize];
                source.read(tensor.begin + done, part)?;
                sinks[file].write(to + done, part)?;
                done += count;
                meter.add(&tensor.name, count);
            }
        }
        Ok(())
    }

    pub fn report(&self, weights: Vec<FoundWeight>, warnings: Vec<Finding>, submissions: u64) -> Report {
        Report { weights, warnings, copied: self.others, bytes: self.bytes, submissions }
    }
}

/// One behind the other in that order, sizes as they are. Returns the end, or the tensor at which it overflows.
fn place<'a>(tensors: &'a mut [TensorInfo], order: &[usize]) -> Result<u64, &'a TensorInfo> {
    let mut end = 0u64;
    for &i in order {
        let size = tensors[i].bytes();
        let Some(next) = end.checked_add(size).filter(|&next| next <= i64::MAX as u64) else { return Err(&tensors[i]) };
        (tensors[i].begin, tensors[i].end) = (end, next);
        end = next;
    }
    Ok(end)
}

pub(super) const NO_WEIGHT: &str = "no weight-normalized parameter is there, or is chosen";

/// The weights that the rules choose with warnings, or what keeps them from being worked on.
pub(super) fn chosen(checkpoint: &Checkpoint, rules: &Rules, wanted: Wanted) -> Result<Found, Error> {
    let mut found = find(checkpoint, rules, wanted);
    let mut warnings = vec![];
    sort_out(std::mem::take(&mut found.findings), rules, &mut warnings)?;
    found.findings = warnings;
    if found.weights.is_empty() && found.dropped.is_empty() {
        return Err(Error::NothingChosen { path: checkpoint.path.clone(), what: NO_WEIGHT });
    }
    Ok(found)
}

/// Warnings are kept, anything else is an error.
pub(super) fn sort_out(findings: Vec<Finding>, rules: &Rules, warnings: &mut Vec<Finding>) -> Result<(), Error> {
    let (findings, more): (Vec<_>, Vec<_>) = findings.into_iter().partition(|finding| rules.refuses(finding));
    warnings.extend(more);
    if findings.is_empty() { Ok(()) } else { Err(Error::Findings { findings }) }
}

/// Writes the checkpoint with its weights called by another spelling, those that are not called so already. No number
/// is touched, and converting back gives the bytes of the input where the `safetensors` crate or this one wrote it.
///
/// # Errors
/// [`Error::Findings`], but not for an ambiguous axis (of which [`Report`] has the first), zero rows and types: names
/// do not depend on them; [`Error::NothingChosen`] if there is no weight at all; [`Error::Io`], [`Error::Occupied`].
pub fn convert(
    checkpoint: &Checkpoint,
    output: &Path,
    spelling: Spelling,
    rules: &Rules,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    let Found { mut weights, findings: warnings, dropped } = chosen(checkpoint, rules, Wanted::Names)?;
    weights.retain(|weight| weight.spelling != spelling);
    let mut edit = Edit::without(dropped);
    for (i, weight) in weights.iter().enumerate() {
        edit.names.insert(weight.g_name(), Some((i, spelling.g(&weight.name))));
        edit.names.insert(weight.v_name(), Some((i, spelling.v(&weight.name))));
    }
    let plan = Plan::new(checkpoint, &edit, &weights)?;
    plan.check_target(output)?;
    plan.write(output, rules, progress, |_, _| Ok(()))?;
    Ok(plan.report(weights, warnings, 0))
}
