//! The recording of a profile: each dispatch by itself, and timed.
use super::times::{DispatchTime, OperatorTime, Timing};
use crate::commands::Commands;
#[cfg(not(target_arch = "wasm32"))]
use crate::commands::{PASS, new_encoder};
use crate::{Cost, DType, Error, Gpu, Tensor};

/// The recording of a profile.
pub(crate) struct Session {
    timing: Timing,
    commands: Commands,
    operators: Vec<OperatorTime>,
    /// Two timestamps for each dispatch.
    queries: Vec<wgpu::QuerySet>,
    dispatch_count: u32,
}

/// Dispatches in a query set: half the queries that one may have.
const DISPATCHES_IN_SET: u32 = wgpu::QUERY_SET_MAX_QUERIES / 2;

impl Session {
    pub fn new(gpu: &Gpu, timing: Timing) -> Session {
        if timing == Timing::Wall {
            // What was submitted before is not part of it.
            let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
        }
        Session { timing, commands: Commands::new(gpu), operators: vec![], queries: vec![], dispatch_count: 0 }
    }

    /// What is timed from here on belongs to this operator.
    pub fn begin(&mut self, name: &str, cost: Cost) {
        self.operators.push(OperatorTime { name: name.to_owned(), cost, dispatches: vec![] });
    }

    /// Times what `record` records.
    pub fn time(
        &mut self,
        gpu: &Gpu,
        label: &str,
        work: u64,
        record: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) -> Result<(), Error> {
        let seconds = match self.timing {
            Timing::Timestamps => {
                self.record(gpu, work, record)?;
                0.0 // Known when the timestamps are.
            }
            Timing::Wall => wall(gpu, record)?,
        };
        self.dispatch_count += 1;
        let dispatch = DispatchTime { label: label.to_owned(), seconds };
        self.operators.last_mut().expect("operators begin before they dispatch").dispatches.push(dispatch);
        Ok(())
    }

    fn record(&mut self, gpu: &Gpu, work: u64, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Result<(), Error> {
        let (set, place) = (self.dispatch_count / DISPATCHES_IN_SET, self.dispatch_count % DISPATCHES_IN_SET);
        if place == 0 {
            let descriptor = wgpu::QuerySetDescriptor {
                label: Some("weightnorm.profile"),
                ty: wgpu::QueryType::Timestamp,
                count: 2 * DISPATCHES_IN_SET,
            };
            self.queries.push(gpu.scoped("timestamps", 0, || gpu.device().create_query_set(&descriptor))?);
        }
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries[set as usize],
            beginning_of_pass_write_index: Some(2 * place),
            end_of_pass_write_index: Some(2 * place + 1),
        });
        self.commands.pass(gpu, timestamp_writes, work, record)
    }

    /// Submits what is left, and fills in the times.
    pub async fn finish(mut self, gpu: &Gpu, block: bool) -> Result<Vec<OperatorTime>, Error> {
        let mut resolved = vec![];
        for (set, queries) in self.queries.iter().enumerate() {
            let count = (self.dispatch_count - set as u32 * DISPATCHES_IN_SET).min(DISPATCHES_IN_SET);
            let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
            let buffer = gpu.create_buffer("timestamps", u64::from(count) * 16, usage)?;
            self.commands.encoder().resolve_query_set(queries, 0..2 * count, &buffer, 0);
            resolved.push((buffer, count));
        }
        self.commands.submit(gpu)?;
        let mut dispatches = self.operators.iter_mut().flat_map(|o| &mut o.dispatches);
        let period = f64::from(gpu.queue().get_timestamp_period()) * 1e-9;
        for (buffer, count) in resolved {
            let words = Tensor::from_buffer(gpu, &buffer, 0, &[4 * count as usize], DType::F32)?;
            let words: Vec<f32> = words.fetch(block).await?;
            for (times, dispatch) in bytemuck::cast_slice::<f32, [u32; 4]>(&words).iter().zip(&mut dispatches) {
                let [begin, end] = [[times[0], times[1]], [times[2], times[3]]].map(bytemuck::cast::<_, u64>);
                dispatch.seconds = end.saturating_sub(begin) as f64 * period;
            }
        }
        self.operators.retain(|operator| !operator.dispatches.is_empty());
        Ok(self.operators)
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn wall(gpu: &Gpu, record: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Result<f64, Error> {
    let mut encoder = new_encoder(gpu);
    record(&mut encoder.begin_compute_pass(&PASS));
    let commands = gpu.scoped("commands", 0, || encoder.finish())?;
    let start = std::time::Instant::now();
    gpu.scoped("a submission", 0, || gpu.queue().submit([commands]))?;
    let _ = gpu.device().poll(wgpu::PollType::wait_indefinitely());
    Ok(start.elapsed().as_secs_f64())
}

#[cfg(target_arch = "wasm32")]
fn wall(_: &Gpu, _: impl FnOnce(&mut wgpu::ComputePass<'_>)) -> Result<f64, Error> {
    Err(crate::DeviceError::Unsupported { what: "timestamps".to_owned() }.into())
}
