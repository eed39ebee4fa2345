//! The table of a set of weights: what the workgroups do stands on the device, made once, an item of 64 bytes for each.
//! The items of a member are those of its own dispatches ([`Cut::item`](super::item::Cut::item)); what can be reached
//! together becomes one dispatch.
use crate::arguments::Arguments;
use crate::choose::Facts;
use crate::kernel::Constants;
use crate::memory::Memory;
use crate::source::Module;
use crate::weight::item::{KNOWN, Kind, unit_of};
use crate::weight::job::{Draft, Job, Share, constants};
use crate::weight::member::{SetMember, SetOperator};
use crate::weight::place::{Region, Source, Windows};
use crate::windows::GL_WORK;
use crate::{Cost, Error, Gpu, LimitError};

pub(super) const ITEM_BYTES: u64 = 64;

/// All dispatches of one operator on one set.
#[derive(Debug)]
pub(super) struct Table {
    pub table: Memory,
    pub stages: Vec<Stage>,
    /// Bytes of scratch memory.
    pub sums: u64,
    pub scales: u64,
    pub work: Cost,
}

/// One dispatch.
#[derive(Debug)]
pub(super) struct Stage {
    pub kind: Kind,
    pub module: Module,
    pub constants: Constants,
    pub windows: Windows,
    pub first: u64,
    pub count: u64,
    pub work: u64,
}

impl Table {
    pub fn new(gpu: &Gpu, operator: SetOperator, members: &[SetMember<'_>]) -> Result<Table, Error> {
        let facts = gpu.facts();
        let jobs =
            members.iter().enumerate().map(|(index, member)| operator.job(member).map_err(|e| e.of_member(index)));
        let mut jobs = jobs.collect::<Result<Vec<_>, _>>()?;
        let none = Arguments::new(operator.name());
        let arguments = members.iter().fold(none, |all, member| operator.arguments(member, all));
        let work = arguments.operations(members.iter().map(|member| operator.operations(member)).sum()).check(gpu)?;
        let elements = jobs.iter().map(|job| job.v.len() as u64).sum();
        let mut share = Share {
            unit: unit_of(&jobs.iter().flat_map(Job::dtypes).collect::<Vec<_>>()),
            target: facts.traits.elements_of_an_item(elements),
            first_sum: 0,
        };
        let (mut sums, mut scales, mut drafts) = (0, 0, vec![]);
        for job in &mut jobs {
            let size = job.layout.outer * job.layout.kept * job.layout.inner;
            let limit = u64::from(u32::MAX) - 16;
            if size > limit {
                return Err(LimitError::TooLarge { what: "a member of a set in elements", size, limit }.into());
            }
            if job.out.is_none() {
                job.out = Some(Region { source: Source::Scales, offset: scales });
                scales += job.layout.kept * job.form.size();
            }
            let plan = job.plan(facts, Some(share))?;
            share.first_sum += plan.sums;
            // A partial sum takes as many bytes in all members.
            sums = share.first_sum * job.sum_bytes();
            for cut in &plan.cuts {
                let items = (0..cut.params.count.into()).map(|id| cut.item(id));
                // Behind the last row of a matrix an item may have nothing.
                let some = items.filter(|item| cut.kind != Kind::Rescale || item.elements.count > 0);
                drafts.extend(some.map(|item| job.draft(cut, &item)));
            }
        }
        let mut planner = Planner { facts, job: jobs.first(), table: vec![], stages: vec![] };
        for &kind in Kind::ALL {
            planner.stages(drafts.extract_if(.., |draft| draft.kind == kind));
        }
        let Planner { table, stages, .. } = planner;
        let bytes: &[u8] = bytemuck::cast_slice(&table);
        let size = (bytes.len() as u64).max(16);
        let table = gpu.create_written_buffer("a table", size, wgpu::BufferUsages::STORAGE, |mut all| {
            all.slice(..bytes.len()).copy_from_slice(bytes)
        })?;
        Ok(Table { table: Memory::Buffer(table), stages, sums, scales, work })
    }
}

/// Makes a table.
struct Planner<'a> {
    facts: Facts,
    /// What all jobs have in common is in any of them.
    job: Option<&'a Job<'a>>,
    table: Vec<[u32; 16]>,
    stages: Vec<Stage>,
}

impl Planner<'_> {
    /// Dispatches for items of one kernel: one for each combination of buffers, more where a limit wants it.
    fn stages(&mut self, drafts: impl Iterator<Item = Draft>) {
        let capacities = self.facts.capacities;
        let mut groups: Vec<(Windows, Vec<Draft>)> = vec![];
        for draft in drafts {
            let fits = |(reach, group): &&mut (Windows, Vec<Draft>)| {
                group[0].in_quads == draft.in_quads && reach.share_buffers(&draft.places)
            };
            match groups.iter_mut().find(fits) {
                Some((reach, group)) => {
                    *reach = reach.with(&draft.places, capacities);
                    group.push(draft);
                }
                None => groups.push((Windows::default().with(&draft.places, capacities), vec![draft])),
            }
        }
        let most = (capacities.binding / ITEM_BYTES).min(capacities.groups);
        for (_, group) in groups {
            let (mut open, mut reach, mut work): (Vec<Draft>, Windows, u64) = Default::default();
            for draft in group {
                let wider = reach.with(&draft.places, capacities);
                let holds = wider.fit(capacities)
                    && (open.len() as u64) < most
                    && (!capacities.gl || work + draft.work <= GL_WORK);
                if holds || open.is_empty() {
                    reach = wider;
                } else {
                    let own = Windows::default().with(&draft.places, capacities);
                    self.close(std::mem::take(&mut open), std::mem::replace(&mut reach, own));
                    work = 0;
                }
                work += draft.work;
                open.push(draft);
            }
            self.close(open, reach);
        }
    }

    /// Closes a dispatch: its items go to the table, with the places that its windows give them.
    fn close(&mut self, drafts: Vec<Draft>, windows: Windows) {
        let (Some(job), Some(&Draft { kind, in_quads, .. })) = (self.job, drafts.first()) else { return };
        let drafts = self.facts.traits.balanced(drafts, |d| d.work);
        self.stages.push(Stage {
            kind,
            module: kind.module(true, in_quads),
            constants: constants(job, &drafts, true),
            first: self.table.len() as u64,
            count: drafts.len() as u64,
            work: drafts.iter().map(|d| d.work).sum(),
            windows,
        });
        let windows = &self.stages[self.stages.len() - 1].windows;
        self.table.extend(drafts.iter().map(|draft| {
            let mut words = [0; 16];
            words[..KNOWN].copy_from_slice(&windows.words(&draft.places)[..KNOWN]);
            words[KNOWN] = draft.flags;
            words[KNOWN + 1] = draft.eps.to_bits();
            words[KNOWN + 2..].copy_from_slice(&draft.words);
            words
        }));
    }
}
