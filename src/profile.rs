//! Where time goes: the time of each dispatch, the least work of each operator, the roof of the adapter.
pub(crate) mod probe;
pub(crate) mod session;
pub(crate) mod times;

use crate::record::Pass;
use crate::{DeviceError, Error, Gpu, Recorder};
pub use times::{DispatchTime, OperatorTime, Profile, Timing};

use session::Session;

impl Gpu {
    /// Runs what `record` records, by itself, and tells where its time went.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), weightnorm::Error> {
    /// use weightnorm::{DType, Gpu, Linear, WeightNorm};
    /// let gpu = Gpu::new()?;
    /// let (x, y) = (gpu.upload(&[0.5f32; 64 * 512], &[64, 512])?, gpu.zeros(&[64, 512], DType::F32)?);
    /// let (v, g) = (gpu.upload(&[0.1f32; 512 * 512], &[512, 512])?, gpu.upload(&[1.0f32; 512], &[512])?);
    /// let layer = Linear::new(&x, WeightNorm::new(&v, &g));
    /// gpu.profile(|ops| ops.linear(layer, &y))?; // builds the pipelines
    /// let profile = gpu.profile(|ops| (0..20).try_for_each(|_| ops.linear(layer, &y)))?;
    /// println!("{profile}");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The results are those of an ordinary recording. Each dispatch stands alone, so what one might hide behind
    /// another shows; a driver that compiles at the first dispatch of a pipeline does so within its time. The clock is
    /// that of [`Gpu::timing`]; the first profile measures the [`Gpu::roofline`].
    ///
    /// # Errors
    /// Those of `record`, of the device, and of [`Gpu::roofline`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn profile(&self, record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>) -> Result<Profile, Error> {
        self.profile_by(self.timing(), record)
    }

    /// [`Gpu::profile`] with a clock of the caller's choice.
    ///
    /// # Errors
    /// As [`Gpu::profile`]; [`DeviceError::Unsupported`] for timestamps that the device lacks.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn profile_by(
        &self,
        timing: Timing,
        record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>,
    ) -> Result<Profile, Error> {
        let roofline = self.roofline()?;
        let operators = pollster::block_on(self.timed(timing, true, record))?;
        Ok(Profile { operators, timing, roofline })
    }

    /// [`Gpu::profile_by`] without blocking (but for [`Timing::Wall`], which waits for every dispatch).
    ///
    /// # Errors
    /// As [`Gpu::profile_by`].
    pub async fn profile_async(
        &self,
        timing: Timing,
        record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>,
    ) -> Result<Profile, Error> {
        let roofline = self.roofline_async().await?;
        let operators = self.timed(timing, false, record).await?;
        Ok(Profile { operators, timing, roofline })
    }

    /// The better clock of this device: timestamps if it has them.
    pub fn timing(&self) -> Timing {
        if self.device().features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            Timing::Timestamps
        } else {
            Timing::Wall
        }
    }

    /// Runs what `record` records, each dispatch by itself.
    pub(crate) async fn timed(
        &self,
        timing: Timing,
        block: bool,
        record: impl FnOnce(&mut Recorder<'_, '_>) -> Result<(), Error>,
    ) -> Result<Vec<OperatorTime>, Error> {
        self.check()?;
        if timing == Timing::Timestamps && self.timing() != timing {
            return Err(DeviceError::Unsupported { what: "timestamps".to_owned() }.into());
        }
        let session = {
            let mut recorder = Recorder::on(self, Pass::Profiled(Box::new(Session::new(self, timing))));
            record(&mut recorder)?;
            let Some(Pass::Profiled(session)) = recorder.into_pass() else { unreachable!("made above") };
            session
        };
        session.finish(self, block).await
    }
}
