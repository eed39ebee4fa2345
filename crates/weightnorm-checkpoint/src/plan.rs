//! What an output consists of, and the writing of it.
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::aliases::{Edit, Names, New};
use super::at::buffer;
use super::file::{self, Sink};
use super::find::{At, Wanted, find};
use super::header::{self, Header};
use super::index::Totals;
use super::{Checkpoint, DoraLayer, Error, Finding, Found, FoundWeight, Meter, Progress, Rules, Spelling, TensorInfo};

/// What was written.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The weights that were folded, split or renamed; of a part those of the files that were written.
    pub weights: Vec<FoundWeight>,
    /// The layers whose weights [`merge`](crate::merge) made ordinary ones, as they are now; likewise.
    pub merged: Vec<DoraLayer>,
    /// Warnings of them.
    pub warnings: Vec<Finding>,
    /// The other tensors, copied as they are.
    pub copied: usize,
    /// Bytes of all tensors written.
    pub bytes: u64,
    /// Submissions to the GPU.
    pub submissions: u64,
    /// Files of a part that were there already, whole: [`Rules::part`].
    pub skipped: usize,
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
    /// Tensors that no weight takes part in, of each file.
    others: Vec<usize>,
    /// Of what is computed: by the old tensor that it takes the place of, and its number there.
    pub places: HashMap<(At, usize), Place>,
    /// Of each file.
    bytes: Vec<u64>,
}

/// What is written at a time.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Files {
    /// The whole output.
    All,
    /// One file of a sharded one.
    One(usize),
}

impl Files {
    /// Whether that file is among them.
    pub fn has(self, file: usize) -> bool {
        self == Files::All || self == Files::One(file)
    }

    /// The sink of a file that is among them.
    pub fn sink(self, sinks: &[Sink], file: usize) -> &Sink {
        &sinks[if self == Files::All { file } else { 0 }]
    }
}

/// What is to be written, and where to.
pub(super) struct Target {
    path: PathBuf,
    /// One after the other: each has its name as soon as it is whole.
    pub files: Vec<Files>,
    skipped: usize,
}

