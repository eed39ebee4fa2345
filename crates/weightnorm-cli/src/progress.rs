//! A bar on stderr, where that is a terminal.
use indicatif::{ProgressBar, ProgressStyle};
use weightnorm_checkpoint as checkpoint;

pub struct Progress(ProgressBar);

impl Progress {
    /// Counts steps.
    pub fn steps(what: &'static str, length: u64) -> Progress {
        Progress::new(what, length, "{msg} {wide_bar} {pos}/{len} {eta}")
    }

    /// Counts bytes.
    pub fn bytes(what: &'static str) -> Progress {
        Progress::new(what, 0, "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}")
    }

    fn new(what: &'static str, length: u64, template: &str) -> Progress {
        let bar = ProgressBar::new(length).with_message(what);
        Progress(match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        })
    }

    pub fn step(&self) {
        self.0.inc(1);
    }

    pub fn show(&self, progress: checkpoint::Progress<'_>) {
        self.0.set_length(progress.total);
        self.0.set_position(progress.done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
