//! What the page calls. The page itself is `page/`: plain HTML, and JavaScript without a framework.
mod faults;
mod field;
mod golden;
mod march;
mod properties;
mod training;
mod voice;

use wasm_bindgen::prelude::*;
use weightnorm::{Gpu, Options};

/// A device of this browser, shared by all that the page shows.
#[wasm_bindgen]
pub struct Device {
    gpu: Gpu,
}

#[wasm_bindgen]
impl Device {
    /// Asks the browser for its best adapter.
    pub async fn open() -> Result<Device, JsError> {
        console_error_panic_hook::set_once();
        Ok(Device { gpu: Gpu::new_async(Options::default()).await? })
    }

    /// What the crate runs on, in lines.
    pub fn report(&self) -> String {
        self.gpu.report().to_string()
    }

    /// Kernels compiled so far.
    pub fn pipelines(&self) -> usize {
        self.gpu.pipeline_count()
    }
}

/// An error of an example's library, whose errors are texts.
fn text(error: impl std::fmt::Display) -> JsError {
    JsError::new(&error.to_string())
}