impl<'a> Plan<'a> {
    /// The checkpoint with some names gone or changed and some tensors new. `weights`: whose they are.
    pub fn new(checkpoint: &'a Checkpoint, edit: &Edit, weights: &[FoundWeight]) -> Result<Plan<'a>, Error> {
        let mut plan = Plan {
            checkpoint,
            files: vec![],
            texts: vec![],
            copies: vec![],
            others: vec![],
            places: HashMap::new(),
            bytes: vec![],
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
        let mut others = 0;
        for (position, tensor) in old.iter().enumerate() {
            if position == source.header.metadata_at {
                header.metadata_at = header.tensors.len();
            }
            let (at, first) = ((shard, position), header.tensors.len());
            if let Some(name) = names.kept(at) {
                let is_renamed = matches!(edit.names.get(&tensor.name), Some(Some(_)));
                others += usize::from(!is_renamed);
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
        self.bytes.push(end);
        self.others.push(others);
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

    /// What is to be written, having checked, before any work, that it may be. Of a part the folder is made if it is not
    /// there, and files that are there whole are left as they are.
    pub fn target(&self, output: &Path, rules: &Rules) -> Result<Target, Error> {
        let is_sharded = self.checkpoint.is_sharded();
        let mut target = Target { path: output.to_owned(), files: vec![], skipped: 0 };
        let Some(part) = rules.part else {
            if is_sharded {
                file::check_folder_target(output)?
            } else {
                file::check_file_target(output)?
            }
            target.files.push(Files::All);
            return Ok(target);
        };
        let wrong = |reason| Error::Part { path: self.checkpoint.path.clone(), reason };
        if !is_sharded {
            return Err(wrong("it is one file, and parts are of a sharded checkpoint".to_owned()));
        }
        if part.number == 0 || part.number > part.count {
            return Err(wrong(format!("part {} of {}: parts are numbered from 1", part.number, part.count)));
        }
        file::make_folder(output)?;
        for file in (part.number - 1..self.files.len()).step_by(part.count) {
            let (name, header) = &self.files[file];
            if file::is_written(&output.join(name), header, self.bytes[file])? {
                target.skipped += 1;
            } else {
                target.files.push(Files::One(file));
            }
        }
        Ok(target)
    }

    /// Writes it: what `compute` computes of some files, then what is copied.
    pub fn write(
        &self,
        target: &Target,
        rules: &Rules,
        progress: &mut dyn FnMut(Progress<'_>),
        mut compute: impl FnMut(Files, &[Sink], &mut Meter<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut meter = Meter { report: progress, done: 0, total: self.sum(target, &self.bytes) };
        for &files in &target.files {
            let write = |sinks: &[Sink]| {
                compute(files, sinks, &mut meter)?;
                self.copy(files, sinks, rules, &mut meter)
            };
            match (files, &self.files[..]) {
                (Files::One(file), all) => file::write_file(&target.path.join(&all[file].0), &all[file].1, write)?,
                (_, [(_, header)]) if !self.checkpoint.is_sharded() => file::write_file(&target.path, header, write)?,
                (_, all) => file::write_folder(&target.path, all, &self.texts, write)?,
            }
        }
        Ok(())
    }

    /// The sum of what belongs to each file, over those that are to be written.
    fn sum(&self, target: &Target, of_each: &[u64]) -> u64 {
        let all = of_each.iter().enumerate();
        all.filter(|&(file, _)| target.files.iter().any(|files| files.has(file))).map(|(_, n)| n).sum()
    }

    /// The file that takes the tensor of that weight, which is made or copied there.
    fn file_of(&self, weight: &FoundWeight) -> Option<usize> {
        let made = (0..2).find_map(|number| self.places.get(&(weight.v, number)));
        let copied = || self.copies.iter().find(|(from, _)| *from == weight.v).map(|(_, place)| place);
        made.or_else(copied).map(|&(file, _)| file)
    }

    fn copy(&self, files: Files, sinks: &[Sink], rules: &Rules, meter: &mut Meter<'_>) -> Result<(), Error> {
        let mut room = buffer(rules.window_bytes().min(4 << 20) as usize, &self.checkpoint.path)?;
        for &(from, (file, to)) in self.copies.iter().filter(|(_, (file, _))| files.has(*file)) {
            let (source, tensor) = (&self.checkpoint.shards[from.0], self.checkpoint.at(from));
            let mut done = 0;
            while done < tensor.bytes() {
                let count = (tensor.bytes() - done).min(room.len() as u64);
                let part = &mut room[..count as usize];
                source.read(tensor.begin + done, part)?;
                files.sink(sinks, file).write(to + done, part)?;
                done += count;
                meter.add(&tensor.name, count);
            }
        }
        Ok(())
    }

    pub fn report(
        &self,
        target: &Target,
        mut weights: Vec<FoundWeight>,
        warnings: Vec<Finding>,
        submissions: u64,
    ) -> Report {
        let others: Vec<u64> = self.others.iter().map(|&others| others as u64).collect();
        let is_written = |file| target.files.iter().any(|files| files.has(file));
        if target.files != [Files::All] {
            weights.retain(|weight| self.file_of(weight).is_some_and(is_written));
        }
        let (copied, bytes) = (self.sum(target, &others) as usize, self.sum(target, &self.bytes));
        Report { weights, merged: vec![], warnings, copied, bytes, submissions, skipped: target.skipped }
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

const NO_WEIGHT: &str = "no weight-normalized parameter is there, or is chosen";
const DORA_ALONE: &str = "no weight-normalized parameter is there, or is chosen; but there are layers of DoRA, of which \
                          merge makes ordinary weights";

/// That there is nothing to be worked on.
pub(super) fn no_weight(checkpoint: &Checkpoint) -> Error {
    let what = if checkpoint.dora_layers().is_empty() { NO_WEIGHT } else { DORA_ALONE };
    Error::NothingChosen { path: checkpoint.path.clone(), what }
}

/// The weights that the rules choose with warnings, or what keeps them from being worked on.
pub(super) fn chosen(checkpoint: &Checkpoint, rules: &Rules, wanted: Wanted) -> Result<Found, Error> {
    let mut found = find(checkpoint, rules, wanted);
    let mut warnings = vec![];
    sort_out(std::mem::take(&mut found.findings), rules, &mut warnings)?;
    found.findings = warnings;
    if found.weights.is_empty() && found.dropped.is_empty() {
        return Err(no_weight(checkpoint));
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
    let target = plan.target(output, rules)?;
    plan.write(&target, rules, progress, |_, _, _| Ok(()))?;
    Ok(plan.report(&target, weights, warnings, 0))
}
